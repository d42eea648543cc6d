//! Owner and mode that are kept in an attribute, where a layer's writer may not change owners: `UID:GID:MODE`, the mode
//! in octal. A layer whose root has such an attribute has it on its directories and regular files.
//!
//! Source: fuse-overlayfs(1), `xattr_permissions`; containers-storage.conf(5), `force_mask`, which writes the kind of
//! the file behind one more colon.

use std::os::fd::AsFd;

use rustix::fs::fgetxattr;
use rustix::io::Errno;

/// Where a layer keeps owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// `security.fuseoverlayfs.override_stat`: needs CAP_SYS_ADMIN in the first user namespace.
    Privileged,
    /// `user.containers.override_stat`, which containers/storage has too.
    Containers,
    /// `user.fuseoverlayfs.override_stat`: of early fuse-overlayfs.
    User,
}

impl Owners {
    /// Every place, in the order in which fuse-overlayfs looks.
    const ALL: [Self; 3] = [Self::Privileged, Self::Containers, Self::User];

    /// The attribute's name.
    pub const fn attribute(self) -> &'static str {
        match self {
            Self::Privileged => "security.fuseoverlayfs.override_stat",
            Self::Containers => "user.containers.override_stat",
            Self::User => "user.fuseoverlayfs.override_stat",
        }
    }

    /// Whether only CAP_SYS_ADMIN may write it.
    pub const fn needs_privileges(self) -> bool {
        matches!(self, Self::Privileged)
    }

    /// Whether an attribute is one of these.
    pub fn is_attribute(name: &[u8]) -> bool {
        Self::ALL.iter().any(|owners| owners.attribute().as_bytes() == name)
    }

    /// Where the layer with the root directory `root` keeps owners; none where its files' own count.
    ///
    /// # Errors
    /// The kernel's, other than that there is no such attribute or no attributes at all.
    pub fn of(root: impl AsFd) -> Result<Option<Self>, Errno> {
        for owners in Self::ALL {
            match fgetxattr(&root, owners.attribute(), &mut [0_u8; 0]) {
                Ok(_) => return Ok(Some(owners)),
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }
}

/// What such an attribute says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Permission bits, with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
}

impl Owner {
    /// Reads an attribute's value.
    ///
    /// # Errors
    /// EINVAL where it is malformed.
    pub fn parse(value: &[u8]) -> Result<Self, Errno> {
        let text = std::str::from_utf8(value).map_err(|_| Errno::INVAL)?;
        // C programs write the NUL behind it, too.
        let mut fields = text.trim_end_matches('\0').split(':');
        let mut field = |radix| {
            let field = fields.next().and_then(|field| u32::from_str_radix(field, radix).ok());
            field.ok_or(Errno::INVAL)
        };
        let (uid, gid, mode) = (field(10)?, field(10)?, field(8)?);
        // Some write the kind of the file in the mode.
        Ok(Self { uid, gid, mode: mode & 0o7777 })
    }

    /// The attribute's value.
    pub fn value(self) -> String {
        format!("{}:{}:{:o}", self.uid, self.gid, self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_others_write_them() {
        let some = |uid, gid, mode| Some(Owner { uid, gid, mode });
        let cases: [(&[u8], Option<Owner>); 11] = [
            (b"0:0:755", some(0, 0, 0o755)),
            (b"1000:4294967294:4755", some(1000, u32::MAX - 1, 0o4755)),
            (b"1:2:0100644", some(1, 2, 0o644)),
            (b"1:2:0644:file", some(1, 2, 0o644)),
            (b"1:2:644\0", some(1, 2, 0o644)),
            (b"1:2", None),
            (b"1:2:9", None),
            (b"-1:2:644", None),
            (b"4294967296:2:644", None),
            (b"", None),
            (b"\xff:2:644", None),
        ];
        for (value, want) in cases {
            assert_eq!(Owner::parse(value), want.ok_or(Errno::INVAL), "{value:?}");
        }
        let owner = Owner { uid: 1, gid: 22, mode: 0o4711 };
        assert_eq!(owner.value(), "1:22:4711");
    }
}
