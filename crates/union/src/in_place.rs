//! New things made right where they go: where nothing has to be hidden or replaced, and who asks is who this process is,
//! so that the file system itself gives them owner, mode and ACL in the one call that makes them.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use layer::WANTED;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, chmodat, mkdirat, mknodat, openat, statx, symlinkat,
};
use rustix::io::Errno;

use crate::create::{Caller, Made, New, default_acl};
use crate::error::{Result, Step, call};
use crate::find::Name;
use crate::node::{Body, Node, NodeId};
use crate::place::Place;
use crate::resolve::LayerIndex;
use crate::stack::Union;

/// Who new files belong to that this process makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Creator {
    uid: u32,
    gid: u32,
}

impl Creator {
    pub fn this_process() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self { uid: uid.as_raw(), gid: gid.as_raw() }
    }
}

impl Union {
    /// Makes something in place; none where it has to be staged, or its name is taken.
    pub(crate) fn make_in_place(
        &self,
        creator: Creator,
        by: Caller,
        parent: &Arc<Node>,
        name: &OsStr,
        mode: u32,
        new: &New<'_>,
    ) -> Result<Option<Made>> {
        let own = creator == Creator { uid: by.uid, gid: by.gid };
        if !own || self.layers[0].owners().is_some() {
            return Ok(None);
        }
        let fail = |what| move |e| call(&self.path_in(parent, name), Step::Publish, what, e);
        let _names = parent.names.write();
        let gone = parent.place().is_none() && parent.id != NodeId::ROOT;
        if gone || self.table.ino(parent.id, name).is_some() || self.is_below(parent, name)? {
            return Ok(None);
        }
        let dir = self.upper_dir(parent)?;
        // A default ACL takes the place of the umask.
        let has_acl = || self.has_default_acl(parent, &dir).map_err(fail("fgetxattr"));
        let masked = by.umask != 0 && !has_acl()?;
        let bits = Mode::from_raw_mode(if masked { mode & !by.umask } else { mode } & 0o7777);
        let fd = match made(&dir, name, bits, new) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(None),
            Err(e) => return Err(fail("create")(e)),
        };
        let look = || match &fd {
            Some(fd) => statx(fd, "", AtFlags::EMPTY_PATH, WANTED),
            None => statx(&*dir, name, AtFlags::SYMLINK_NOFOLLOW, WANTED),
        };
        let mut stat: Statx = look().map_err(fail("statx"))?;
        // The daemon's own umask.
        let got = Mode::from_raw_mode(stat.stx_mode.into());
        if !matches!(new, New::Symlink(_)) && !got.contains(bits) && !has_acl()? {
            chmodat(&*dir, name, got | bits, AtFlags::empty()).map_err(fail("fchmodat"))?;
            stat = look().map_err(fail("statx"))?;
        }
        let body = Body { upper: true, ..Body::default() };
        let found = Name { stat, layer: LayerIndex(0), body, ino: None };
        let place = Place::new(parent, name);
        let entered = self.table.enter(Some(place), self.candidate(found), || true);
        Ok(entered.map(|(node, _)| Made { node, fd, stat: Some(stat) }))
    }

    /// Whether a directory of the upper layer has an ACL for what is made in it.
    fn has_default_acl(&self, node: &Node, dir: &OwnedFd) -> std::result::Result<bool, Errno> {
        match self.known_dir(node) {
            Some(known) => known.has_default_acl(|| Ok(default_acl(dir)?.is_some())),
            None => Ok(default_acl(dir)?.is_some()),
        }
    }
}

fn made(
    dir: &OwnedFd,
    name: &OsStr,
    bits: Mode,
    new: &New<'_>,
) -> std::result::Result<Option<OwnedFd>, Errno> {
    match new {
        New::File => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            return openat(dir, name, flags, bits).map(Some);
        }
        New::Dir => mkdirat(dir, name, bits)?,
        New::Symlink(target) => symlinkat(*target, dir, name)?,
        New::Node(kind, device) => {
            debug_assert_ne!(*kind, FileType::RegularFile);
            mknodat(dir, name, *kind, bits, *device)?;
        }
    }
    Ok(None)
}
