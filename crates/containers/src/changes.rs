//! What an upper layer says about the layers below it: added, changed, deleted.
//!
//! Only the upper layer is walked, and only those directories of the layers below that it has too: the cost is that of
//! the changes, whatever the image holds.
//!
//! Source: `docker diff` for the letters; overlayfs.rst for the marks.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use layer::{Kind, Layer, Namespace};
use rustix::fs::{Dir, FileType, Statx, StatxTimestamp};

use crate::{Error, Result};

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    Added,
    /// It is another file, or the same with other data or attributes; for a directory also: something in it changed.
    Modified,
    /// It is no longer there.
    Deleted,
}

impl Change {
    /// The letter that Docker prints.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Modified => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// One changed path.
#[derive(Debug, Clone)]
pub struct Changed {
    /// What happened.
    pub change: Change,
    /// From the root, absolute.
    pub path: PathBuf,
    /// What is there now.
    pub new: Option<Statx>,
    /// What was there.
    pub old: Option<Statx>,
}

impl Changed {
    /// Whether a directory is there now.
    pub fn is_dir(&self) -> bool {
        self.new.as_ref().is_some_and(is_dir)
    }

    /// Bytes of file data now, less those before.
    pub fn growth(&self) -> i64 {
        let bytes = |stat: &Option<Statx>| {
            stat.as_ref().filter(|stat| is_file(stat)).map_or(0, |stat| stat.stx_size)
        };
        bytes(&self.new).cast_signed().saturating_sub(bytes(&self.old).cast_signed())
    }
}

pub(crate) fn is_dir(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory
}

fn is_file(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile
}

/// Lists what `uppers` together change of `lowers`, both uppermost first; sorted by path, a directory before what is in
/// it.
///
/// # Errors
/// [`Error::Layer`], [`Error::Io`]: a layer that can't be read never counts as one without changes.
pub fn list(uppers: &[PathBuf], lowers: &[PathBuf], namespace: Namespace) -> Result<Vec<Changed>> {
    let open = |paths: &[PathBuf]| -> Result<Vec<Layer>> {
        paths.iter().map(|path| Ok(Layer::open(path, namespace)?)).collect()
    };
    let mut walk = Walk { uppers: open(uppers)?, lowers: open(lowers)?, found: Vec::new() };
    let mut above = Vec::new();
    let mut opaque = false;
    for (index, layer) in walk.uppers.iter().enumerate() {
        let dir = layer.open_dir(Path::new(""))?;
        opaque = layer::mark::opaque(&dir, namespace)
            .map_err(|e| Error::io("read the marks of", layer.path(), e))?
            == layer::mark::Opaque::Yes;
        above.push((index, dir));
        if opaque {
            break;
        }
    }
    let below = walk.lowers.iter().enumerate();
    let below = below.map(|(index, layer)| Ok((index, layer.open_dir(Path::new(""))?)));
    let below = below.collect::<Result<Vec<_>>>()?;
    walk.directory(&above, &mut PathBuf::from("/"), &below, opaque)?;
    Ok(walk.found)
}

/// Directories of layers that are one directory, each with its layer's index, uppermost first.
type Dirs = Vec<(usize, OwnedFd)>;

/// What a stack of layers says of a name.
enum Says {
    /// Nothing: what lies below shows through.
    Nothing,
    /// It is deleted.
    Gone,
    /// Anything but a directory.
    Leaf(Statx),
    /// A directory, and whether what lies below the stack is hidden.
    Dir(Statx, Dirs, bool),
}

struct Walk {
    uppers: Vec<Layer>,
    lowers: Vec<Layer>,
    found: Vec<Changed>,
}

impl Walk {
    /// Whether something in the directory changed.
    fn directory(
        &mut self,
        above: &[(usize, OwnedFd)],
        path: &mut PathBuf,
        below: &[(usize, OwnedFd)],
        opaque: bool,
    ) -> Result<bool> {
        let mut all = Vec::new();
        // Under an opaque directory what the uppers have not is gone.
        let hidden = if opaque { below } else { &[] };
        for (_, dir) in above.iter().chain(hidden) {
            all.extend(names(dir, path)?);
        }
        all.sort();
        all.dedup();
        let before = self.found.len();
        for name in all {
            path.push(&name);
            let result = self.name(above, path, &name, below, opaque);
            path.pop();
            result?;
        }
        Ok(self.found.len() > before)
    }

