//! Ids as the mount shows them and as they are on disk: mapped once each way, here and nowhere else.

use std::borrow::Cow;
use std::ffi::OsStr;

use fuse::Errno;

use crate::options::{Mapping, Options};

/// What an id is shown as that has no mapping: the kernel's overflow id.
const OVERFLOW: u32 = 65_534;

/// EINVAL, as chown(2) answers for an id that has no mapping.
const UNMAPPED: Errno = Errno(22);

/// Maps users and groups.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ids {
    users: Map,
    groups: Map,
}

#[derive(Debug, Clone, Default)]
struct Map {
    /// None: as they are.
    ranges: Vec<Mapping>,
    squash: Option<u32>,
}

impl Map {
    fn shown(&self, stored: u32) -> u32 {
        if let Some(squash) = self.squash {
            return squash;
        }
        if self.ranges.is_empty() {
            return stored;
        }
        let range =
            self.ranges.iter().find(|range| stored.wrapping_sub(range.stored) < range.count);
        range.map_or(OVERFLOW, |range| range.shown + (stored - range.stored))
    }

    fn stored(&self, shown: u32) -> Result<u32, Errno> {
        if self.ranges.is_empty() {
            return Ok(shown);
        }
        let range = self.ranges.iter().find(|range| shown.wrapping_sub(range.shown) < range.count);
        range.map(|range| range.stored + (shown - range.shown)).ok_or(UNMAPPED)
    }

    /// The id to store for a change of owner; none where owners are all shown as one, so that nothing changes.
    fn change(&self, shown: Option<u32>) -> Result<Option<u32>, Errno> {
        match shown {
            Some(_) if self.squash.is_some() => Ok(None),
            Some(shown) => self.stored(shown).map(Some),
            None => Ok(None),
        }
    }
}

impl Ids {
    pub fn new(options: &Options) -> Self {
        let map = |ranges: &[Mapping], squash| Map { ranges: ranges.to_vec(), squash };
        Self {
            users: map(&options.uid_mappings, options.squash_uid),
            groups: map(&options.gid_mappings, options.squash_gid),
        }
    }

    /// Whether any id is other than it is stored.
    fn maps(&self) -> bool {
        !self.users.ranges.is_empty() || !self.groups.ranges.is_empty()
    }

    pub fn shown(&self, attr: &mut union::Attr) {
        attr.uid = self.users.shown(attr.uid);
        attr.gid = self.groups.shown(attr.gid);
    }

    /// Owner and group to store for what a caller makes.
    pub fn stored(&self, uid: u32, gid: u32) -> Result<(u32, u32), Errno> {
        Ok((self.users.stored(uid)?, self.groups.stored(gid)?))
    }

    pub fn change(&self, attr: &mut union::SetAttr) -> Result<(), Errno> {
        attr.uid = self.users.change(attr.uid)?;
        attr.gid = self.groups.change(attr.gid)?;
        Ok(())
    }

    /// Maps the ids within an ACL as it is shown; any other attribute stays.
    pub fn acl_shown(&self, name: &OsStr, value: &mut [u8]) {
        if self.maps() && is_acl(name) {
            for entry in entries(value) {
                if let Some((map, id)) = self.entry(entry) {
                    entry[4..].copy_from_slice(&map.shown(id).to_le_bytes());
                }
            }
        }
    }

    /// The reverse of [`Ids::acl_shown`].
    pub fn acl_stored(&self, name: &OsStr, value: &mut Cow<[u8]>) -> Result<(), Errno> {
        if self.maps() && is_acl(name) {
            for entry in entries(value.to_mut()) {
                if let Some((map, id)) = self.entry(entry) {
                    entry[4..].copy_from_slice(&map.stored(id)?.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    /// The id of an ACL's entry and what maps it; none for an entry without an id.
    fn entry(&self, entry: &[u8; ENTRY]) -> Option<(&Map, u32)> {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        match u16::from_le_bytes([entry[0], entry[1]]) {
            0x02 => Some((&self.users, id)),
            0x08 => Some((&self.groups, id)),
            _ => None,
        }
    }
}

fn is_acl(name: &OsStr) -> bool {
    name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

/// Tag, permissions, id.
const ENTRY: usize = 8;

/// The entries of an ACL: behind the version, a u32.
fn entries(value: &mut [u8]) -> &mut [[u8; ENTRY]] {
    value.get_mut(4..).map_or(&mut [], |value| value.as_chunks_mut().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Ids {
        let options = "lowerdir=l,uidmapping=1000:0:1:100000:1:10,gidmapping=500:0:2";
        Ids::new(&Options::parse(&[options]).unwrap().options)
    }

    #[test]
    fn every_mapped_id_comes_back() {
        let ids = ids();
        for shown in 0..11 {
            assert_eq!(ids.users.shown(ids.users.stored(shown).unwrap()), shown);
        }
        assert_eq!(ids.stored(1, 1), Ok((100_000, 501)));
        assert_eq!(ids.users.shown(7), OVERFLOW);
        assert_eq!(ids.stored(11, 0), Err(UNMAPPED));
        assert_eq!(Ids::default().stored(7, 8), Ok((7, 8)));
    }

    #[test]
    fn squashed_owners_do_not_change() {
        let options = Options::parse(&["lowerdir=l,squash_to_uid=5"]).unwrap().options;
        let ids = Ids::new(&options);
        assert_eq!((ids.users.shown(77), ids.groups.shown(77)), (5, 77));
        assert_eq!(ids.users.change(Some(9)), Ok(None));
        assert_eq!(ids.groups.change(Some(9)), Ok(Some(9)));
    }

    #[test]
    fn acls_are_mapped_inside() {
        let mut acl = vec![2, 0, 0, 0];
        for (tag, id) in [(1_u16, u32::MAX), (2, 3), (8, 1)] {
            acl.extend(tag.to_le_bytes());
            acl.extend([7, 0]);
            acl.extend(id.to_le_bytes());
        }
        let name = OsStr::new("system.posix_acl_access");
        let mut stored = Cow::Borrowed(acl.as_slice());
        ids().acl_stored(name, &mut stored).unwrap();
        let mut stored = stored.into_owned();
        assert_eq!(stored[16..20], 100_002_u32.to_le_bytes());
        assert_eq!(stored[8..12], u32::MAX.to_le_bytes());
        ids().acl_shown(name, &mut stored);
        assert_eq!(stored, acl);
        ids().acl_shown(name, &mut [1, 2]);
    }
}
