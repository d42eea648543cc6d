//! How a snapshot is mounted: by the kernel's overlayfs, as a directory where it stands on nothing, or by Strata's union
//! where its labels ask for what only that has.
//!
//! The union is a mount of type `fuse3.strata`: whoever mounts it has mount.fuse3 run `strata`, whose server belongs to
//! that mount and not to the snapshotter.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use store::snapshots::{Kind, Stack};

use crate::containerd::types::Mount;
use crate::labels::{PARENT_CHAIN, Wanted};

/// The type by which containerd's mounts have mount.fuse3 run `strata`.
const UNION: &str = "fuse3.strata";

/// The mounts of a snapshot, as containerd makes them. `user` is whether overlayfs keeps its marks in `user.` attributes.
///
/// # Errors
/// One sentence: a label that can't be.
pub(crate) fn of(stack: &Stack, user: bool) -> Result<Vec<Mount>, String> {
    let mut wanted = Wanted::of(&stack.labels)?;
    if is_given(stack, &wanted) {
        (wanted.uids, wanted.gids) = (None, None);
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let bind = |path: &Path, writable: bool| {
        let how = if writable { "rw" } else { "ro" };
        let mut options = vec![how.to_owned(), "rbind".to_owned()];
        options.extend(kernel_ids(&wanted));
        let (r#type, source) = ("bind".to_owned(), text(path));
        vec![Mount { r#type, source, options, ..Mount::default() }]
    };
    let writable = stack.kind == Kind::Active;
    let mut union = writable && wanted.needs_union();
    match (stack.lowers.as_slice(), writable) {
        // What is unpacked into it has whiteouts for what it will stand on: only in an upper layer are they kept.
        ([], true) if stack.labels.contains_key(PARENT_CHAIN) => union = false,
        ([], _) => return Ok(bind(&stack.upper, writable)),
        ([only], false) => return Ok(bind(only, false)),
        _ => {}
    }
    let mut options = Vec::new();
    if union {
        options.extend(wanted.size.as_ref().map(|size| format!("size={size}")));
        options.extend(wanted.inodes.as_ref().map(|count| format!("nr_inodes={count}")));
        // Whoever reads the upper layer once it is unmounted expects whole files.
        options.push(format!("partial={}", if wanted.partial { "complete" } else { "off" }));
        options.push(format!("counters={}", text(&counters(stack))));
        for (name, range) in [("uidmapping", wanted.uids), ("gidmapping", wanted.gids)] {
            options.extend(range.map(|r| format!("{name}={}:{}:{}", r.inside, r.outside, r.count)));
        }
    } else {
        options.push("index=off".to_owned());
        options.extend(kernel_ids(&wanted));
    }
    if user {
        options.push("userxattr".to_owned());
    }
    if writable {
        options.push(format!("workdir={}", text(&stack.work)));
        options.push(format!("upperdir={}", text(&stack.upper)));
    }
    let mapped = !union && (wanted.uids.is_some() || wanted.gids.is_some());
    let lowers = if mapped { within_one(&stack.lowers) } else { stack.lowers.clone() };
    let lowers: Vec<_> = lowers.iter().map(|lower| text(lower)).collect();
    if !lowers.is_empty() {
        options.push(format!("lowerdir={}", lowers.join(":")));
    }
    let (r#type, source) = if union { (UNION, "strata") } else { ("overlay", "overlay") };
    let (r#type, source) = (r#type.to_owned(), source.to_owned());
    Ok(vec![Mount { r#type, source, options, ..Mount::default() }])
}

/// Where the union of a snapshot counts.
pub(crate) fn counters(stack: &Stack) -> PathBuf {
    stack.work.with_file_name("counters")
}

/// Whether the layers are the mapped root's already: a containerd that was not told of `remap-ids`, as 1.7 can't be, has made a
/// copy of them that is, and labels what stands on it all the same.
fn is_given(stack: &Stack, wanted: &Wanted) -> bool {
    let top = stack.lowers.first().and_then(|lower| std::fs::metadata(lower).ok());
    let owner = top.map(|top| (top.uid(), top.gid()));
    wanted.root().is_some_and(|root| root != (0, 0) && owner == Some(root))
}

/// Names of the same trees for containerd to map users of: it mounts the directory that the names have in common at another
/// place, mapped, and a link of a snapshot to its layer leads nowhere there unless that directory is the store's root.
///
/// Source: containerd `core/mount/mount_linux.go`, `doPrepareIDMappedOverlay`.
fn within_one(lowers: &[PathBuf]) -> Vec<PathBuf> {
    let mut lowers = lowers.to_vec();
    let count = lowers.len();
    let Some((lowest, root)) = lowers.last_mut().and_then(|lowest| {
        let root = lowest.ancestors().nth(3)?.to_owned();
        Some((lowest, root))
    }) else {
        return lowers;
    };
    if count > 1 {
        // The same path, but as text the names have no more in common than the root.
        if let Ok(rest) = lowest.strip_prefix(&root) {
            *lowest = root.join(".").join(rest);
        }
    } else if let (Some(dir), Ok(link)) = (lowest.parent(), std::fs::read_link(&*lowest)) {
        let mut there = dir.to_owned();
        for part in link.components() {
            match part {
                std::path::Component::ParentDir => drop(there.pop()),
                part => there.push(part),
            }
        }
        *lowest = there;
    }
    lowers
}

/// What containerd maps the lower layers by.
fn kernel_ids(wanted: &Wanted) -> impl Iterator<Item = String> {
    let ranges = [("uidmap", wanted.uids), ("gidmap", wanted.gids)];
    let option = |(name, range): (&str, Option<crate::labels::Range>)| {
        range.map(|r| format!("{name}={}:{}:{}", r.inside, r.outside, r.count))
    };
    ranges.into_iter().filter_map(option)
}

/// The directories of mounts that were made here: what is written to, and what is below, uppermost first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    pub upper: Option<PathBuf>,
    pub lowers: Vec<PathBuf>,
}

impl Places {
    /// None for mounts that are not made here.
    pub fn of(mounts: &[Mount]) -> Option<Self> {
        let mount = match mounts {
            [] => return Some(Self::default()),
            [only] => only,
            _ => return None,
        };
        let has = |name: &str| mount.options.iter().any(|option| option == name);
        match mount.r#type.as_str() {
            "bind" if has("rw") => {
                Some(Self { upper: Some((&mount.source).into()), lowers: Vec::new() })
            }
            "bind" => Some(Self { upper: None, lowers: vec![(&mount.source).into()] }),
            "overlay" | UNION => {
                let value =
                    |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
                let lowers = value("lowerdir=").unwrap_or_default().split(':');
                let lowers = lowers.filter(|lower| !lower.is_empty()).map(PathBuf::from).collect();
                Some(Self { upper: value("upperdir=").map(PathBuf::from), lowers })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(kind: Kind, lowers: &[&str], labels: &[(&str, &str)]) -> Stack {
        Stack {
            kind,
            upper: "/s/9/fs".into(),
            work: "/s/9/work".into(),
            lowers: lowers.iter().map(Into::into).collect(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn layers_that_are_mapped_are_all_found_in_the_directory_that_their_names_have_in_common() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        for dir in ["layers/x/fs", "snapshots/1", "snapshots/2/fs"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::os::unix::fs::symlink("../../layers/x/fs", root.join("snapshots/1/layer")).unwrap();
        let link = root.join("snapshots/1/layer");
        assert_eq!(within_one(std::slice::from_ref(&link)), [root.join("layers/x/fs")]);
        let two = [root.join("snapshots/2/fs"), link];
        let named = within_one(&two);
        assert_eq!(named, two, "the same paths");
        assert_eq!(named[1].as_os_str(), root.join("./snapshots/1/layer").as_os_str());
        let own = [root.join("snapshots/2/fs")];
        assert_eq!(within_one(&own), own);
    }

    #[test]
    fn mounts_are_what_containerd_expects() {
        let ids = ("containerd.io/snapshot/uidmapping", "0:100000:65536");
        let chain = (PARENT_CHAIN, "sha256:x");
        let cases = [
            (stack(Kind::Active, &[], &[]), "bind /s/9/fs rw,rbind"),
            (stack(Kind::View, &[], &[]), "bind /s/9/fs ro,rbind"),
            (stack(Kind::View, &["/s/1/fs"], &[]), "bind /s/1/fs ro,rbind"),
            (
                stack(Kind::View, &["/s/2/fs", "/s/1/fs"], &[]),
                "overlay overlay index=off,lowerdir=/s/2/fs:/s/1/fs",
            ),
            (
                stack(Kind::Active, &["/s/1/fs"], &[]),
                "overlay overlay index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs",
            ),
            (
                stack(Kind::Active, &["/s/1/fs"], &[ids]),
                "overlay overlay index=off,uidmap=0:100000:65536,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs",
            ),
            (
                stack(Kind::Active, &[], &[chain]),
                "overlay overlay index=off,workdir=/s/9/work,upperdir=/s/9/fs",
            ),
            (
                stack(Kind::Active, &["/s/1/fs"], &[("strata.io/size", "2G"), ids]),
                "fuse3.strata strata size=2g,partial=off,counters=/s/9/counters,uidmapping=0:100000:65536,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs",
            ),
            (stack(Kind::View, &["/s/1/fs"], &[("strata.io/size", "2G")]), "bind /s/1/fs ro,rbind"),
        ];
        for (stack, want) in cases {
            let mounts = of(&stack, false).unwrap();
            let [mount] = &mounts[..] else { panic!("one mount") };
            let is = format!("{} {} {}", mount.r#type, mount.source, mount.options.join(","));
            assert_eq!(is, want);
            let places = Places::of(&mounts).unwrap();
            let upper = (stack.kind == Kind::Active).then_some(stack.upper);
            assert_eq!(places.upper, upper, "{want}");
            if !stack.lowers.is_empty() {
                assert_eq!(places.lowers, stack.lowers, "{want}");
            }
        }
        assert!(of(&stack(Kind::Active, &["/s/1/fs"], &[("strata.io/size", "x")]), false).is_err());
    }
}
