//! Options as `mount -o` takes them: fuse-overlayfs's and the kernel's, with their quotes and escapes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What a mount was asked to be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Lower layers, uppermost first.
    pub lowers: Vec<PathBuf>,
    /// The upper layer.
    pub upper: Option<PathBuf>,
    /// Its work directory.
    pub work: Option<PathBuf>,
    /// Copy-up does not wait for the disk.
    pub volatile: bool,
    /// Nothing changes, even with an upper layer.
    pub read_only: bool,
    /// Marks live in `user.overlay.*`.
    pub userxattr: bool,
    /// Times of access do not change.
    pub noatime: bool,
    /// Programs don't run from the mount.
    pub noexec: bool,
    /// Set-user-ID does not count.
    pub nosuid: bool,
    /// Device nodes do not work.
    pub nodev: bool,
    /// User ids: what is shown and what is on disk.
    pub uid_mappings: Vec<Mapping>,
    /// Group ids likewise.
    pub gid_mappings: Vec<Mapping>,
    /// Every file is shown as this user's.
    pub squash_uid: Option<u32>,
    /// Every file is shown as this group's.
    pub squash_gid: Option<u32>,
    /// Owner and mode live in an attribute: fuse-overlayfs's `xattr_permissions` (1 or 2).
    pub xattr_permissions: Option<u8>,
    /// Directories show one link, whatever is in them.
    pub static_nlink: bool,
    /// Seconds that the kernel may keep names and attributes.
    pub timeout: Option<f64>,
    /// No POSIX ACLs.
    pub noacl: bool,
    /// Directories of lower layers can be renamed (`redirect_dir`), which is so unless it is turned off.
    pub no_redirect_dir: bool,
    /// Names of a file of a lower layer that nobody has looked up yet don't follow a change of it (`index=off`).
    pub no_index: bool,
    /// What the upper layer may hold, in bytes.
    pub size: Option<u64>,
    /// How many inodes the upper layer may hold.
    pub inodes: Option<u64>,
    /// What becomes of the rest of a big file that is written to.
    pub partial: Partial,
    /// A file in which others can read what is counted (`counters=FILE`).
    pub counters: Option<PathBuf>,
    /// Only the user who mounts may enter.
    pub private: bool,
    /// The source shown in /proc/mounts.
    pub source: Option<String>,
    /// `context=` and its kin, for the kernel.
    pub security: Vec<String>,
}

/// What becomes of the data of a big file of a lower layer of which a part was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Partial {
    /// It comes up when the mount is idle, and at the unmount at the latest.
    #[default]
    Complete,
    /// It comes up when the mount is idle; after the unmount, only Strata can read the upper layer.
    Keep,
    /// All of it comes up before the first write.
    Off,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The first id that the mount shows.
    pub shown: u32,
    /// The first id on disk.
    pub stored: u32,
    /// How many.
    pub count: u32,
}

/// Options, and what about them should be said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parsed {
    /// The options.
    pub options: Options,
    /// One sentence for each option that is not known and changes nothing.
    pub warnings: Vec<String>,
}

/// Known, and nothing to do: we always do so, or it is about what only others have.
const ACCEPTED: &[&str] = &[
    "async",
    "atime",
    "diratime",
    "nodiratime",
    "strictatime",
    "relatime",
    "exec",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "users",
    "default_permissions",
    "auto_unmount",
    "threaded",
    "ino32_t",
    "fsync",
    "fast_ino",
    "metacopy",
    "xino",
    "nfs_export",
    "uuid",
    "subtype",
    "clone_fd",
    "max_idle_threads",
    "max_threads",
    "max_write",
    "max_read",
    "big_writes",
    "noxattrs",
    "plugins",
];

impl Options {
    /// Reads option strings, each a list with commas; a later one wins.
    ///
    /// # Errors
    /// One sentence: an option lacks its value or has a wrong one, or there is no lower layer.
    pub fn parse<S: AsRef<OsStr>>(strings: &[S]) -> Result<Parsed, String> {
        let mut parsed = Parsed::default();
        for string in strings {
            for option in split(string.as_ref().as_bytes(), b',') {
                parsed.take(&option)?;
            }
        }
        let options = &parsed.options;
        if options.lowers.is_empty() {
            return Err("no lower layer: give at least one as -o lowerdir=DIRECTORY".to_owned());
        }
        if options.upper.is_some() && options.work.is_none() {
            return Err("upperdir needs workdir: an empty directory on the same file system as it"
                .to_owned());
        }
        if options.work.is_some() && options.upper.is_none() {
            return Err("workdir is of no use without upperdir: give both or none".to_owned());
        }
        Ok(parsed)
    }
}

