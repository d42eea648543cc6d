//! Manifests, indexes and configurations: no text is a panic, and what is taken is within the limits
//! and stays what it is when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::manifest::{Document, MAX_LAYERS, Platform, choose, media, parse, parse_config};

const KINDS: [&str; 6] = [
    "",
    media::OCI_INDEX,
    media::OCI_MANIFEST,
    media::DOCKER_LIST,
    media::DOCKER_MANIFEST,
    "text/plain",
];

fuzz_target!(|input: &[u8]| {
    let Some((first, text)) = input.split_first() else { return };
    let kind = KINDS[usize::from(*first) % KINDS.len()];
    match parse(text, kind) {
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= MAX_LAYERS && manifest.schema_version == 2);
            let again = store_again(&manifest);
            let Ok(Document::Manifest(same)) = parse(&again, kind) else {
                panic!("a manifest that was taken is none when it is written again")
            };
            assert_eq!(same.layers, manifest.layers);
            assert_eq!(same.config, manifest.config);
            for blob in &manifest.layers {
                // What becomes a name on the disk and part of an address.
                let hex = blob.digest.hex();
                assert!(hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
        Ok(Document::Index(index)) => {
            if let Ok(chosen) = choose(&index, &Platform::this()) {
                assert!(index.manifests.contains(chosen));
            }
        }
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
    for layers in [0, 1, 2] {
        if let Ok(config) = parse_config(text, layers) {
            assert_eq!(config.rootfs.diff_ids.len(), layers);
            assert_eq!(store::chain_id(&config.rootfs.diff_ids).is_some(), layers > 0);
        }
    }
});

fn store_again(manifest: &store::manifest::Manifest) -> Vec<u8> {
    serde_json::to_vec(manifest).expect("JSON")
}
