//! Files that are changed with a copy of what was there, and brought back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

type Edit = Box<dyn Fn(&str) -> anyhow::Result<String>>;

/// What is to become of one file.
pub struct Change {
    path: PathBuf,
    what: What,
}

enum What {
    /// Its text, of what it was.
    Text(Edit),
    /// A symlink to this.
    Link(PathBuf),
}

/// One thing to do.
#[derive(Debug)]
pub enum Act {
    /// Write this; `Some` is what was there, and `None` that it was kept before.
    Write {
        path: PathBuf,
        before: String,
        after: String,
        keep: bool,
    },
    /// Bring back what was kept.
    Restore {
        path: PathBuf,
        before: String,
        after: String,
    },
    /// Make a symlink, or remove it.
    Link {
        path: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("{} can't be read", path.display())),
    }
}

/// Where what was there before is kept.
fn kept(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".before-strata");
    name.into()
}

impl Change {
    /// A file whose text `edit` changes; one that is not there has an empty one.
    pub fn new(path: PathBuf, edit: impl Fn(&str) -> anyhow::Result<String> + 'static) -> Self {
        Self { path, what: What::Text(Box::new(edit)) }
    }

    /// A symlink.
    pub fn link(path: PathBuf, to: PathBuf) -> Self {
        Self { path, what: What::Link(to) }
    }

    /// What is to be done; none where all is as it should be.
    ///
    /// # Errors
    /// What is there can't be read or changed.
    pub fn done(&self) -> anyhow::Result<Option<Act>> {
        let path = self.path.clone();
        let edit = match &self.what {
            What::Link(to) if fs::read_link(&path).is_ok_and(|is| is == *to) => return Ok(None),
            What::Link(to) => return Ok(Some(Act::Link { path, to: to.clone() })),
            What::Text(edit) => edit,
        };
        let before = read(&path)?.unwrap_or_default();
        let in_file = || format!("in {}", path.display());
        let after = edit(&before).with_context(in_file)?;
        if after == before {
            return Ok(None);
        }
        // Once changed, what was there before the first time is what an undo brings back.
        let keep = !kept(&path).exists();
        Ok(Some(Act::Write { path, before, after, keep }))
    }

    /// What brings back the file that was there; none where nothing was kept.
    ///
    /// # Errors
    /// The file has changed since in another way.
    pub fn undone(&self) -> anyhow::Result<Option<Act>> {
        let path = self.path.clone();
        let edit = match &self.what {
            What::Link(to) => {
                let ours = fs::read_link(&path).is_ok_and(|is| is == *to);
                return Ok(ours.then_some(Act::Unlink { path }));
            }
            What::Text(edit) => edit,
        };
        let Some(after) = read(&kept(&path))? else { return Ok(None) };
        let before = read(&path)?.unwrap_or_default();
        if before != after && edit(&before).is_ok_and(|same| same != before) {
            bail!(
                "{} has changed since in what Strata wrote: compare it with {} and bring it back by hand",
                path.display(),
                kept(&path).display()
            );
        }
        if edit(&after).is_ok_and(|ours| ours != before) {
            bail!(
                "{} has changed since: what was there before is in {}",
                path.display(),
                kept(&path).display()
            );
        }
        Ok(Some(Act::Restore { path, before, after }))
    }
}

/// Lines that go and that come, each with its sign.
fn difference(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let rest = (old.len() - same).min(new.len() - same);
    let end = (0..rest).take_while(|i| old[old.len() - 1 - i] == new[new.len() - 1 - i]).count();
    let mut text = String::new();
    for line in &old[same..old.len() - end] {
        text += &format!("- {line}\n");
    }
    for line in &new[same..new.len() - end] {
        text += &format!("+ {line}\n");
    }
    text
}

impl Act {
    /// How it is shown to who decides.
    pub fn shown(&self) -> String {
        match self {
            Self::Write { path, before, after, keep } => {
                let backup = if *keep {
                    format!(" (what is there goes to {})", kept(path).display())
                } else {
                    String::new()
                };
                format!("{}{backup}:\n{}\n", path.display(), difference(before, after))
            }
            Self::Restore { path, before, after } => {
                format!("{}:\n{}\n", path.display(), difference(before, after))
            }
            Self::Link { path, to } => format!("{} -> {}\n\n", path.display(), to.display()),
            Self::Unlink { path } => format!("{} goes\n\n", path.display()),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// The file system's; what was there before is kept then.
    pub fn apply(self) -> anyhow::Result<()> {
        match self {
            Self::Write { path, before, after, keep } => {
                if keep {
                    write(&kept(&path), &path, &before)?;
                }
                write(&path, &path, &after)
            }
            Self::Restore { path, after, .. } => {
                if after.is_empty() {
                    fs::remove_file(&path)
                        .with_context(|| format!("{} can't be removed", path.display()))?;
                } else {
                    write(&path, &path, &after)?;
                }
                let kept = kept(&path);
                fs::remove_file(&kept).with_context(|| format!("{} stays", kept.display()))
            }
            Self::Link { path, to } => {
                make_parent(&path)?;
                if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink()) {
                    fs::remove_file(&path)?;
                }
                std::os::unix::fs::symlink(&to, &path)
                    .with_context(|| format!("{} can't be made", path.display()))
            }
            Self::Unlink { path } => Ok(fs::remove_file(path)?),
        }
    }
}

fn make_parent(path: &Path) -> anyhow::Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))
}

/// Writes a file in one step, with the mode of `like` where that is there.
fn write(path: &Path, like: &Path, text: &str) -> anyhow::Result<()> {
    make_parent(path)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let staged = PathBuf::from(name);
    let mode = fs::metadata(like).map_or(0o644, |meta| meta.permissions().mode() & 0o7777);
    let written = (|| {
        let mut file = File::create(&staged)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path)
    })();
    written.with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_comes_back_unless_others_changed_it() {
        let temp = tempfile::tempdir().unwrap();
        let at = temp.path().join("etc/x.toml");
        let change = || {
            Change::new(at.clone(), |text| {
                Ok(if text.contains("ours") { text.to_owned() } else { format!("{text}ours\n") })
            })
        };
        assert!(change().undone().unwrap().is_none(), "nothing was done");
        let done = change().done().unwrap().unwrap();
        assert!(done.shown().ends_with("+ ours\n\n"), "{}", done.shown());
        done.apply().unwrap();
        assert!(change().done().unwrap().is_none(), "once is enough");
        change().undone().unwrap().unwrap().apply().unwrap();
        assert!(!at.exists() && !kept(&at).exists(), "it was not there before");
        fs::write(&at, "theirs\n").unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).unwrap();
        change().done().unwrap().unwrap().apply().unwrap();
        assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&at).unwrap(), "theirs\nours\n");
        fs::write(&at, "theirs\nours\nmore\n").unwrap();
        assert!(change().undone().is_err(), "it has changed since");
        fs::write(&at, "theirs\nours\n").unwrap();
        let undone = change().undone().unwrap().unwrap();
        assert_eq!(difference("a\nb\nc\n", "a\nx\nc\n"), "- b\n+ x\n");
        undone.apply().unwrap();
        assert_eq!(fs::read_to_string(&at).unwrap(), "theirs\n");
    }
}