impl Parsed {
    fn take(&mut self, option: &[u8]) -> Result<(), String> {
        let at = option.iter().position(|byte| *byte == b'=');
        let (name, value) =
            at.map_or((option, None), |at| (&option[..at], Some(&option[at + 1..])));
        let name = String::from_utf8_lossy(name).into_owned();
        let value = value.filter(|value| !value.is_empty());
        let path = || {
            value.map(unescape).ok_or_else(|| format!("{name} needs a directory: {name}=DIRECTORY"))
        };
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        let wrong = |wanted: &str| format!("{name} needs {wanted}, not {:?}", text.unwrap_or(""));
        let number =
            || text.and_then(|text| text.parse().ok()).ok_or_else(|| wrong("a number from 0 on"));
        let options = &mut self.options;
        match name.as_str() {
            "" => {}
            "lowerdir" => {
                let list = value.ok_or("lowerdir needs directories: lowerdir=UPPERMOST:NEXT")?;
                let inner = list.strip_prefix(b"\"").and_then(|list| list.strip_suffix(b"\""));
                let parts = split(inner.unwrap_or(list), b':').into_iter();
                options.lowers =
                    parts.filter(|part| !part.is_empty()).map(|part| unescape(&part)).collect();
            }
            "upperdir" => options.upper = Some(path()?),
            "workdir" => options.work = Some(path()?),
            "volatile" => options.volatile = true,
            "ro" => options.read_only = true,
            "rw" => options.read_only = false,
            "userxattr" => options.userxattr = true,
            "noatime" => options.noatime = true,
            "noexec" => options.noexec = true,
            "nosuid" => options.nosuid = true,
            "suid" => options.nosuid = false,
            "nodev" => options.nodev = true,
            "dev" => options.nodev = false,
            "uidmapping" => options.uid_mappings = mappings(text).ok_or_else(|| wrong(MAPPING))?,
            "gidmapping" => options.gid_mappings = mappings(text).ok_or_else(|| wrong(MAPPING))?,
            "squash_to_root" => (options.squash_uid, options.squash_gid) = (Some(0), Some(0)),
            "squash_to_uid" => options.squash_uid = Some(number()?),
            "squash_to_gid" => options.squash_gid = Some(number()?),
            "xattr_permissions" => {
                options.xattr_permissions = match number()? {
                    0 => None,
                    kind @ (1 | 2) => Some(kind as u8),
                    _ => return Err(wrong("0, 1 or 2")),
                };
            }
            "static_nlink" => options.static_nlink = true,
            "timeout" => {
                let seconds = text.and_then(|text| text.parse::<f64>().ok());
                let seconds = seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
                options.timeout = Some(seconds.ok_or_else(|| wrong("seconds"))?);
            }
            "noacl" => options.noacl = true,
            "redirect_dir" => options.no_redirect_dir = text.is_some_and(|text| text != "on"),
            "index" => options.no_index = text.is_some_and(|text| text != "on"),
            "size" => {
                options.size = Some(size(text).ok_or_else(|| wrong("bytes, as 512m or 10g"))?)
            }
            "nr_inodes" => {
                options.inodes = Some(size(text).ok_or_else(|| wrong("a count, as 100k"))?);
            }
            "counters" => {
                options.counters = Some(value.map(unescape).ok_or_else(|| wrong("a file"))?);
            }
            "partial" => {
                options.partial = match text {
                    Some("complete" | "on") => Partial::Complete,
                    Some("keep") => Partial::Keep,
                    Some("off") => Partial::Off,
                    _ => return Err(wrong("complete, keep or off")),
                };
            }
            "allow_other" | "allow_root" => options.private = false,
            "noallow_other" => options.private = true,
            "fsname" => options.source = text.map(str::to_owned),
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                options.security.push(String::from_utf8_lossy(option).into_owned());
            }
            known if ACCEPTED.contains(&known) => {}
            unknown => self.warnings.push(format!("option {unknown} is not known, and ignored")),
        }
        Ok(())
    }
}

const MAPPING: &str = "STORED:SHOWN:COUNT, once or more with colons between";

/// `stored:shown:count`, any number of times; none that overlap on either side. podman puts a colon before the first.
///
/// Source: what fuse-overlayfs 1.10 shows of a lower layer with either order.
fn mappings(text: Option<&str>) -> Option<Vec<Mapping>> {
    let text = text?;
    let numbers =
        text.strip_prefix(':').unwrap_or(text).split(':').map(|number| number.parse().ok());
    let numbers: Vec<u32> = numbers.collect::<Option<_>>()?;
    let (triples, []) = numbers.as_chunks::<3>() else { return None };
    let mappings = triples.iter().map(|[stored, shown, count]| Mapping {
        shown: *shown,
        stored: *stored,
        count: *count,
    });
    let mappings: Vec<_> = mappings.collect();
    let overlap = |a: u32, b: u32, a_count: u32, b_count: u32| {
        u64::from(a) < u64::from(b) + u64::from(b_count)
            && u64::from(b) < u64::from(a) + u64::from(a_count)
    };
    for (index, one) in mappings.iter().enumerate() {
        one.shown.checked_add(one.count)?;
        one.stored.checked_add(one.count)?;
        for other in &mappings[..index] {
            if overlap(one.shown, other.shown, one.count, other.count)
                || overlap(one.stored, other.stored, one.count, other.count)
            {
                return None;
            }
        }
    }
    Some(mappings)
}

