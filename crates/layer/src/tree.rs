//! All names of one layer, with what `stat` says of each; no file is opened.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, OFlags, Statx};
use rustix::io::Errno;

use crate::{Error, Kind, Layer, Result, Step, mark};

/// What stands under a name of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir {
        /// Whether it hides what layers below have in it.
        opaque: bool,
    },
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A device, a socket or a named pipe.
    Special,
    /// Nothing: the layer says that the name is deleted.
    Whiteout,
}

impl What {
    /// Whether it is a directory.
    pub fn is_dir(self) -> bool {
        matches!(self, Self::Dir { .. })
    }
}

/// What a directory must have in common with the one below it to count as unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Mode, with the kind of file.
    pub mode: u32,
    /// Owner and group, as the layer's files have them.
    pub owner: (u32, u32),
    /// Time of modification: seconds since 1970, and nanoseconds.
    pub modified: (i64, u32),
}

/// A name of a layer.
#[derive(Debug, Clone)]
pub struct Node {
    /// In its directory; empty for the root.
    pub name: OsString,
    /// The directory that it is in; the root is in itself.
    pub parent: usize,
    /// What stands there.
    pub what: What,
    /// Length of a regular file in bytes; 0 for all else.
    pub bytes: u64,
    /// Device and inode of what has several names.
    pub inode: Option<(u32, u32, u64)>,
    /// Of what stands there; those of a whiteout are zero.
    pub attributes: Attributes,
    /// What is in it, sorted by name.
    pub children: Range<usize>,
}

/// A layer's names. Each directory comes before what is in it.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The first is the root.
    pub nodes: Vec<Node>,
}

impl Tree {
    /// The path of a node, relative to the layer's root.
    pub fn path(&self, mut node: usize) -> PathBuf {
        let mut names = Vec::new();
        while node != 0 {
            names.push(&self.nodes[node].name);
            node = self.nodes[node].parent;
        }
        names.into_iter().rev().collect()
    }
}

impl Layer {
    /// Reads all names of the layer.
    ///
    /// Cost: a `stat` a name, and for a directory besides two opens, its marks and its list. Of a layer that is written
    /// to meanwhile ([`Layer::as_upper`]), what goes between two of these steps is left out.
    ///
    /// # Errors
    /// [`Step::Lookup`], [`Step::ReadMark`]: a layer that can't be read never counts as one without files.
    pub fn tree(&self) -> Result<Tree> {
        let root = self.open_dir(Path::new(""))?;
        let stat = rustix::fs::statx(&root, "", rustix::fs::AtFlags::EMPTY_PATH, crate::WANTED)
            .map_err(|e| self.fail(Path::new(""), "statx", e))?;
        let opaque = mark::opaque(&root, self.namespace())
            .map_err(|e| self.fail(Path::new(""), "fgetxattr", e))?
            == mark::Opaque::Yes;
        let mut tree = Tree { nodes: vec![node(OsString::new(), 0, What::Dir { opaque }, &stat)] };
        let mut waiting = VecDeque::from([0]);
        while let Some(at) = waiting.pop_front() {
            let first = tree.nodes.len();
            self.directory(&mut tree, at, &mut waiting)?;
            tree.nodes[at].children = first..tree.nodes.len();
        }
        Ok(tree)
    }

    fn directory(&self, tree: &mut Tree, at: usize, waiting: &mut VecDeque<usize>) -> Result<()> {
        let path = tree.path(at);
        let dir = match self.open_deep(&path) {
            Err(e) if self.is_upper() && e.source.source == Errno::NOENT => return Ok(()),
            opened => opened?,
        };
        for name in self.names(&dir, &path)? {
            let probe = self.probe(&dir, &path, &name)?;
            let id = tree.nodes.len();
            let made = match (probe.kind, probe.stat) {
                (Kind::Whiteout, _) => Node {
                    name,
                    parent: at,
                    what: What::Whiteout,
                    bytes: 0,
                    inode: None,
                    attributes: Attributes::default(),
                    children: 0..0,
                },
                (Kind::Dir { opaque }, Some(stat)) => {
                    waiting.push_back(id);
                    node(name, at, What::Dir { opaque }, &stat)
                }
                (_, Some(stat)) => {
                    let what = match FileType::from_raw_mode(stat.stx_mode.into()) {
                        FileType::RegularFile => What::File,
                        FileType::Symlink => What::Link,
                        _ => What::Special,
                    };
                    node(name, at, what, &stat)
                }
                // It went since it was listed.
                (_, None) => continue,
            };
            tree.nodes.push(made);
        }
        Ok(())
    }

