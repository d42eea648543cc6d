//! Files whose data is not, or not all, where their inode is: partial ones of ours, and the kernel's "metacopy" files,
//! which have attributes alone.
//!
//! Either is a file with holes where its data is missing, but for small ones whose attributes take a block; those are
//! in directories that are marked as impure. Only such files are asked for marks.
//!
//! Source: overlayfs.rst, "Metadata only copy up".

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use layer::{Kind, WANTED, mark};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Statx, Timestamps, fgetxattr, fsync, ftruncate, futimens,
    openat, statx,
};
use rustix::io::Errno;

use crate::complete::{READ, load};
use crate::copy_up::{Data, times};
use crate::error::{Result, Step, call};
use crate::find::Within;
use crate::node::{Node, Rest};
use crate::partial::ATTRIBUTE;
use crate::place::Part;
use crate::resolve::LayerIndex;
use crate::space::held_by;
use crate::stack::Union;

fn is_regular(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile
}

fn has_holes(stat: &Statx) -> bool {
    stat.stx_blocks.saturating_mul(512) < stat.stx_size
}

impl Union {
    /// Where the data is of what was found under a name, if not in its inode. `below` is where it could be.
    ///
    /// # Errors
    /// EUCLEAN for a partial file in a lower layer: its union has not completed it; EIO for a file without data that no
    /// layer has: it must not read as zeros.
    pub(crate) fn find_rest(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        (index, part): (LayerIndex, Option<&Part>),
        stat: &Statx,
        below: VecDeque<(Within, OsString)>,
    ) -> Result<Option<Box<Rest>>> {
        let in_upper = part.is_none();
        let partials = self.partials.as_ref().filter(|partials| in_upper && partials.any());
        if !is_regular(stat) || stat.stx_size == 0 && partials.is_none() {
            return Ok(None);
        }
        let fail = |what| move |e| call(&self.path_in(parent, name), Step::Read, what, e);
        let dir = match part {
            None => self.upper_dir(parent)?,
            Some(part) => self.dir_of_part(parent, part)?,
        };
        if !has_holes(stat) && partials.is_none() {
            let path = part.map(|part| &*part.dir);
            let impure = self.is_impure(parent, index, path, &dir);
            if !impure.map_err(fail("fgetxattr"))? {
                return Ok(None);
            }
        }
        let real = part.map_or(name, |part| &part.name);
        if let Some(partials) = partials {
            let partial = load(partials, &self.layers, &dir, real);
            if let Some(partial) = partial.map_err(fail("its partial data"))? {
                return Ok(Some(Box::new(Rest::Partial(partial))));
            }
        }
        let file = openat(&dir, real, READ, Mode::empty()).map_err(fail("openat"))?;
        if !in_upper {
            let attribute = self.namespace.attribute(ATTRIBUTE);
            match fgetxattr(&file, attribute.as_str(), &mut [0_u8; 8]) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) if e != Errno::RANGE => return Err(fail("fgetxattr")(e)),
                _ => return Err(fail("a layer that its mount has not completed")(Errno::UCLEAN)),
            }
        }
        if !mark::is_metacopy(&file, self.namespace).map_err(fail("fgetxattr"))? {
            return Ok(None);
        }
        let data = self.data_below(parent, name, file, index, below)?;
        Ok(Some(Box::new(Rest::Below(data))))
    }

    /// The file that has the data of a file without.
    fn data_below(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        mut file: OwnedFd,
        mut index: LayerIndex,
        mut below: VecDeque<(Within, OsString)>,
    ) -> Result<Part> {
        let fail = |what| move |e| call(&self.path_in(parent, name), Step::Read, what, e);
        let missing = || fail("the data of a file that has only attributes")(Errno::IO);
        loop {
            let target = mark::redirect(&file, self.namespace).map_err(fail("fgetxattr"))?;
            if let Some(target) = target {
                below = self.redirected(index, &target, &below);
            }
            let (layer, part, stat) = loop {
                let (within, name) = below.pop_front().ok_or_else(missing)?;
                let (layer, part, probe) = self.probe_within(parent.id, within, &name)?;
                match (probe.kind, part, probe.stat) {
                    (Kind::Absent, ..) => {}
                    (Kind::Leaf, Some(part), Some(stat)) if is_regular(&stat) => {
                        break (layer, part, stat);
                    }
                    _ => return Err(missing()),
                }
            };
            if stat.stx_size == 0 {
                return Ok(part);
            }
            file = self.open_at(&part).map_err(fail("openat"))?;
            if !mark::is_metacopy(&file, self.namespace).map_err(fail("fgetxattr"))? {
                return Ok(part);
            }
            index = layer;
        }
    }

    /// Opens the file of a lower layer that has the data of `node`.
    pub(crate) fn open_part(&self, node: &Node, part: &Part) -> Result<OwnedFd> {
        self.open_at(part).map_err(|e| self.fail(node, Step::Read, "openat", e))
    }

    fn open_at(&self, part: &Part) -> std::result::Result<OwnedFd, Errno> {
        let dir = self.layers[usize::from(part.layer.0)].open_dir(&part.dir);
        openat(&dir.map_err(|e| e.source.source)?, &*part.name, READ, Mode::empty())
    }

    /// Brings the data of a file that is in the upper layer without it; nothing where it has its data.
    ///
    /// As the kernel does it, in place: the mark goes when the data is on the disk, and until then nobody reads it.
    pub(crate) fn bring_data(&self, node: &Arc<Node>, data: Data) -> Result<()> {
        if node.below().is_none() {
            return Ok(());
        }
        let upper = self.upper(node)?;
        let _change = node.change.lock();
        let Some(part) = node.below() else { return Ok(()) };
        let fail = |what| move |e| self.fail(node, Step::CopyUp, what, e);
        let to = self.reopen(node, &self.real(node)?, OFlags::RDWR)?;
        let stat = |fd| statx(fd, "", AtFlags::EMPTY_PATH, WANTED).map_err(fail("statx"));
        let before = stat(&to)?;
        if data == Data::All {
            let from = self.open_part(node, &part)?;
            let held = held_by(&stat(&from)?);
            if let Some(space) = &self.space {
                space.take(held).map_err(fail("copy-up"))?;
            }
            let copied = sys::copy::data(&from, &to);
            copied.map_err(|source| self.error(node, Step::CopyUp, source)).inspect_err(|_| {
                if let Some(space) = &self.space {
                    space.give(held);
                }
            })?;
            let times: Timestamps = times(&before);
            futimens(&to, &times).map_err(fail("futimens"))?;
            if !upper.volatile {
                fsync(&to).map_err(fail("fsync"))?;
            }
        } else {
            ftruncate(&to, 0).map_err(fail("ftruncate"))?;
        }
        mark::clear_metacopy(&to, self.namespace).map_err(fail("fremovexattr"))?;
        let mut body = node.body.write();
        body.rest = None;
        body.version += 1;
        Ok(())
    }
}
