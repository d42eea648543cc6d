//! Names that go: out of the upper layer, and behind a whiteout where a lower one has them.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::copy_up::Data;
use crate::error::{Result, Step, call, refused};
use crate::node::{Node, NodeId};
use crate::place::Place;
use crate::space::held_by;
use crate::stack::{Real, Union};
use crate::upper::Upper;

impl Union {
    /// Removes a name that is no directory. Open files of it live on.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EROFS, ENOSPC for the whiteout.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, false)
    }

    /// Removes a directory that shows nothing.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EROFS, ENOSPC for the whiteout.
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: NodeId, name: &OsStr, dir: bool) -> Result<()> {
        let parent = self.node(parent)?;
        let upper = self.upper(&parent)?;
        loop {
            let node = self.child(&parent, name)?;
            let done = self.remove_node(upper, &parent, name, &node, dir);
            self.forget(node.id, 1);
            match done {
                Ok(true) => return Ok(()),
                // The name went to another node meanwhile.
                Ok(false) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn remove_node(
        &self,
        upper: &Upper,
        parent: &Arc<Node>,
        name: &OsStr,
        node: &Arc<Node>,
        dir: bool,
    ) -> Result<bool> {
        let refuse = |e| Err(refused(&self.path_in(parent, name), e));
        match (dir, node.is_dir()) {
            (true, false) => return refuse(Errno::NOTDIR),
            (false, true) => return refuse(Errno::ISDIR),
            _ => {}
        }
        self.copy_up(parent, Data::All)?;
        self.copy_up_names(node)?;
        let _change = node.change.lock();
        let _names = parent.names.write();
        if !self.holds(parent, name, node) {
            return Ok(false);
        }
        // Nobody makes a name in it while it goes.
        let _inside = dir.then(|| node.names.write());
        if dir && !self.list(node)?.is_empty() {
            return refuse(Errno::NOTEMPTY);
        }
        self.link_up(node, &Place::new(parent, name))?;
        self.names_change(node)?;
        let in_upper = node.body.read().upper;
        let last = self.is_last_name(node)?;
        self.anchor(node)?;
        let freed = self.freed_by(node, in_upper)?;
        self.hide(upper, parent, name, in_upper, dir)?;
        self.name_went(node)?;
        self.free(node, freed);
        self.table.remove_place(parent.id, name, last);
        if last {
            self.forget_copy(node)?;
        }
        self.settle_partial(node)?;
        if dir {
            self.drop_dirs(node.id);
        } else {
            self.table.settle(node);
        }
        Ok(true)
    }

    /// What goes with a name of `node`: the bytes of its data, where it is the last name.
    pub(crate) fn freed_by(&self, node: &Arc<Node>, in_upper: bool) -> Result<Option<u64>> {
        if self.space.is_none() || !in_upper {
            return Ok(None);
        }
        let stat = self.real_stat(node)?;
        let links = node.body.read().index.as_ref().map_or(stat.stx_nlink, |known| known.links);
        Ok((node.is_dir() || links == 1).then(|| held_by(&stat)))
    }

    /// Before a name of a lower file with several goes, its copy keeps count of them. Where there is no room for a copy,
    /// the others count one too many: what is deleted must never need room.
    pub(crate) fn copy_up_names(&self, node: &Arc<Node>) -> Result<()> {
        if !self.belongs_in_index(node) {
            return Ok(());
        }
        match self.copy_up(node, Data::All) {
            Err(e) if matches!(e.errno(), Errno::NOSPC | Errno::DQUOT) => Ok(()),
            done => done,
        }
    }

    /// Whether a node's inode has only one name, be it known or not.
    pub(crate) fn is_last_name(&self, node: &Arc<Node>) -> Result<bool> {
        if let Some(indexed) = &node.body.read().index {
            return Ok(indexed.links <= 1);
        }
        Ok(!self.table.has_names(node.id) || self.real_stat(node)?.stx_nlink <= 1)
    }

    /// Gives back what went with a last name; what is open keeps it until it is closed.
    pub(crate) fn free(&self, node: &Node, freed: Option<u64>) {
        let (Some(space), Some(bytes)) = (&self.space, freed) else { return };
        if !node.is_dir() && node.opens.load(std::sync::atomic::Ordering::Acquire) > 0 {
            space.goes_at_close(node.id);
        } else {
            space.give(bytes);
            space.give_inode();
        }
    }

    /// Whether `name` in `parent`, whose `names` is held, is `node`.
    pub(crate) fn holds(&self, parent: &Node, name: &OsStr, node: &Node) -> bool {
        node.places.read().has(parent.id, name)
    }

    /// Keeps the node's inode reachable when its last name goes.
    pub(crate) fn anchor(&self, node: &Arc<Node>) -> Result<()> {
        if node.places.read().len() > 1 {
            return Ok(());
        }
        {
            let body = node.body.read();
            let elsewhere = body.index.as_ref().is_some_and(|indexed| indexed.links > 1);
            // What a lower layer has, it has for good.
            let stays = !node.is_dir() && !body.upper && body.index.is_none();
            if body.anchor.is_some() || elsewhere || stays {
                return Ok(());
            }
        }
        let fd = match self.real(node)? {
            Real::Anchor(fd) => fd,
            Real::At(dir, name) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(&*dir, &*name, flags, Mode::empty());
                Arc::new(fd.map_err(|e| self.fail(node, Step::Remove, "openat", e))?)
            }
        };
        node.body.write().anchor = Some(fd);
        Ok(())
    }

    /// Takes a name out of the upper layer; a whiteout hides what lower layers have.
    fn hide(
        &self,
        upper: &Upper,
        parent: &Arc<Node>,
        name: &OsStr,
        in_upper: bool,
        is_dir: bool,
    ) -> Result<()> {
        let fail =
            |call_name| move |e| call(&self.path_in(parent, name), Step::Remove, call_name, e);
        let below = self.is_below(parent, name)?;
        let dir = self.upper_dir(parent)?;
        if !below {
            if !is_dir {
                return unlinkat(&*dir, name, AtFlags::empty()).map_err(fail("unlinkat"));
            }
            let temp = upper.temp();
            renameat(&*dir, name, &upper.work, &temp).map_err(fail("renameat"))?;
            upper.discard(&temp);
            return Ok(());
        }
        if !in_upper {
            return upper.put_whiteout(&dir, name).map_err(fail("linkat"));
        }
        let temp = upper.temp();
        upper.put_whiteout(&upper.work, &temp).map_err(fail("linkat"))?;
        let hidden = renameat_with(&upper.work, &temp, &*dir, name, RenameFlags::EXCHANGE);
        upper.discard(&temp);
        hidden.map_err(fail("renameat2"))
    }
}
