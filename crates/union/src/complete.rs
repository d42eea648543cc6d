//! Partial files find their nodes, and become whole.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layer::Layer;
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::{Result, Step, call};
use crate::node::{Node, NodeId};
use crate::partial::{Partial, Partials};
use crate::stack::Union;
use crate::upper::DIRECTORY;

pub(crate) const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
const FILE: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Union {
    /// Drops what is kept of a partial file beside it, once its last name is gone.
    pub(crate) fn settle_partial(&self, node: &Node) -> Result<()> {
        let Some(partial) = node.partial() else { return Ok(()) };
        match Partials::is_gone(&partial) {
            Ok(true) => self.drop_partial(node, &partial),
            Ok(false) => Ok(()),
            Err(e) => Err(self.fail(node, Step::Remove, "fstat", e)),
        }
    }

    pub(crate) fn drop_partial(&self, node: &Node, partial: &Partial) -> Result<()> {
        let Some(partials) = &self.partials else { return Ok(()) };
        partials.gone(partial).map_err(|e| self.fail(node, Step::Remove, "unlinkat", e))
    }

    /// Brings up all that is missing of a file; nothing where it is whole.
    ///
    /// Cost: the data that is still below.
    ///
    /// # Errors
    /// ENOSPC, or a layer's own; what came up until then stays.
    pub fn complete_file(&self, node: NodeId) -> Result<()> {
        let node = self.node(node)?;
        let (Some(partials), Some(partial)) = (&self.partials, node.partial()) else {
            return Ok(());
        };
        finish(partials, &partial).map_err(|e| self.fail(&node, Step::CopyUp, "completing it", e))
    }

    /// Brings up all that is missing of every file, so that the upper layer is one that every overlayfs can read.
    ///
    /// Cost: the data that is still below; a walk of the upper layer where files are partial that nobody looked at.
    ///
    /// # Errors
    /// ENOSPC, or a layer's own; what came up until then stays, and the rest is still partial.
    pub fn complete(&self) -> Result<()> {
        match &self.partials {
            Some(partials) => all(partials, &self.layers),
            None => Ok(()),
        }
    }

    /// Brings up a part of a file that did not change since the last time that this was called; false where there is
    /// none. `seen` is what the caller keeps from one time to the next.
    ///
    /// # Errors
    /// As [`Union::complete`].
    pub fn complete_idle(&self, seen: &mut Vec<(u64, u64)>) -> Result<bool> {
        let Some(partials) = &self.partials else { return Ok(false) };
        let files = partials.all();
        let now: Vec<_> = files.iter().map(|file| (file.id, file.changes())).collect();
        let idle = files.iter().zip(&now).find(|(_, state)| seen.contains(state));
        let step = idle.map(|(file, _)| {
            file.step().and_then(|done| if done { partials.finish(file) } else { Ok(()) })
        });
        *seen = now;
        let Some(step) = step else { return Ok(false) };
        step.map_err(|e| call(self.layers[0].path(), Step::CopyUp, "completing a file", e))?;
        Ok(true)
    }

    /// Bytes of files in the upper layer that are still below.
    pub fn incomplete(&self) -> u64 {
        let files = self.partials.as_ref().map(Partials::all).unwrap_or_default();
        files.iter().map(|file| file.missing()).sum()
    }
}

pub(crate) fn load(
    partials: &Partials,
    layers: &[Layer],
    dir: &OwnedFd,
    name: &OsStr,
) -> std::result::Result<Option<Arc<Partial>>, Errno> {
    // Not for writing before it is known to be one: immutable files refuse that.
    let data = openat(dir, name, READ, Mode::empty())?;
    let Some(id) = partials.id(&data)? else { return Ok(None) };
    let again = openat(dir, name, FILE, Mode::empty())?;
    let loaded = partials.load(id, again, |layer, path| {
        let index = layers.len().checked_sub(1 + layer as usize).ok_or(Errno::UCLEAN)?;
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
        let dir = layers[index].open_dir(dir).map_err(|e| e.source.source)?;
        openat(dir, name.ok_or(Errno::UCLEAN)?, READ, Mode::empty())
    });
    match loaded {
        // It was completed meanwhile.
        Err(Errno::UCLEAN) if partials.id(&data)?.is_none() => Ok(None),
        loaded => loaded.map(Some),
    }
}

fn finish(partials: &Partials, file: &Partial) -> std::result::Result<(), Errno> {
    while !file.step()? {}
    partials.finish(file)
}

/// Completes every partial file of the upper layer, which is the first of `layers`.
pub(crate) fn all(partials: &Partials, layers: &[Layer]) -> Result<()> {
    if !partials.any() {
        return Ok(());
    }
    let root = layers[0].path().to_owned();
    let fail = |e| call(&root, Step::CopyUp, "completing a file", e);
    for file in partials.all() {
        finish(partials, &file).map_err(fail)?;
    }
    let left = partials.left().map_err(fail)?;
    if !left.is_empty() {
        // Of files that nobody looked at since the last mount; or of none, if a crash came between a removal and its end.
        walk(partials, layers)?;
        for id in left {
            partials.remove(id).map_err(fail)?;
        }
    }
    partials.unmark().map_err(fail)
}

fn walk(partials: &Partials, layers: &[Layer]) -> Result<()> {
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let at = |name: &OsStr, e| call(&path.join(name), Step::CopyUp, "completing it", e);
        let dir = layers[0].open_dir(&path)?;
        for (name, kind) in entries(&dir).map_err(|e| at(OsStr::new(""), e))? {
            match kind {
                FileType::Directory => todo.push(path.join(&name)),
                FileType::RegularFile => {
                    let found = load(partials, layers, &dir, &name).map_err(|e| at(&name, e))?;
                    if let Some(file) = found {
                        finish(partials, &file).map_err(|e| at(&name, e))?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn entries(dir: &OwnedFd) -> std::result::Result<Vec<(OsString, FileType)>, Errno> {
    let again = openat(dir, ".", DIRECTORY, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in Dir::read_from(again)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            entries.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(entries)
}