    /// The names in a directory, sorted; those that an AUFS whiteout hides under their own.
    fn names(&self, dir: &OwnedFd, path: &Path) -> Result<Vec<OsString>> {
        let fail = |e| self.fail(path, "getdents64", e);
        let mut names = Vec::new();
        for entry in Dir::read_from(dir).map_err(fail)? {
            let entry = match entry {
                Err(Errno::NOENT) if self.is_upper() => break,
                entry => entry.map_err(fail)?,
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let is_mark = !self.is_upper() && name == mark::AUFS_OPAQUE;
            if name == "." || name == ".." || is_mark {
                continue;
            }
            let hidden = if self.is_upper() { None } else { mark::aufs_hidden(name) };
            names.push(hidden.unwrap_or(name).to_owned());
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Opens a directory whose path may be longer than the kernel takes in one call.
    fn open_deep(&self, path: &Path) -> Result<OwnedFd> {
        const TAKEN: usize = 2048;
        if path.as_os_str().len() <= TAKEN {
            return self.open_dir(path);
        }
        let mut dir = self.open_dir(Path::new(""))?;
        let mut part = PathBuf::new();
        let mut step = |part: &mut PathBuf| -> Result<()> {
            dir = sys::beneath::open(&dir, part, OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|source| self.error(path, Step::Lookup, source))?;
            part.clear();
            Ok(())
        };
        for name in path {
            part.push(name);
            if part.as_os_str().len() > TAKEN {
                step(&mut part)?;
            }
        }
        step(&mut part)?;
        Ok(dir)
    }

    fn fail(&self, path: &Path, call: &'static str, errno: Errno) -> Error {
        self.error(path, Step::Lookup, sys::Error::new(call, path, errno))
    }
}

fn node(name: OsString, parent: usize, what: What, stat: &Statx) -> Node {
    let bytes = if what == What::File { stat.stx_size } else { 0 };
    let many = stat.stx_nlink > 1 && !what.is_dir();
    let inode = many.then_some((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino));
    let attributes = Attributes {
        mode: stat.stx_mode.into(),
        owner: (stat.stx_uid, stat.stx_gid),
        modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
    };
    Node { name, parent, what, bytes, inode, attributes, children: 0..0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Namespace;
    use std::fs;

    #[test]
    fn a_layer_is_read_whole_and_marks_are_not_names() {
        let temp = tempfile::tempdir().expect("a directory");
        let at = |path: &str| temp.path().join(path);
        fs::create_dir_all(at("b/sub")).expect("directories");
        fs::write(at("b/file"), "12345").expect("a file");
        fs::hard_link(at("b/file"), at("b/sub/again")).expect("a link");
        std::os::unix::fs::symlink("/etc", at("a")).expect("a link");
        fs::write(at("b/.wh.gone"), "").expect("a file");
        fs::write(at("b/sub/.wh..wh..opq"), "").expect("a file");
        fs::write(temp.path().join(OsStr::from_bytes(b"\xff")), "1").expect("a file");
        let layer = Layer::open(temp.path(), Namespace::User).expect("the layer");
        let told = |tree: &Tree| -> Vec<String> {
            let each = tree.nodes.iter().enumerate();
            each.map(|(id, node)| format!("{:?} {:?} {}", tree.path(id), node.what, node.bytes))
                .collect()
        };
        let tree = layer.tree().expect("a tree");
        let want = [
            r#""" Dir { opaque: false } 0"#,
            r#""a" Link 0"#,
            r#""b" Dir { opaque: false } 0"#,
            r#""\xFF" File 1"#,
            r#""b/file" File 5"#,
            r#""b/gone" Whiteout 0"#,
            r#""b/sub" Dir { opaque: true } 0"#,
            r#""b/sub/again" File 5"#,
        ];
        assert_eq!(told(&tree), want);
        assert_eq!(tree.nodes[4].inode, tree.nodes[7].inode);
        assert!(tree.nodes[4].inode.is_some() && tree.nodes[3].inode.is_none());
        // Of an upper layer they are files like any other.
        let tree = layer.as_upper().tree().expect("a tree");
        assert!(told(&tree).contains(&r#""b/.wh.gone" File 0"#.to_owned()), "{:?}", told(&tree));
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_read() {
        let temp = tempfile::tempdir().expect("a directory");
        let name = "d".repeat(200);
        let mut dir = fs::File::open(temp.path()).expect("the directory");
        for _ in 0..40 {
            rustix::fs::mkdirat(&dir, &name, rustix::fs::Mode::RWXU).expect("a directory");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let mode = rustix::fs::Mode::empty();
            dir = rustix::fs::openat(&dir, &name, flags, mode).expect("the directory").into();
        }
        let layer = Layer::open(temp.path(), Namespace::User).expect("the layer");
        assert_eq!(layer.tree().expect("a tree").nodes.len(), 41);
    }
}
