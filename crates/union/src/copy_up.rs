//! Copy-up: a node of a lower layer gets its like in the upper one before it changes.
//!
//! Staged in the work directory, published by one rename: a crash leaves the lower file shown, or
//! the whole copy. Directories come first, from the root down.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer::{Owner, WANTED};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Statx, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fsync,
    futimens, linkat, mkdirat, mknodat, openat, readlinkat, renameat_with, statx, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::counts::Word;
use crate::error::{Error, Result, Step};
use crate::index::Indexed;
use crate::node::{Node, NodeId, Rest};
use crate::owners;
use crate::partial::{Partial, Source};
use crate::place::Parts;
use crate::resolve::LayerIndex;
use crate::space::held_by;
use crate::stack::{Real, Union, inode};
use crate::unsynced::Note;
use crate::upper::{DIRECTORY, Upper};

/// An owner who has no number in our user namespace can't be given anything (EINVAL): the copy stays ours.
///
/// Source: user_namespaces(7), "Unmapped user and group IDs".
fn given(result: std::result::Result<(), Errno>) -> std::result::Result<(), Errno> {
    match result {
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// How much of a file's data a copy-up brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    All,
    /// None: it is about to be cut to nothing.
    None,
}

/// What is in the work directory, to be published.
#[derive(Default)]
struct Staged {
    fd: Option<Arc<OwnedFd>>,
    partial: Option<Arc<Partial>>,
    /// Where its data is not waited for.
    note: Option<Note>,
    /// Its name in the index, where it goes there.
    index: Option<Box<OsStr>>,
}

impl Union {
    pub(crate) fn upper(&self, node: &Node) -> Result<&Upper> {
        self.upper.as_ref().ok_or_else(|| Error::ReadOnly { path: node.path().unwrap_or_default() })
    }

    /// Brings `node` into the upper layer, its directories first; nothing where it is there.
    pub(crate) fn copy_up(&self, node: &Arc<Node>, data: Data) -> Result<()> {
        let upper = self.upper(node)?;
        if node.body.read().upper {
            return Ok(());
        }
        let places = node.places.read().clone();
        for place in places.iter() {
            self.copy_up(&place.parent, Data::All)?;
        }
        let _change = node.change.lock();
        if node.body.read().upper {
            return Ok(());
        }
        let stat = self.real_stat(node)?;
        let fail = |e| self.fail(node, Step::CopyUp, "copy-up", e);
        let held = match node.below().filter(|_| self.space.is_some()) {
            None => held_by(&stat),
            Some(part) => {
                let file = self.open_part(node, &part)?;
                held_by(&statx(&file, "", AtFlags::EMPTY_PATH, WANTED).map_err(fail)?)
            }
        };
        let bytes = if data == Data::All { held } else { 0 };
        if let Some(space) = &self.space {
            space.take_inode().map_err(fail)?;
            space.take(bytes).inspect_err(|_| space.give_inode()).map_err(fail)?;
        }
        let temp = upper.temp();
        let staged = self.stage(upper, node, &stat, &temp, data);
        let published = staged.and_then(|staged| {
            let (partial, note) = (staged.partial.clone(), staged.note);
            let published = self.publish_copy(upper, node, &temp, staged, stat.stx_nlink);
            if let (Err(_), Some(partial)) = (&published, partial) {
                self.drop_partial(node, &partial)?;
            }
            if let (Err(_), Some(note)) = (&published, note) {
                self.drop_note(node, note)?;
            }
            published
        });
        if published.is_err() {
            upper.discard(&temp);
            if let Some(space) = &self.space {
                space.give_inode();
                space.give(bytes);
            }
        }
        published?;
        self.counts.add(Word::CopyUps, 1);
        // Of a partial file chunks are copied as they are written.
        if node.partial().is_none() && data == Data::All {
            self.counts.add(Word::CopiedBytes, held_by(&stat));
        }
        self.link_up_known(node)
    }

    /// Puts the staged copy in place of every name that is known.
    fn publish_copy(
        &self,
        upper: &Upper,
        node: &Arc<Node>,
        temp: &OsStr,
        Staged { fd, partial, note, index }: Staged,
        links: u32,
    ) -> Result<()> {
        let fail = |name| move |e| self.fail(node, Step::Publish, name, e);
        let places = node.places.read().clone();
        let mut names = places.iter();
        let Some(first) = names.next() else {
            // Removed while it is open: the copy lives as long as its descriptor.
            let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = match fd {
                Some(fd) => fd,
                None => {
                    let fd = openat(&upper.work, temp, path, Mode::empty());
                    Arc::new(fd.map_err(fail("openat"))?)
                }
            };
            upper.discard(temp);
            let mut body = node.body.write();
            body.anchor = Some(fd);
            body.upper = true;
            body.version += 1;
            return Ok(());
        };
        let in_index = index.is_some();
        let several = in_index || places.len() > 1;
        let staged = several
            .then(|| statx(&upper.work, temp, AtFlags::SYMLINK_NOFOLLOW, WANTED))
            .transpose()
            .map_err(fail("statx"))?;
        // Other names of the same inode follow it, or they would show the old data.
        for place in names.filter(|_| !in_index) {
            self.mark_impure(&place.parent)?;
            let dir = self.upper_dir(&place.parent)?;
            same_times(&dir, || linkat(&upper.work, temp, &*dir, &*place.name, AtFlags::empty()))
                .map_err(fail("linkat"))?;
        }
        if let Some(hex) = &index {
            self.publish_in_index(node, &upper.work, temp, hex)?;
        } else {
            self.mark_impure(&first.parent)?;
            let dir = self.upper_dir(&first.parent)?;
            same_times(&dir, || {
                renameat_with(&upper.work, temp, &*dir, &*first.name, RenameFlags::NOREPLACE)
            })
            .map_err(fail("renameat2"))?;
        }
        if let (Some(fd), Some(note)) = (&fd, note) {
            self.noted_copy(fd, note);
        }
        let mut body = node.body.write();
        if let Some(fd) = fd.filter(|_| node.opens.load(Ordering::Acquire) > 0 && !node.is_dir()) {
            body.anchor = Some(fd);
        }
        body.upper = true;
        body.index = index.map(|name| Box::new(Indexed { name, links }));
        body.rest = partial.map(|partial| Box::new(Rest::Partial(partial)));
        body.version += 1;
        if !node.is_dir() {
            body.lower = Parts::None;
        }
        drop(body);
        if let Some(staged) = staged {
            self.table.identify(node, inode(LayerIndex(0), &staged));
        }
        Ok(())
    }

    fn stage(
        &self,
        upper: &Upper,
        node: &Arc<Node>,
        stat: &Statx,
        temp: &OsStr,
        data: Data,
    ) -> Result<Staged> {
        let fail = |name| move |e| self.fail(node, Step::CopyUp, name, e);
        let mut partial = None;
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) & 0o7777);
        let (uid, gid) = (Some(Uid::from_raw(stat.stx_uid)), Some(Gid::from_raw(stat.stx_gid)));
        let real = self.real(node)?;
        // What has no name any more needs none to be found by.
        let several =
            if node.place().is_some() { self.index_name(node, stat, &real)? } else { None };
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let open =
            |flags| openat(&upper.work, temp, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        let fds = match node.kind {
            FileType::RegularFile => {
                let to =
                    open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).map_err(fail("openat"))?;
                let from = self.reopen(node, &real, OFlags::RDONLY)?;
                if data == Data::All {
                    partial = match node.below() {
                        None => self.copy_data(node, (&from, stat), &to, several.is_none())?,
                        Some(part) => {
                            let from = self.open_part(node, &part)?;
                            let stat = statx(&from, "", AtFlags::EMPTY_PATH, WANTED)
                                .map_err(fail("statx"))?;
                            self.copy_data(node, (&from, &stat), &to, several.is_none())?
                        }
                    };
                }
                Some((from, to))
            }
            FileType::Directory => {
                mkdirat(&upper.work, temp, Mode::RWXU).map_err(fail("mkdirat"))?;
                let to = open(DIRECTORY).map_err(fail("openat"))?;
                Some((self.reopen(node, &real, OFlags::RDONLY | OFlags::DIRECTORY)?, to))
            }
            FileType::Symlink => {
                let target = self.target(node, &real)?;
                symlinkat(OsStr::from_bytes(&target), &upper.work, temp)
                    .map_err(fail("symlinkat"))?;
                None
            }
            kind => {
                let device = rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
                mknodat(&upper.work, temp, kind, mode, device).map_err(fail("mknodat"))?;
                None
            }
        };
        let Some((from, to)) = fds else {
            let index = self.mark_copy(node, stat, &real, (temp, None), several)?;
            given(self.given(chownat(&upper.work, temp, uid, gid, nofollow)))
                .map_err(fail("fchownat"))?;
            if node.kind != FileType::Symlink {
                chmodat(&upper.work, temp, mode, AtFlags::empty()).map_err(fail("fchmodat"))?;
            }
            utimensat(&upper.work, temp, &times(stat), nofollow).map_err(fail("utimensat"))?;
            return Ok(Staged { index, ..Staged::default() });
        };
        // Owner before attributes: a change of owner drops capabilities. Mode after both: the same
        // change drops set-user-ID.
        let owners = self.layers[0].owners();
        if owners.is_none() {
            let made_so = upper.owner_of_new(&to).map_err(fail("fstat"))?;
            if made_so != (stat.stx_uid, stat.stx_gid) {
                given(fchown(&to, uid, gid)).map_err(fail("fchown"))?;
            }
        }
        self.copy_attributes(&from, &to).map_err(fail("fsetxattr"))?;
        let index = self.mark_copy(node, stat, &real, (temp, Some(&to)), several)?;
        match owners {
            None => fchmod(&to, mode).map_err(fail("fchmod"))?,
            Some(owners) => {
                let owner = Owner { uid: stat.stx_uid, gid: stat.stx_gid, mode: mode.bits() };
                owners::write(&to, owners, owner, node.is_dir()).map_err(fail("fsetxattr"))?;
            }
        }
        futimens(&to, &times(stat)).map_err(fail("futimens"))?;
        // A partial file has no data that could be missing after the rename.
        let has_data = data == Data::All && stat.stx_size > 0 && partial.is_none();
        let waits = node.kind == FileType::RegularFile && has_data && !upper.volatile;
        let mut note = None;
        if waits && index.is_none() {
            note = self.note_copy(node, &to, stat)?;
        }
        if waits && note.is_none() {
            fsync(&to).map_err(fail("fsync"))?;
        }
        Ok(Staged { fd: Some(Arc::new(to)), partial, note, index })
    }

    /// Says in a staged copy of which inode it is; its name in the index, where it goes there.
    fn mark_copy(
        &self,
        node: &Arc<Node>,
        stat: &Statx,
        real: &Real,
        (temp, file): (&OsStr, Option<&OwnedFd>),
        several: Option<(Box<OsStr>, Vec<u8>)>,
    ) -> Result<Option<Box<OsStr>>> {
        let upper = self.upper(node)?;
        if let Some((name, origin)) = several {
            let marked = self.mark_indexed(&upper.work, temp, &origin);
            let marked = marked.map_err(|e| self.fail(node, Step::CopyUp, "lsetxattr", e))?;
            return Ok(marked.then_some(name));
        }
        self.mark_origin(node, stat, real, (&upper.work, temp, file))?;
        Ok(None)
    }

    /// Gives a copy in the index the names that are known. Where there is no room for one it is found by the index all
    /// the same.
    fn link_up_known(&self, node: &Arc<Node>) -> Result<()> {
        if node.body.read().index.is_none() {
            return Ok(());
        }
        let places = node.places.read().clone();
        for place in places.iter() {
            match self.link_up(node, place) {
                Err(e) if matches!(e.errno(), Errno::NOSPC | Errno::DQUOT | Errno::MLINK) => {
                    tracing::debug!(error = %e, "a copy is in the index alone");
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Brings a file's data, or makes it a partial file.
    fn copy_data(
        &self,
        node: &Arc<Node>,
        (from, stat): (&OwnedFd, &Statx),
        to: &OwnedFd,
        may_be_partial: bool,
    ) -> Result<Option<Arc<Partial>>> {
        let lower = node.below().or_else(|| node.body.read().lower.first().cloned());
        // What has no name any more goes with its last descriptor: no crash needs to be thought of.
        let named = may_be_partial && node.place().is_some();
        let partials = self.partials.as_ref().filter(|partials| named && partials.takes(stat));
        if let (Some(partials), Some(part)) = (partials, lower) {
            if sys::copy::reflink(from, to) {
                return Ok(None);
            }
            let layer = (self.layers.len() - 1).saturating_sub(usize::from(part.layer.0));
            let layer = u32::try_from(layer).unwrap_or(u32::MAX);
            let source = Source { fd: from, stat, layer, path: part.path() };
            let made = partials.make(to, &source);
            if let Some(partial) =
                made.map_err(|e| self.fail(node, Step::CopyUp, "a partial file", e))?
            {
                return Ok(Some(partial));
            }
        }
        let copied = sys::copy::data(from, to);
        copied.map_err(|source| self.error(node, Step::CopyUp, source))?;
        Ok(None)
    }

    /// Copies every attribute but the union's own marks. ACLs and capabilities are among them.
    pub(crate) fn copy_attributes(
        &self,
        from: impl AsFd,
        to: impl AsFd,
    ) -> std::result::Result<(), Errno> {
        let mut few = [0; 512];
        let mut many = Vec::new();
        let names = match flistxattr(&from, &mut few) {
            Ok(len) => &few[..len],
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(Errno::RANGE) => {
                // The kernel's limit, as for one value.
                many.resize(64 << 10, 0);
                let len = flistxattr(&from, &mut many)?;
                &many[..len]
            }
            Err(e) => return Err(e),
        };
        let mut value = Vec::new();
        for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            if self.is_hidden(name) {
                continue;
            }
            value.resize(64 << 10, 0);
            let size = fgetxattr(&from, name, &mut value)?;
            fsetxattr(&to, name, &value[..size], XattrFlags::empty())?;
        }
        Ok(())
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// EINVAL where it is none.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        self.target(&node, &self.real(&node)?)
    }

    fn target(&self, node: &Node, real: &Real) -> Result<Vec<u8>> {
        let target = match real {
            Real::At(dir, name) => readlinkat(&**dir, &**name, Vec::new()),
            Real::Anchor(fd) => readlinkat(&**fd, Path::new(""), Vec::new()),
        };
        target
            .map(std::ffi::CString::into_bytes)
            .map_err(|e| self.fail(node, Step::Read, "readlinkat", e))
    }
}

/// Publishes something in `dir`, which shows the same names as before, so that its times stay.
pub(crate) fn same_times(
    dir: &OwnedFd,
    publish: impl FnOnce() -> std::result::Result<(), Errno>,
) -> std::result::Result<(), Errno> {
    let before = statx(dir, "", AtFlags::EMPTY_PATH, WANTED)?;
    publish()?;
    futimens(dir, &times(&before))
}

pub(crate) fn times(stat: &Statx) -> Timestamps {
    let spec =
        |t: rustix::fs::StatxTimestamp| Timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec.into() };
    Timestamps { last_access: spec(stat.stx_atime), last_modification: spec(stat.stx_mtime) }
}
