//! References, digests, and the names by which layers hide others.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use layer::mark;
use libfuzzer_sys::fuzz_target;
use store::{Digest, Reference};

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        if let Ok(reference) = text.parse::<Reference>() {
            let full = reference.to_string();
            assert_eq!(full.parse::<Reference>().ok().as_ref(), Some(&reference), "{full}");
            // They become part of an address.
            for part in [&reference.registry, &reference.repository, &reference.version()] {
                assert!(!part.is_empty());
                assert!(!part.contains(['\\', '?', '#', '%', '@', ' ', '\n']), "{part}");
                assert!(part.split('/').all(|name| name != ".." && name != "."), "{part}");
            }
            assert!(!reference.registry.contains('/') && !reference.version().contains('/'));
        }
        if let Ok(digest) = text.parse::<Digest>() {
            assert_eq!(digest.to_string(), text);
        }
    }
    let name = OsStr::from_bytes(input);
    if let Some(hidden) = mark::aufs_hidden(name) {
        assert!(mark::is_aufs(name));
        assert!(!hidden.is_empty() && hidden != "." && hidden != ".." && !mark::is_aufs(hidden));
        assert_eq!(mark::aufs_whiteout(hidden), name);
    }
});
