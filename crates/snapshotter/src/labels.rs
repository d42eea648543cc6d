//! What the labels of a snapshot ask for.
//!
//! containerd passes on only labels that begin with `containerd.io/snapshot/`: behind that prefix ours are known too.
//!
//! Source: containerd `core/snapshots`: `LabelSnapshotUIDMapping`, `LabelSnapshotGIDMapping`, `FilterInheritedLabels`.

use std::collections::BTreeMap;

/// The chain ID of what is about to be unpacked.
pub(crate) const REFERENCE: &str = "containerd.io/snapshot.ref";
/// The chain ID of what a snapshot without a parent will stand on once it is committed.
pub(crate) const PARENT_CHAIN: &str = "containerd.io/snapshot/parent-chain-id";
/// Before labels that are not containerd's own.
const PREFIX: &str = "containerd.io/snapshot/";
const UIDS: &str = "containerd.io/snapshot/uidmapping";
const GIDS: &str = "containerd.io/snapshot/gidmapping";

/// How a snapshot is to be mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// What its own tree may hold at most, as `-o size=` has it.
    pub size: Option<String>,
    /// How many inodes at most.
    pub inodes: Option<String>,
    /// A write to a big file does not copy all of it.
    pub partial: bool,
    /// Users and groups: of the container, of the machine, how many.
    pub uids: Option<Range>,
    pub gids: Option<Range>,
}

/// A range of ids: the first in the container, the first on the machine, how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

impl Wanted {
    /// Reads labels.
    ///
    /// # Errors
    /// One sentence: a value that can't be.
    pub fn of(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        let ours = |name: &str| {
            let long = format!("{PREFIX}strata.io/{name}");
            labels.get(&format!("strata.io/{name}")).or_else(|| labels.get(&long))
        };
        let count = |name: &str| -> Result<Option<String>, String> {
            let Some(value) = ours(name) else { return Ok(None) };
            if is_size(value) {
                return Ok(Some(value.to_lowercase()));
            }
            Err(format!("the label strata.io/{name} is {value:?}: it must be like 500M or 2G"))
        };
        let partial = match ours("partial-copy-up").map(String::as_str) {
            None | Some("" | "false") => false,
            Some("true") => true,
            Some(other) => {
                let why =
                    format!("the label strata.io/partial-copy-up is {other:?}: true or false");
                return Err(why);
            }
        };
        let range = |name: &str| -> Result<Option<Range>, String> {
            let Some(value) = labels.get(name) else { return Ok(None) };
            let why = || format!("the label {name} is {value:?}: it must be INSIDE:OUTSIDE:COUNT");
            range(value).map(Some).ok_or_else(why)
        };
        let (size, inodes) = (count("size")?, count("inodes")?);
        Ok(Self { size, inodes, partial, uids: range(UIDS)?, gids: range(GIDS)? })
    }

    /// Whether only the union can do this.
    pub fn needs_union(&self) -> bool {
        self.size.is_some() || self.inodes.is_some() || self.partial
    }

    /// What root of the container is on the machine: user and group.
    pub fn root(&self) -> Option<(u32, u32)> {
        let outside = |range: Range| (range.inside == 0).then_some(range.outside);
        self.uids.and_then(outside).zip(self.gids.and_then(outside))
    }
}

fn is_size(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| "kmgtKMGT".contains(c));
    text.len() - digits.len() <= 1 && digits.parse::<u64>().is_ok_and(|count| count > 0)
}

fn range(text: &str) -> Option<Range> {
    let numbers: Vec<u32> =
        text.split(':').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let [inside, outside, count] = numbers[..] else { return None };
    inside.checked_add(count)?;
    outside.checked_add(count)?;
    (count > 0).then_some(Range { inside, outside, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_with_and_without_the_prefix_that_containerd_lets_through() {
        let read = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            Wanted::of(&owned.collect())
        };
        assert_eq!(read(&[]).unwrap(), Wanted::default());
        let size = read(&[("strata.io/size", "2G")]).unwrap();
        assert_eq!((size.size.as_deref(), size.needs_union()), (Some("2g"), true));
        let long = [("containerd.io/snapshot/strata.io/partial-copy-up", "true")];
        assert!(read(&long).unwrap().needs_union());
        let ids = [(UIDS, "0:100000:65536"), (GIDS, "0:200000:65536")];
        let ids = read(&ids).unwrap();
        assert_eq!((ids.root(), ids.needs_union()), (Some((100_000, 200_000)), false));
        let wrong = [
            ("strata.io/size", "2GG"),
            ("strata.io/size", "0"),
            ("strata.io/size", "-1"),
            ("strata.io/inodes", "many"),
            ("strata.io/partial-copy-up", "maybe"),
            (UIDS, "0:1"),
            (UIDS, "0:0:0"),
            (GIDS, "0:4294967295:2"),
        ];
        for pair in wrong {
            assert!(read(&[pair]).is_err(), "{pair:?}");
        }
    }
}
