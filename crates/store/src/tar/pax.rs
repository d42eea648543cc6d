//! What headers say of the entry behind them, in records of PAX.
//!
//! Source: pax(1) of POSIX; GNU tar manual, "Storing Sparse Files".

use std::io;

use super::field::{decimal, time};
use super::read::bad;

/// Parts of a sparse file at most.
pub(super) const MAX_PARTS: usize = 1 << 20;

/// What PAX and GNU headers say of the entry behind them.
#[derive(Default, PartialEq)]
pub(super) struct Extra {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    /// By headers of GNU's.
    pub long_path: Option<Vec<u8>>,
    pub long_link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse_major: Option<u64>,
    pub sparse_name: Option<Vec<u8>>,
    pub sparse_size: Option<u64>,
    pub sparse_parts: Vec<u64>,
    pub sparse_mapped: bool,
    /// Whether it has what only the forms before 1.0 have.
    pub sparse_early: bool,
}

/// The records of a PAX header: `LENGTH KEY=VALUE\n`.
pub(super) fn pax(mut body: &[u8], extra: &mut Extra) -> io::Result<()> {
    while !body.is_empty() {
        let Some(space) = body.iter().position(|b| *b == b' ') else {
            return bad("a PAX record has no length");
        };
        let length = usize::try_from(decimal(&body[..space])?).unwrap_or(usize::MAX);
        let Some(record) = body.get(space + 1..length) else { return bad("a PAX record is cut") };
        body = &body[length..];
        let Some((b'\n', record)) = record.split_last() else {
            return bad("a PAX record does not end where it says");
        };
        let Some(equals) = record.iter().position(|b| *b == b'=') else {
            return bad("a PAX record has no value");
        };
        if equals == 0 {
            return bad("a PAX record has no key");
        }
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let id = |value| {
            u32::try_from(decimal(value)?).or_else(|_| bad("an owner's id is larger than 32 bits"))
        };
        match key {
            b"path" => extra.path = Some(value.to_vec()),
            b"linkpath" => extra.link = Some(value.to_vec()),
            b"size" => extra.size = Some(decimal(value)?),
            b"uid" => extra.uid = Some(id(value)?),
            b"gid" => extra.gid = Some(id(value)?),
            b"mtime" => extra.mtime = Some(time(value)?),
            b"GNU.sparse.major" => extra.sparse_major = Some(decimal(value)?),
            b"GNU.sparse.name" => extra.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size"
                if extra.sparse_size.is_some()
                    && extra.sparse_early != (key == b"GNU.sparse.size") =>
            {
                return bad("a sparse file has two lengths");
            }
            b"GNU.sparse.realsize" => extra.sparse_size = Some(decimal(value)?),
            b"GNU.sparse.size" => {
                extra.sparse_early = true;
                extra.sparse_size = Some(decimal(value)?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                extra.sparse_parts.push(decimal(value)?)
            }
            b"GNU.sparse.map" => {
                extra.sparse_mapped = true;
                for number in value.split(|b| *b == b',').filter(|number| !number.is_empty()) {
                    extra.sparse_parts.push(decimal(number)?);
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.len() > 255 || name.contains(&0) {
                        return bad("an extended attribute has a name that none can have");
                    }
                    extra.xattrs.retain(|(known, _)| known != name);
                    extra.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        if extra.sparse_parts.len() > MAX_PARTS * 2 {
            return bad("a sparse file has too many parts");
        }
    }
    Ok(())
}
