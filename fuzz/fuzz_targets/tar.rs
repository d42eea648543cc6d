//! A tar is read: what is kept and what is data are together all that was read, in order.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use store::tar::read::{Kind, Reader};

fn read(tar: &[u8]) {
    let mut reader = Reader::new(tar);
    let mut all = Vec::new();
    loop {
        let next = reader.next_entry();
        let raw = reader.take_raw();
        all.extend_from_slice(&raw);
        let Ok(next) = next else { return };
        let Some(entry) = next else { break };
        assert!(!entry.path.is_empty() && !entry.path.contains(&0) && !entry.link.contains(&0));
        assert!(entry.kind == Kind::File || (entry.stored, entry.size) == (0, 0));
        if let Some(parts) = &entry.parts {
            let mut end = 0;
            for (offset, length) in parts {
                assert!(*offset >= end);
                end = offset + length;
            }
            assert!(end <= entry.size);
        }
        let mut stored = 0;
        loop {
            let Ok(data) = reader.data() else { return };
            if data.is_empty() {
                break;
            }
            all.extend_from_slice(data);
            let count = data.len();
            stored += count as u64;
            reader.consume(count);
        }
        assert_eq!(stored, entry.stored);
    }
    if reader.finish().is_ok() {
        all.extend_from_slice(&reader.take_raw());
        assert!(all == tar, "something of the tar was lost");
    }
    let mut rest = Vec::new();
    let _left = reader.source().take(0).read_to_end(&mut rest);
}

fuzz_target!(|input: &[u8]| {
    read(input);
    read(&strata_fuzz::with_checksums(input));
});
