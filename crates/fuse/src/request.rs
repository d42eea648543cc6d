//! A request as it came from the kernel, taken apart without ever trusting a length in it.

use crate::wire::{EXT_GROUPS, ExtHeader, InHeader, Plain};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Who asks, and about which node.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kernel's number of this request.
    pub unique: u64,
    /// The node that the operation is on.
    pub node: u64,
    /// File system user id of the caller.
    pub uid: u32,
    /// File system group id of the caller.
    pub gid: u32,
    /// Thread id of the caller; 0 outside our pid namespace.
    pub pid: u32,
    /// Supplementary groups, when the kernel sent them (creations only, and only the one that matters).
    pub groups: Option<Groups<'a>>,
}

/// Supplementary groups within a request.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a>(&'a [u8]);

impl Groups<'_> {
    /// The group ids.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.chunks_exact(4).filter_map(u32::take)
    }
}

/// Splits a message in one piece (the classic device) into its header, the caller, and the operation's own bytes.
/// `None` when the lengths in it contradict one another.
pub(crate) fn split(message: &[u8]) -> Option<(InHeader, Request<'_>, Body<'_>)> {
    let header = InHeader::take(message)?;
    let end = usize::try_from(header.len).ok().filter(|end| *end <= message.len())?;
    let rest = message.get(size_of::<InHeader>()..end)?;
    parts(&header, &[], rest)
}

/// Puts together a message in three pieces (io_uring): its header, the operation's struct, what follows.
/// `None` as [`split`].
pub(crate) fn parts<'a>(
    header: &InHeader,
    head: &'a [u8],
    rest: &'a [u8],
) -> Option<(InHeader, Request<'a>, Body<'a>)> {
    let body_end = rest.len().checked_sub(usize::from(header.total_extlen) * 8)?;
    let (rest, extensions) = rest.split_at(body_end);
    let request = Request {
        unique: header.unique,
        node: header.nodeid,
        uid: header.uid,
        gid: header.gid,
        pid: header.pid,
        groups: groups(extensions),
    };
    Some((*header, request, Body { head, rest }))
}

fn groups(mut extensions: &[u8]) -> Option<Groups<'_>> {
    while let Some(header) = ExtHeader::take(extensions) {
        let size = usize::try_from(header.size).ok()?;
        let extension = extensions.get(size_of::<ExtHeader>()..size)?;
        if header.kind == EXT_GROUPS {
            let count = usize::try_from(u32::take(extension)?).ok()?;
            return extension.get(4..4 + count.checked_mul(4)?).map(Groups);
        }
        extensions = extensions.get(size..)?;
    }
    None
}

// SAFETY: an integer.
unsafe impl Plain for u32 {}

/// What is left of a request's body while its parts are taken in order.
pub(crate) struct Body<'a> {
    /// The operation's struct, where it comes apart from what follows.
    head: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    /// The next struct.
    pub fn take<T: Plain>(&mut self) -> Option<T> {
        let from = if self.head.is_empty() { &mut self.rest } else { &mut self.head };
        let value = T::take(from)?;
        *from = &from[size_of::<T>()..];
        Some(value)
    }

    /// The next name: bytes up to a NUL, which has to be there.
    pub fn name(&mut self) -> Option<&'a OsStr> {
        let end = self.rest.iter().position(|byte| *byte == 0)?;
        let name = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(OsStr::from_bytes(name))
    }

    /// The next name, which has to be a single path component.
    pub fn component(&mut self) -> Option<&'a OsStr> {
        self.name().filter(|name| !name.is_empty() && !name.as_bytes().contains(&b'/'))
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: u32) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(usize::try_from(count).ok()?)?;
        self.rest = rest;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(len: u32, extensions: u16) -> InHeader {
        InHeader {
            len,
            opcode: 1,
            unique: 7,
            nodeid: 1,
            uid: 0,
            gid: 0,
            pid: 0,
            total_extlen: extensions,
            padding: 0,
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert!(split(header(400, 0).bytes()).is_none());
        assert!(split(header(40, 1).bytes()).is_none());
        assert!(split(header(39, 0).bytes()).is_none());
        assert!(split(&[0; 10]).is_none());
    }

    #[test]
    fn groups_are_found_behind_the_body() {
        let mut message = header(40 + 8 + 16, 2).bytes().to_vec();
        message.extend_from_slice(b"name\0\0\0\0");
        for word in [16u32, EXT_GROUPS, 1, 1234] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        let (_, request, mut body) = split(&message).expect("well formed");
        assert_eq!(request.groups.expect("groups").iter().collect::<Vec<_>>(), [1234]);
        assert_eq!(body.component(), Some(OsStr::new("name")));
    }

    #[test]
    fn extension_of_size_zero_does_not_loop() {
        assert!(groups(&[0; 16]).is_none());
    }

    #[test]
    fn names_need_their_nul() {
        let body = |rest: &'static [u8]| Body { head: &[], rest };
        assert!(body(b"name").name().is_none());
        assert!(body(b"a/b\0").component().is_none());
        assert!(body(b"\0").component().is_none());
    }
}
