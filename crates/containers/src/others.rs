//! File systems that are mounted below the base of an attempt, which a union of the base alone would show as empty
//! directories.
//!
//! They are shown as they are, and can't be written to: nothing outside the layer may change. Where everybody writes
//! scratch files, a `/tmp` of its own, there is an empty one instead, which goes with the attempt.
//!
//! Source: proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use runtime::spec::Mount;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a file system below the base is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// As it is, and read-only.
    ReadOnly,
    /// By an empty one.
    Scratch,
    /// Not at all: who serves it may not answer.
    Hidden,
}

/// A file system below the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// Where it is mounted.
    pub at: PathBuf,
    /// How it is shown.
    pub how: How,
}

/// Where the command has the machine's own, or one made for it.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The file systems below `base`, but for those of the kernel and what lies in `ours`.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn below(base: &Path, ours: &Path) -> Result<Vec<Other>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    Ok(listed(&text, base, ours))
}

fn listed(text: &[u8], base: &Path, ours: &Path) -> Vec<Other> {
    let mut found: Vec<Other> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-");
        let (Some(at), Some(kind)) = (fields.get(4), dash.and_then(|dash| fields.get(dash + 1)))
        else {
            continue;
        };
        let at = unescaped(at);
        let kernel = KERNEL.iter().any(|own| at.starts_with(own));
        if at == base || !at.starts_with(base) || at.starts_with(ours) || kernel {
            continue;
        }
        // One that was mounted over is hidden by the one above.
        found.retain(|other| other.at != at);
        let how = if kind.starts_with(b"fuse") {
            How::Hidden
        } else {
            match fs::metadata(&at) {
                Ok(meta) if meta.is_dir() && meta.mode() & 0o1777 == 0o1777 => How::Scratch,
                Ok(_) => How::ReadOnly,
                Err(_) => How::Hidden,
            }
        };
        found.push(Other { at, how });
    }
    found
}

/// `\\040` and the like are bytes that would end a field.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// The mounts that show them, in a root like the machine's.
pub(crate) fn mounts(others: &[Other]) -> Vec<Mount> {
    let mount = |other: &Other| {
        let (kind, source, options): (_, &Path, &[&str]) = match other.how {
            How::ReadOnly => ("bind", &other.at, &["rbind", "rprivate", "ro"]),
            How::Scratch => ("tmpfs", Path::new("tmpfs"), &["nosuid", "nodev", "mode=1777"]),
            How::Hidden => return None,
        };
        Some(Mount {
            destination: other.at.clone(),
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        })
    };
    others.iter().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_the_base_are_listed_once() {
        let temp = tempfile::tempdir().expect("a directory");
        let at = temp.path().to_str().expect("text");
        for name in ["a b", "c", "ours/x"] {
            fs::create_dir_all(temp.path().join(name)).expect("a directory");
        }
        let text = format!(
            "1 0 8:0 / / rw - ext4 /dev/a rw\n2 1 0:1 / /proc rw - proc proc rw\n\
             3 1 8:1 / {at}/a\\040b rw shared:1 - ext4 /dev/b rw\n\
             4 1 8:1 / {at}/c rw - xfs /dev/c rw\n5 4 8:1 / {at}/c rw - fuse.x x rw\n\
             6 1 8:2 / {at}/ours/x rw - ext4 /dev/d rw\n"
        );
        let found = listed(text.as_bytes(), Path::new("/"), &temp.path().join("ours"));
        let other = |name: &str, how| Other { at: temp.path().join(name), how };
        assert_eq!(found, [other("a b", How::ReadOnly), other("c", How::Hidden)]);
        assert_eq!(mounts(&found).len(), 1);
        assert!(listed(text.as_bytes(), &temp.path().join("c"), Path::new("/x")).is_empty());
    }
}
