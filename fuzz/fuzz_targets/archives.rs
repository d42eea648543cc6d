//! Archives of images, as `load` and `pull` take them: OCI's and Docker's.
#![no_main]

use std::fs;
use std::io::Read;

use libfuzzer_sys::fuzz_target;
use store::BlobSource;
use store::manifest::{Document, parse};
use store::source::{DockerArchive, OciLayout};

/// All that a pull asks of it.
fn ask(source: &dyn BlobSource) {
    let Ok((bytes, kind)) = source.manifest() else { return };
    let Ok(Document::Manifest(manifest)) = parse(&bytes, &kind) else { return };
    for blob in manifest.layers.iter().chain([&manifest.config]).take(8) {
        for from in [0, 1, u64::MAX] {
            if let Ok(stream) = source.blob(blob, from) {
                let mut some = Vec::new();
                let _read = stream.take(1 << 16).read_to_end(&mut some);
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let path = strata_fuzz::place().join("archive.tar");
    fs::write(&path, strata_fuzz::with_checksums(input)).expect("a file");
    if let Ok(layout) = OciLayout::archive(&path, None) {
        if let Ok(tags) = layout.tags() {
            for tag in tags.iter().take(4) {
                ask(&OciLayout::archive(&path, Some(tag)).expect("it was one before"));
            }
        }
        ask(&layout);
    }
    for image in DockerArchive::open(&path).into_iter().flatten() {
        let _names = image.tags().len();
        ask(&image);
    }
});
