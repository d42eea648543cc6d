//! Renames. A directory that lower layers show too moves in the upper one and says where the
//! lower layers have it: a redirect, as the kernel's overlayfs writes it.
//!
//! Source: overlayfs.rst, "Redirects"; renameat2(2).

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use layer::mark;
use rustix::fs::{Mode, OFlags, RenameFlags, fchmod, fchown, mkdirat, openat, renameat_with};
use rustix::io::Errno;

use crate::copy_up::Data;
use crate::error::{Result, Step, call, refused};
use crate::node::{Node, NodeId};
use crate::place::Place;
use crate::stack::Union;
use crate::upper::{DIRECTORY, Upper};

/// One side of a rename.
struct Side {
    parent: Arc<Node>,
    name: std::ffi::OsString,
    node: Option<Arc<Node>>,
}

impl Union {
    /// Renames, with the flags of renameat2(2): `RENAME_NOREPLACE`, `RENAME_EXCHANGE`,
    /// `RENAME_WHITEOUT`.
    ///
    /// # Errors
    /// ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EROFS, ENOSPC; EINVAL for a directory into
    /// itself; EXDEV for a directory of lower layers whose path there is too long for a redirect.
    pub fn rename(
        &self,
        from: (NodeId, &OsStr),
        to: (NodeId, &OsStr),
        flags: RenameFlags,
    ) -> Result<()> {
        let from_parent = self.node(from.0)?;
        let to_parent = self.node(to.0)?;
        let upper = self.upper(&from_parent)?;
        crate::create::check_name(to.1)?;
        loop {
            let source = self.child(&from_parent, from.1)?;
            let target = match self.child(&to_parent, to.1) {
                Ok(node) => Some(node),
                Err(e) if e.errno() == Errno::NOENT => None,
                Err(e) => {
                    self.forget(source.id, 1);
                    return Err(e);
                }
            };
            let a = Side {
                parent: Arc::clone(&from_parent),
                name: from.1.to_owned(),
                node: Some(Arc::clone(&source)),
            };
            let b = Side {
                parent: Arc::clone(&to_parent),
                name: to.1.to_owned(),
                node: target.clone(),
            };
            let done = self.rename_nodes(upper, &a, &b, flags);
            self.forget(source.id, 1);
            if let Some(target) = target {
                self.forget(target.id, 1);
            }
            match done {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// False where a name changed hands meanwhile.
    fn rename_nodes(&self, upper: &Upper, a: &Side, b: &Side, flags: RenameFlags) -> Result<bool> {
        let Some(source) = &a.node else { return Ok(false) };
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let refuse = |side: &Side, e| Err(refused(&self.path_in(&side.parent, &side.name), e));
        match &b.node {
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => return refuse(b, Errno::EXIST),
            None if exchange => return refuse(b, Errno::NOENT),
            // Two names of one file, or the same name: POSIX wants nothing done.
            Some(target) if Arc::ptr_eq(source, target) => return Ok(true),
            Some(target) if !exchange => match (source.is_dir(), target.is_dir()) {
                (true, false) => return refuse(b, Errno::NOTDIR),
                (false, true) => return refuse(b, Errno::ISDIR),
                _ => {}
            },
            _ => {}
        }
        self.copy_up(source, Data::All)?;
        self.copy_up(&a.parent, Data::All)?;
        self.copy_up(&b.parent, Data::All)?;
        if let (Some(target), true) = (&b.node, exchange) {
            self.copy_up(target, Data::All)?;
            self.bring_data(target, Data::All)?;
        }
        if let (Some(target), false) = (&b.node, exchange) {
            self.copy_up_names(target)?;
        }
        // Without a name of its own a file would not find its data again.
        self.bring_data(source, Data::All)?;
        self.hand_impurity_on(source, &a.parent, &b.parent)?;
        if let (Some(target), true) = (&b.node, exchange) {
            self.hand_impurity_on(target, &b.parent, &a.parent)?;
        }
        let moves_dirs =
            source.is_dir() || (exchange && b.node.as_ref().is_some_and(|n| n.is_dir()));
        let _moving = moves_dirs.then(|| self.moving.lock());
        let (first, second) = match &b.node {
            Some(target) => in_order(source, target),
            None => (source, None),
        };
        let _first_change = first.change.lock();
        let _second_change = second.map(|node| node.change.lock());
        let (first, second) = in_order(&a.parent, &b.parent);
        let _first = first.names.write();
        let _second = second.map(|node| node.names.write());
        let still = |side: &Side| match &side.node {
            Some(node) => self.holds(&side.parent, &side.name, node),
            None => self.table.ino(side.parent.id, &side.name).is_none(),
        };
        if !still(a) || !still(b) {
            return Ok(false);
        }
        if beneath(&b.parent, source)
            || (exchange && b.node.as_ref().is_some_and(|n| beneath(&a.parent, n)))
        {
            return refuse(b, Errno::INVAL);
        }
        if b.node.as_ref().is_some_and(|target| !exchange && beneath(&a.parent, target)) {
            return refuse(b, Errno::NOTEMPTY);
        }
        for side in [a, b] {
            if let Some(node) = &side.node {
                self.link_up(node, &Place::new(&side.parent, &side.name))?;
            }
        }
        self.mark_moved(source, b)?;
        if let (Some(target), true) = (&b.node, exchange) {
            self.mark_moved(target, a)?;
        }
        self.rename_upper(upper, a, b, flags, moves_dirs)
    }

    fn rename_upper(
        &self,
        upper: &Upper,
        a: &Side,
        b: &Side,
        flags: RenameFlags,
        moves_dirs: bool,
    ) -> Result<bool> {
        let fail = |name| move |e| call(&self.path_in(&a.parent, &a.name), Step::Publish, name, e);
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let (from, to) = (self.upper_dir(&a.parent)?, self.upper_dir(&b.parent)?);
        if let (Some(target), false) = (&b.node, exchange) {
            let _inside = target.is_dir().then(|| target.names.write());
            if target.is_dir() && !self.list(target)?.is_empty() {
                return Err(refused(&self.path_in(&b.parent, &b.name), Errno::NOTEMPTY));
            }
            self.names_change(target)?;
            self.anchor(target)?;
            if target.is_dir() && target.body.read().upper {
                self.clear(upper, &to, &b.name).map_err(fail("renameat2"))?;
            }
        }
        let freed = match b.node.as_ref().filter(|_| !exchange) {
            Some(target) => self.freed_by(target, target.body.read().upper)?,
            None => None,
        };
        let last = match &b.node {
            Some(target) if !exchange => self.is_last_name(target)?,
            _ => false,
        };
        let leaves = !exchange
            && (flags.contains(RenameFlags::WHITEOUT) || self.is_below(&a.parent, &a.name)?);
        let moving = moves_dirs.then(|| Moving::new(&self.moves));
        self.rename_real(upper, (&from, a), (&to, b), exchange, leaves)
            .map_err(fail("renameat2"))?;
        let place = |side: &Side| Place::new(&side.parent, &side.name);
        let replaced = b.node.as_ref().filter(|_| !exchange);
        if replaced.is_some() {
            self.table.remove_place(b.parent.id, &b.name, last);
        }
        self.table.rename(&place(a), &place(b), exchange);
        drop(moving);
        if let Some(target) = replaced {
            self.name_went(target)?;
            self.free(target, freed);
            if last {
                self.forget_copy(target)?;
            }
            self.settle_partial(target)?;
        }
        match replaced {
            Some(target) if target.is_dir() => self.drop_dirs(target.id),
            Some(target) => self.table.settle(target),
            None => {}
        }
        Ok(true)
    }

    /// The rename in the upper layer; `leaves` is whether a whiteout stays at the old name.
    fn rename_real(
        &self,
        upper: &Upper,
        (from, a): (&OwnedFd, &Side),
        (to, b): (&OwnedFd, &Side),
        exchange: bool,
        leaves: bool,
    ) -> std::result::Result<(), Errno> {
        let rename = |how| renameat_with(from, &*a.name, to, &*b.name, how);
        if exchange {
            return rename(RenameFlags::EXCHANGE);
        }
        let how = if leaves { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
        match rename(how) {
            // A directory does not go over a whiteout: they change places, and the whiteout stays
            // at the old name or goes.
            Err(Errno::NOTDIR) => {
                rename(RenameFlags::EXCHANGE)?;
                if leaves {
                    return Ok(());
                }
                rustix::fs::unlinkat(from, &*a.name, rustix::fs::AtFlags::empty())
            }
            // A file system without RENAME_WHITEOUT: two steps, the file never missing.
            Err(Errno::INVAL) if leaves => {
                rename(RenameFlags::empty())?;
                upper.put_whiteout(from, &a.name)
            }
            done => done,
        }
    }

    /// Says on a directory of the upper layer, before it moves to `to`, what it shows there.
    fn mark_moved(&self, node: &Arc<Node>, to: &Side) -> Result<()> {
        if !node.is_dir() {
            return Ok(());
        }
        let fail = |name| move |e| self.fail(node, Step::Change, name, e);
        let dir = self.upper_dir(node)?;
        let fd = sys::beneath::open(&*dir, std::path::Path::new(""), DIRECTORY)
            .map_err(|source| self.error(node, Step::Change, source))?;
        let lower = node.body.read().lower.first().cloned();
        match lower {
            Some(part) => {
                let set = mark::set_redirect(&fd, self.namespace, &part.path());
                let too_long = |e| if e == Errno::NAMETOOLONG { Errno::XDEV } else { e };
                set.map_err(|e| fail("fsetxattr")(too_long(e)))
            }
            // It merges with nothing, there as here.
            None if self.is_below(&to.parent, &to.name)? => {
                mark::set_opaque(&fd, self.namespace).map_err(fail("fsetxattr"))
            }
            None => Ok(()),
        }
    }

    /// Puts an empty directory in the place of one that holds nothing but whiteouts, so that a
    /// rename can replace it.
    fn clear(&self, upper: &Upper, dir: &OwnedFd, name: &OsStr) -> std::result::Result<(), Errno> {
        let temp = upper.temp();
        let old = openat(dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        let stat = rustix::fs::fstat(&old)?;
        mkdirat(&upper.work, &temp, Mode::RWXU)?;
        let new = openat(&upper.work, &temp, DIRECTORY, Mode::empty())?;
        let (uid, gid) =
            (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        fchown(&new, Some(uid), Some(gid))?;
        fchmod(&new, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        mark::set_opaque(&new, self.namespace)?;
        let swapped = renameat_with(&upper.work, &temp, dir, name, RenameFlags::EXCHANGE);
        upper.discard(&temp);
        swapped
    }
}

/// Says to whoever finds a directory by its path that paths change, until it is dropped.
struct Moving<'u>(&'u AtomicU64);

impl<'u> Moving<'u> {
    fn new(moves: &'u AtomicU64) -> Self {
        moves.fetch_add(1, Ordering::AcqRel);
        Self(moves)
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

fn in_order<'n>(a: &'n Arc<Node>, b: &'n Arc<Node>) -> (&'n Arc<Node>, Option<&'n Arc<Node>>) {
    match a.id.cmp(&b.id) {
        std::cmp::Ordering::Less => (a, Some(b)),
        std::cmp::Ordering::Equal => (a, None),
        std::cmp::Ordering::Greater => (b, Some(a)),
    }
}

/// Whether `node` is `above` or somewhere in it.
fn beneath(node: &Arc<Node>, above: &Arc<Node>) -> bool {
    let mut at = Some(Arc::clone(node));
    while let Some(node) = at {
        if Arc::ptr_eq(&node, above) {
            return true;
        }
        at = node.place().map(|place| place.parent);
    }
    false
}