/// A count, with `k`, `m`, `g` or `t` behind it for powers of 1024.
fn size(text: Option<&str>) -> Option<u64> {
    let text = text?;
    let suffix = text.chars().last()?.to_ascii_lowercase();
    let shift = match suffix {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        _ => return text.parse().ok(),
    };
    text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Splits at `separator` outside quotes and not behind a backslash. Quotes and backslashes stay.
pub(crate) fn split(list: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let (mut quoted, mut escaped) = (false, false);
    for byte in list {
        if *byte == separator && !quoted && !escaped {
            parts.push(Vec::new());
            continue;
        }
        quoted ^= *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(*byte);
        }
    }
    parts
}

/// A path without the backslashes that protected its characters, and without quotes around it.
fn unescape(value: &[u8]) -> PathBuf {
    let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let mut path = Vec::with_capacity(value.len());
    let mut escaped = false;
    for byte in inner.unwrap_or(value) {
        if *byte == b'\\' && !escaped {
            escaped = true;
        } else {
            path.push(*byte);
            escaped = false;
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(string: &str) -> Options {
        Options::parse(&[string]).expect("parses").options
    }

    #[test]
    fn lowers_keep_their_order_and_escapes() {
        let lowers: Vec<_> = ["a:b", "c,d", "e"].iter().map(PathBuf::from).collect();
        assert_eq!(options(r"lowerdir=a\:b:c\,d:e").lowers, lowers);
    }

    #[test]
    fn quotes_protect_commas() {
        let parsed = options("lowerdir=l,context=\"system_u:object_r:t:s0:c1,c2\",ro");
        assert_eq!(parsed.security, ["context=\"system_u:object_r:t:s0:c1,c2\""]);
        assert!(parsed.read_only);
    }

    #[test]
    fn ids_are_mapped_in_threes() {
        let parsed = options("lowerdir=l,uidmapping=:1000:0:1:100000:1:65536,squash_to_gid=5");
        let first = Mapping { shown: 0, stored: 1000, count: 1 };
        assert_eq!((parsed.uid_mappings[0], parsed.uid_mappings.len()), (first, 2));
        assert_eq!(parsed.squash_gid, Some(5));
        for wrong in ["0:1", "0:0:2:1:5:1", "a:0:1", "0:4294967295:2", ""] {
            assert!(Options::parse(&[format!("lowerdir=l,uidmapping={wrong}")]).is_err());
        }
    }

    #[test]
    fn sizes_have_suffixes() {
        let parsed = options("lowerdir=l,size=10g,nr_inodes=100K,timeout=0.5");
        assert_eq!((parsed.size, parsed.inodes), (Some(10 << 30), Some(100 << 10)));
        assert_eq!(parsed.timeout, Some(0.5));
        for wrong in ["size=", "size=g", "size=-1", "size=99999999999t", "timeout=nan"] {
            assert!(Options::parse(&[format!("lowerdir=l,{wrong}")]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn big_files_are_completed_unless_told_otherwise() {
        assert!(
            !options("lowerdir=l,index=on").no_index && options("lowerdir=l,index=off").no_index
        );
        assert_eq!(options("lowerdir=l").partial, Partial::Complete);
        assert_eq!(options("lowerdir=l,partial=keep").partial, Partial::Keep);
        assert_eq!(options("lowerdir=l,partial=off").partial, Partial::Off);
        assert!(Options::parse(&["lowerdir=l,partial=some"]).is_err());
    }

    #[test]
    fn no_bytes_are_a_panic() {
        let mut state = 7_u32;
        for _ in 0..2000 {
            let bytes = (0..30).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                b"lowerdir=u:,\\\"sizet0123g\xff"[(state >> 16) as usize % 25]
            });
            let string = OsString::from_vec(bytes.collect());
            drop(Options::parse(&[string]));
        }
    }

    #[test]
    fn unknown_options_only_warn() {
        let parsed = Options::parse(&["lowerdir=l", "sparkle=1,volatile"]).expect("parses");
        assert_eq!(parsed.warnings, ["option sparkle is not known, and ignored"]);
        assert!(parsed.options.volatile);
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(Options::parse(&["ro"]).unwrap_err().contains("lowerdir"));
        assert!(Options::parse(&["lowerdir=l,upperdir=u"]).unwrap_err().contains("workdir"));
        assert!(Options::parse(&["lowerdir=l,upperdir="]).unwrap_err().contains("upperdir"));
    }
}
