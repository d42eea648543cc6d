//! Removes trees of other people's files.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, fchmod, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::error::{At, Result};

/// A name that nothing has yet.
fn fresh_name() -> std::result::Result<OsString, Errno> {
    let mut bits = [0; 16];
    rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty())?;
    Ok(hex::encode(bits).into())
}

/// Levels that are open at once; what is deeper is first moved up.
const DEPTH: usize = 64;

/// Removes what is at `path`, whatever it is, without following symlinks. Nothing there is fine.
///
/// Deep trees pass through the directory that `path` is in, under fresh names.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat(CWD, parent, flags, Mode::empty()).at(parent, "opening a directory")?;
    let mut removal = Removal { top, waiting: vec![name.to_owned()] };
    while let Some(name) = removal.waiting.pop() {
        let top = removal.top.try_clone().at(parent, "deleting")?;
        removal.name(&top, &name, 0).at(&parent.join(&name), "deleting")?;
    }
    Ok(())
}

struct Removal {
    top: OwnedFd,
    /// Names in `top` that are to go.
    waiting: Vec<OsString>,
}

impl Removal {
    fn name(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        depth: usize,
    ) -> std::result::Result<(), Errno> {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
        if depth >= DEPTH {
            let fresh = fresh_name()?;
            renameat(dir, name, &self.top, &fresh)?;
            self.waiting.push(fresh);
            return Ok(());
        }
        let Some(inner) = open(dir, name)? else { return Ok(()) };
        self.content(&inner, depth)?;
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }

    fn content(&mut self, dir: &OwnedFd, depth: usize) -> std::result::Result<(), Errno> {
        let mut entries = rustix::fs::Dir::read_from(dir)?;
        let mut writable = false;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            match self.name(dir, name, depth + 1) {
                Err(Errno::ACCESS) if !writable => {
                    writable = true;
                    fchmod(dir, Mode::RWXU)?;
                    self.name(dir, name, depth + 1)?;
                }
                done => done?,
            }
        }
        Ok(())
    }
}

fn open(dir: impl AsFd, name: &OsStr) -> std::result::Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(&dir, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        // Without privileges, a directory of mode 000 keeps its own owner out.
        Err(Errno::ACCESS) => {
            chmodat(&dir, name, Mode::RWXU, AtFlags::empty())?;
            openat(&dir, name, flags, Mode::empty()).map(Some)
        }
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_however_deep_it_is_and_what_it_points_at_stays() {
        let temp = tempfile::tempdir().expect("a directory");
        std::fs::write(temp.path().join("kept"), "k").expect("a file");
        let tree = temp.path().join("tree");
        std::fs::create_dir(&tree).expect("a directory");
        std::os::unix::fs::symlink("../kept", tree.join("link")).expect("a symlink");
        std::os::unix::fs::symlink("..", tree.join("up")).expect("a symlink");
        let mut dir = std::fs::File::open(&tree).expect("the directory");
        for _ in 0..1000 {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).expect("a directory");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            dir = openat(&dir, "d", flags, Mode::empty()).expect("the directory").into();
        }
        remove(&tree).expect("a removal");
        let left: Vec<_> = std::fs::read_dir(temp.path()).expect("the directory").collect();
        assert_eq!(left.len(), 1);
        remove(&tree).expect("nothing to remove");
    }
}