    fn name(
        &mut self,
        above: &[(usize, OwnedFd)],
        path: &mut PathBuf,
        name: &OsStr,
        below: &[(usize, OwnedFd)],
        opaque: bool,
    ) -> Result<()> {
        let relative = path.strip_prefix("/").unwrap_or(path).to_owned();
        let parent = relative.parent().unwrap_or(Path::new(""));
        let new = says(&self.uppers, above, parent, name)?;
        let old = says(&self.lowers, below, parent, name)?;
        let at = path.clone();
        match (new, old) {
            (Says::Nothing, _) if !opaque => {}
            (Says::Nothing | Says::Gone, Says::Leaf(old) | Says::Dir(old, ..)) => {
                self.push(Change::Deleted, at, None, Some(old));
            }
            (Says::Nothing | Says::Gone, Says::Nothing | Says::Gone) => {}
            (Says::Leaf(new), Says::Nothing | Says::Gone) => {
                self.push(Change::Added, at, Some(new), None);
            }
            (Says::Leaf(new), Says::Leaf(old) | Says::Dir(old, ..)) => {
                self.push(Change::Modified, at, Some(new), Some(old));
            }
            (Says::Dir(new, above, hidden), Says::Dir(old, below, _)) => {
                let place = self.found.len();
                self.push(Change::Modified, at, Some(new), Some(old));
                let inside = self.directory(&above, path, &below, hidden)?;
                if !inside && alike(&new, &old) {
                    self.found.truncate(place);
                }
            }
            (Says::Dir(new, above, _), Says::Leaf(old)) => {
                self.push(Change::Modified, at, Some(new), Some(old));
                self.directory(&above, path, &[], false)?;
            }
            (Says::Dir(new, above, _), Says::Nothing | Says::Gone) => {
                self.push(Change::Added, at, Some(new), None);
                self.directory(&above, path, &[], false)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, change: Change, path: PathBuf, new: Option<Statx>, old: Option<Statx>) {
        self.found.push(Changed { change, path, new, old });
    }
}

/// Folds what `dirs` say of `name` as the union does, and tells besides whether the last word was a whiteout.
fn says(layers: &[Layer], dirs: &[(usize, OwnedFd)], parent: &Path, name: &OsStr) -> Result<Says> {
    let mut merged: Dirs = Vec::new();
    let mut first = None;
    let mut hidden = false;
    for (index, dir) in dirs {
        let probe = layers[*index].probe(dir, parent, name)?;
        match (probe.kind, probe.stat, probe.dir) {
            (Kind::Absent, ..) => continue,
            (Kind::Dir { opaque }, Some(stat), Some(dir)) => {
                first.get_or_insert(stat);
                merged.push((*index, dir));
                hidden = opaque;
            }
            (Kind::Leaf, Some(stat), _) if merged.is_empty() => return Ok(Says::Leaf(stat)),
            _ => hidden = true,
        }
        if hidden {
            break;
        }
    }
    Ok(match first {
        Some(stat) => Says::Dir(stat, merged, hidden),
        None if hidden => Says::Gone,
        None => Says::Nothing,
    })
}

/// A directory that was copied up and then not changed.
fn alike(new: &Statx, old: &Statx) -> bool {
    let time = |time: &StatxTimestamp| (time.tv_sec, time.tv_nsec);
    new.stx_mode == old.stx_mode
        && (new.stx_uid, new.stx_gid) == (old.stx_uid, old.stx_gid)
        && time(&new.stx_mtime) == time(&old.stx_mtime)
}

/// The names in a directory, sorted; those that an AUFS whiteout hides under their own name.
fn names(dir: &OwnedFd, path: &Path) -> Result<Vec<OsString>> {
    let fail = |e| Error::io("list", path, e);
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." || name == layer::mark::AUFS_OPAQUE {
            continue;
        }
        names.push(layer::mark::aufs_hidden(name).unwrap_or(name).to_owned());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn added_changed_deleted_are_told_from_the_upper_alone() {
        let temp = tempfile::tempdir().expect("a directory");
        let at = |path: &str| temp.path().join(path);
        let file = |path: &str, text: &str| {
            fs::create_dir_all(at(path).parent().expect("a parent")).expect("directories");
            fs::write(at(path), text).expect("a file");
        };
        file("low/etc/a", "old");
        file("low/etc/gone", "x");
        file("low/tree/x", "1");
        file("low/tree/y", "2");
        file("low/leaf", "leaf");
        file("mid/etc/only-mid", "m");
        file("mid/.wh.hidden", "");
        file("low/hidden", "never seen");
        file("up/etc/a", "newer");
        file("up/etc/.wh.gone", "");
        file("up/etc/.wh.never", "");
        file("up/etc/only-mid", "mm");
        file("up/new/deep/f", "abc");
        file("up/hidden", "again");
        file("up/tree/.wh..wh..opq", "");
        file("up/tree/x", "3");
        file("up/leaf/now-a-dir", "d");
        fs::create_dir(at("low/same")).expect("a directory");
        fs::create_dir(at("up/same")).expect("a directory");
        let then = fs::metadata(at("low/same")).expect("metadata").modified().expect("a time");
        fs::File::open(at("up/same")).expect("open").set_modified(then).expect("a time");
        let got = list(&[at("up")], &[at("mid"), at("low")], Namespace::User).expect("a list");
        let lines: Vec<String> = got
            .iter()
            .map(|c| format!("{} {} {}", c.change.letter(), c.path.display(), c.growth()))
            .collect();
        let want = [
            "C /etc 0",
            "C /etc/a 2",
            "D /etc/gone -1",
            "C /etc/only-mid 1",
            "A /hidden 5",
            "C /leaf -4",
            "A /leaf/now-a-dir 1",
            "A /new 0",
            "A /new/deep 0",
            "A /new/deep/f 3",
            "C /tree 0",
            "C /tree/x 0",
            "D /tree/y -1",
        ];
        assert_eq!(lines, want);
    }

    #[test]
    fn two_upper_layers_are_one_change() {
        let temp = tempfile::tempdir().expect("a directory");
        let at = |path: &str| temp.path().join(path);
        let file = |path: &str| {
            fs::create_dir_all(at(path).parent().expect("a parent")).expect("directories");
            fs::write(at(path), "x").expect("a file");
        };
        // Deleted below and made again above; added below and deleted above; hidden below, seen through above.
        for path in ["low/a", "low/d/x", "low/e/y", "snap/.wh.a", "snap/new", "snap/.wh.e"] {
            file(path);
        }
        for path in ["up/a", "up/.wh.new", "snap/d/z", "up/d/w", "up/e/q"] {
            file(path);
        }
        let uppers = [at("up"), at("snap")];
        let got = list(&uppers, &[at("low")], Namespace::User).expect("a list");
        let lines: Vec<String> =
            got.iter().map(|c| format!("{} {}", c.change.letter(), c.path.display())).collect();
        assert_eq!(lines, ["C /a", "C /d", "A /d/w", "A /d/z", "C /e", "A /e/q", "D /e/y"]);
    }
}
