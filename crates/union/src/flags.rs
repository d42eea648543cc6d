//! The flags of chattr(1), which belong to the backing file.

use rustix::fs::{FileType, IFlags, OFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use crate::copy_up::Data;
use crate::error::{Result, Step, refused};
use crate::node::NodeId;
use crate::stack::Union;

impl Union {
    /// The flags of a file or directory, `FS_*_FL`.
    ///
    /// # Errors
    /// ENOTTY for what is neither, or where the backing file system has none.
    pub fn flags(&self, node: NodeId) -> Result<u32> {
        let node = self.node(node)?;
        if !matches!(node.kind, FileType::RegularFile | FileType::Directory) {
            return Err(refused(&node.path().unwrap_or_default(), Errno::NOTTY));
        }
        let fd = self.reopen(&node, &self.real(&node)?, OFlags::RDONLY)?;
        let flags = ioctl_getflags(&fd).map_err(|e| self.fail(&node, Step::Read, "ioctl", e))?;
        Ok(flags.bits())
    }

    /// Sets the flags of a file or directory, after copying it up.
    ///
    /// # Errors
    /// As [`Union::flags`]; EPERM, EOPNOTSUPP of the backing file system; EROFS.
    pub fn set_flags(&self, node: NodeId, flags: u32) -> Result<()> {
        let node = self.node(node)?;
        if !matches!(node.kind, FileType::RegularFile | FileType::Directory) {
            return Err(refused(&node.path().unwrap_or_default(), Errno::NOTTY));
        }
        self.copy_up(&node, Data::All)?;
        let _change = node.change.lock();
        let fd = self.reopen(&node, &self.real(&node)?, OFlags::RDONLY)?;
        ioctl_setflags(&fd, IFlags::from_bits_retain(flags))
            .map_err(|e| self.fail(&node, Step::Change, "ioctl", e))
    }
}
