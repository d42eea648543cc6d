//! The changes of an attempt, made in its base: all or nothing as far as that can be known before, and undone on
//! demand.
//!
//! 1. Nothing is touched if the base changed since the command started: by the times of each path that would change,
//!    and of all that lies in a directory that would go.
//! 2. A journal says for each path what to do about it, and is on disk before the first change.
//! 3. What is replaced or deleted goes to the attempt's directory first. A file is replaced by one rename.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, RenameFlags, Stat, Statx};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, Instant, State, after};
use crate::changes::{Change, Changed, is_dir};
use crate::tree::{self, At};
use crate::{Error, Result};

/// What to do about one path to be where it was before.
#[derive(Debug, Serialize, Deserialize)]
enum Undo {
    /// It was not there.
    Remove(OsString),
    /// What was there is kept under this number.
    Restore(OsString, usize),
    /// It is the same directory; its owner, mode and times are kept under this number.
    Dress(OsString, usize),
}

impl Undo {
    fn path(&self) -> PathBuf {
        match self {
            Self::Remove(path) | Self::Restore(path, _) | Self::Dress(path, _) => path.into(),
        }
    }
}

impl Attempt {
    /// Makes the changes in the base; how many paths changed.
    ///
    /// # Errors
    /// [`Error::Changed`], and nothing is touched; [`Error::State`]; [`Error::Io`] in the middle, when
    /// [`undo`](Self::undo) takes back what was done.
    pub fn apply(&mut self) -> Result<usize> {
        if let State::Applied(_) = self.record.state {
            let (state, advice) = ("is applied already", "strata try --of ID --undo takes it back");
            return Err(Error::State { name: self.id.clone(), state, advice });
        }
        let changes = self.changes()?;
        let base = tree::root(&self.record.base)?;
        self.check(&base, &changes)?;
        let undo = self.dir.join("undo");
        tree::make_private(&undo)?;
        self.journal(&changes)?;
        // From here on an undo has something to undo, wherever this ends.
        self.record.state = State::Applied((i64::MAX, 0));
        self.save()?;
        let kept = tree::root(&undo)?;
        let upper = tree::root(&self.upper())?;
        for (number, changed) in changes.iter().enumerate() {
            if let Err(e) = one(&base, &upper, &kept, number, changed) {
                // A name that somebody else took first is not ours to remove.
                let ours = number + usize::from(changed.old.is_some());
                self.journal(&changes[..ours])?;
                return Err(e);
            }
        }
        for changed in changes.iter().rev().filter(|changed| changed.is_dir()) {
            let (from, to) = (parent(&upper, &changed.path)?, parent(&base, &changed.path)?);
            tree::dress_directory(at(&from, &changed.path), at(&to, &changed.path))?;
        }
        rustix::fs::syncfs(&base).map_err(|e| Error::io("sync", &self.record.base, e))?;
        self.record.state = State::Applied(after());
        self.save()?;
        Ok(changes.len())
    }

    fn check(&self, base: &OwnedFd, changes: &[Changed]) -> Result<()> {
        let mut changed = Vec::new();
        for change in changes {
            let Some(old) = &change.old else { continue };
            let stays = is_dir(old) && change.is_dir();
            if stays {
                continue;
            }
            if is_dir(old) {
                let dir = parent(base, &change.path)?;
                newer(at(&dir, &change.path), self.record.started, &mut changed)?;
            } else if ctime(old) > self.record.started {
                changed.push(change.path.clone());
            }
        }
        // What somebody has removed meanwhile would come back, or be no change at all.
        let replaces = |path: &Path| {
            let found = changes.binary_search_by(|change| change.path.as_path().cmp(path));
            found.is_ok_and(|at| changes[at].old.is_some())
        };
        changed.extend(self.replaced()?.into_iter().filter(|path| !replaces(path)));
        if changed.is_empty() { Ok(()) } else { Err(Error::Changed { paths: changed }) }
    }

    fn journal(&self, changes: &[Changed]) -> Result<()> {
        let path = self.dir.join("undo/journal");
        let fail = |e: std::io::Error| Error::io("write", &path, e);
        let mut text = Vec::new();
        for (number, changed) in changes.iter().enumerate() {
            let at = changed.path.clone().into_os_string();
            let line = match &changed.old {
                None => Undo::Remove(at),
                Some(old) if is_dir(old) && changed.is_dir() => Undo::Dress(at, number),
                Some(_) => Undo::Restore(at, number),
            };
            serde_json::to_writer(&mut text, &line).map_err(|e| fail(e.into()))?;
            text.push(b'\n');
        }
        let mut file = fs::File::create(&path).map_err(fail)?;
        file.write_all(&text).map_err(fail)?;
        file.sync_all().map_err(fail)
    }

