//! The mark that says of which inode of a lower layer a file was copied up.
//!
//! Source: kernel `fs/overlayfs/overlayfs.h`, `struct ovl_fb`: version 0, magic 0xfb, length, flags, kind of handle, UUID of
//! the file system, handle.

use sys::handle::Handle;

const MAGIC: u8 = 0xfb;
const HEAD: usize = 21;
/// Set on machines with the other byte order.
const BIG_ENDIAN: u8 = 1;
const OWN_ENDIAN: u8 = if cfg!(target_endian = "big") { BIG_ENDIAN } else { 0 };
/// The handle has no byte order.
const ANY_ENDIAN: u8 = 2;

/// The value of the mark. `uuid` is zeros where the file system has none.
pub fn encode(uuid: [u8; 16], handle: &Handle) -> Option<Vec<u8>> {
    let len = u8::try_from(HEAD + handle.bytes.len()).ok()?;
    let mut value = vec![0, MAGIC, len, OWN_ENDIAN, handle.kind];
    value.extend(uuid);
    value.extend(&handle.bytes);
    Some(value)
}

/// The file system and the inode number that a mark tells; none where the handle is of a kind that does not tell.
///
/// A layer does not change, so that its inode is there; nobody is asked.
pub fn decode(value: &[u8]) -> Option<([u8; 16], u64)> {
    let head = value.first_chunk::<HEAD>()?;
    let flags = head[3];
    let ours = flags & ANY_ENDIAN != 0 || flags & BIG_ENDIAN == OWN_ENDIAN;
    if head[0] != 0 || head[1] != MAGIC || usize::from(head[2]) != value.len() || !ours {
        return None;
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&head[5..]);
    let fid = &value[HEAD..];
    let word = |at: usize| Some(u32::from_ne_bytes(*fid.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_ne_bytes(*fid.get(at..)?.first_chunk()?));
    // Source: linux/exportfs.h, `enum fid_type`; tmpfs has a generation before the number.
    let ino = match (head[4], fid.len()) {
        (1, 8) => u64::from(word(0)?),
        (1, 12) => u64::from(word(4)?) | u64::from(word(8)?) << 32,
        (0x81, 12) | (0x4d, 20) => long(0)?,
        _ => return None,
    };
    Some((uuid, ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_tells_its_inode() {
        let uuid = [7; 16];
        let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
        let cases = [
            (1, bytes(&[1234, 99]), Some(1234)),
            (1, bytes(&[99, 5, 0]), Some(5)),
            (
                0x81,
                bytes(&[77, 0, 3]),
                if cfg!(target_endian = "little") { Some(77) } else { None },
            ),
            (2, bytes(&[1, 2, 3, 4]), None),
            (0xfe, vec![], None),
        ];
        for (kind, bytes, ino) in cases {
            let value = encode(uuid, &Handle { kind, bytes }).expect("short enough");
            assert_eq!(decode(&value), ino.map(|ino| (uuid, ino)), "{kind:x}");
            assert_eq!(decode(&value[..value.len() - 1]), None);
        }
        assert_eq!(decode(b""), None);
        assert_eq!(encode(uuid, &Handle { kind: 1, bytes: vec![0; 300] }), None);
    }
}