    /// Takes the changes back out of the base; how many paths that were.
    ///
    /// # Errors
    /// [`Error::State`] where nothing was applied; [`Error::Changed`] where somebody has changed what was applied since;
    /// [`Error::Io`] in the middle: it can be called again.
    pub fn undo(&mut self) -> Result<usize> {
        let State::Applied(until) = self.record.state else {
            let (state, advice) = ("is not applied", "there is nothing to undo");
            return Err(Error::State { name: self.id.clone(), state, advice });
        };
        let path = self.dir.join("undo/journal");
        let file = fs::File::open(&path).map_err(|e| Error::io("read", &path, e))?;
        let mut steps = Vec::new();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|e| Error::io("read", &path, e))?;
            let step: Undo = serde_json::from_str(&line)
                .map_err(|e| Error::Damaged { path: path.clone(), why: e.to_string() })?;
            steps.push(step);
        }
        let base = tree::root(&self.record.base)?;
        let kept_path = self.dir.join("undo");
        let kept = tree::root(&kept_path)?;
        let mut changed = Vec::new();
        for step in steps.iter().filter(|step| !matches!(step, Undo::Dress(..))) {
            let path = step.path();
            if let Some(dir) = found(&base, &path)? {
                newer(at(&dir, &path), until, &mut changed)?;
            }
        }
        changed.sort();
        changed.dedup();
        if !changed.is_empty() {
            return Err(Error::Changed { paths: changed });
        }
        for step in steps.iter().rev() {
            let path = step.path();
            let Some(dir) = found(&base, &path)? else { continue };
            let to = at(&dir, &path);
            match step {
                Undo::Remove(_) => tree::remove(to)?,
                Undo::Restore(_, number) => {
                    let (name, shown) = number_of(*number, &kept_path);
                    let from = At { dir: kept.as_fd(), name: &name, shown: &shown };
                    // What is not kept was never replaced.
                    if from.stat()?.is_some() {
                        tree::remove(to)?;
                        move_to(from, to)?;
                    }
                }
                Undo::Dress(_, number) => {
                    let (name, shown) = number_of(*number, &kept_path);
                    let from = At { dir: kept.as_fd(), name: &name, shown: &shown };
                    if from.stat()?.is_some() {
                        tree::dress_directory(from, to)?;
                    }
                }
            }
        }
        let parent = tree::root(&self.dir)?;
        tree::remove(At { dir: parent.as_fd(), name: "undo".as_ref(), shown: &kept_path })?;
        self.record.state = State::Kept;
        // What was put back is as the command found it, though by its times it is new.
        self.record.started = after();
        self.save()?;
        Ok(steps.len())
    }
}

fn one(
    base: &OwnedFd,
    upper: &OwnedFd,
    kept: &OwnedFd,
    number: usize,
    changed: &Changed,
) -> Result<()> {
    let dir = parent(base, &changed.path)?;
    let to = at(&dir, &changed.path);
    let (name, shown) = number_of(number, Path::new("undo"));
    let keep = At { dir: kept.as_fd(), name: &name, shown: &shown };
    let old = changed.old.as_ref();
    if changed.change == Change::Deleted {
        return move_to(to, keep);
    }
    let source = parent(upper, &changed.path)?;
    let from = at(&source, &changed.path);
    if changed.is_dir() {
        return match old {
            Some(old) if is_dir(old) => tree::copy(to, keep, false),
            Some(_) => {
                move_to(to, keep)?;
                tree::copy(from, to, false)
            }
            None => tree::copy(from, to, false),
        };
    }
    let staged: OsString = format!(".strata-try-{number}").into();
    let stage = At { dir: dir.as_fd(), name: &staged, shown: &changed.path };
    tree::remove(stage)?;
    tree::copy(from, stage, true)?;
    match old {
        Some(old) if is_dir(old) => move_to(to, keep)?,
        Some(_) => link_or_copy(to, keep)?,
        None => {}
    }
    let flags = if old.is_some() { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    let placed = rustix::fs::renameat_with(&dir, &staged, &dir, to.name, flags);
    if let Err(e) = placed {
        tree::remove(stage)?;
        return Err(Error::io("place", &changed.path, e));
    }
    Ok(())
}

/// Moves by a rename, or by a copy to another file system.
fn move_to(from: At<'_>, to: At<'_>) -> Result<()> {
    match rustix::fs::renameat(from.dir, from.name, to.dir, to.name) {
        Ok(()) => Ok(()),
        Err(Errno::XDEV) => {
            tree::copy(from, to, true)?;
            tree::remove(from)
        }
        Err(e) => Err(Error::io("move", from.shown, e)),
    }
}

fn link_or_copy(from: At<'_>, to: At<'_>) -> Result<()> {
    match rustix::fs::linkat(from.dir, from.name, to.dir, to.name, AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(_) => tree::copy(from, to, true),
    }
}

/// Collects what below `at` changed after `since`.
fn newer(at: At<'_>, since: Instant, changed: &mut Vec<PathBuf>) -> Result<()> {
    let Some(stat) = at.stat()? else { return Ok(()) };
    let is_dir = tree::kind(&stat) == FileType::Directory;
    if changed_at(&stat) > since {
        changed.push(at.shown.to_owned());
    }
    if is_dir {
        let dir = tree::directory(at.dir, Path::new(at.name))?;
        for name in tree::names(&dir, at.shown)? {
            let shown = at.shown.join(&name);
            newer(At { dir: dir.as_fd(), name: &name, shown: &shown }, since, changed)?;
        }
    }
    Ok(())
}

fn changed_at(stat: &Stat) -> Instant {
    (stat.st_ctime, stat.st_ctime_nsec.cast_signed())
}

fn ctime(stat: &Statx) -> Instant {
    (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec.into())
}

fn number_of(number: usize, dir: &Path) -> (OsString, PathBuf) {
    let name = OsString::from(number.to_string());
    let shown = dir.join(&name);
    (name, shown)
}

fn parent(root: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    tree::directory(root, path.parent().unwrap_or(Path::new("")))
}

/// The directory of `path`, where it is still there.
fn found(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>> {
    match parent(root, path) {
        Ok(dir) => Ok(Some(dir)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn at<'a>(dir: &'a OwnedFd, path: &'a Path) -> At<'a> {
    At { dir: dir.as_fd(), name: path.file_name().unwrap_or_default(), shown: path }
}
