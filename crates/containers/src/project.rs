//! The limit of a writable layer, kept by the file system: its directories are in a project of their own, whatever is
//! made in them is too, and the file system counts what they have (project quota).
//!
//! Every writable layer has a number to itself. A snapshot takes the number along with the layer that it freezes, without
//! a limit, and the new layer gets another: to give the frozen files away would be a walk, and not possible for links and
//! devices. The number stands in the container's row before the file system hears of it, so that whatever a kill leaves,
//! a start or a removal finishes; limits of numbers without files, which a row that is gone may leave, go with a
//! collection.
//!
//! On XFS alone. Its limits hold for root too; those of ext4 do not for who has `CAP_SYS_RESOURCE`, by mapped memory or
//! from outside of the container.
//!
//! Source: xfs(5), `prjquota`; projid(5) and projects(5); kernel `fs/xfs`: a rename or a link into a directory that gives
//! its project on fails with EXDEV for a file of another project, and out of it does not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use store::Store;
use sys::project::{Quota, inherit, inherited};

use crate::container::{Config, Container, Filter, text};
use crate::view::{Choice, Keeper, Limit};
use crate::{Error, Result};

/// Numbers of ours: high, and nobody's habit.
const OURS: std::ops::Range<u32> = 0x5300_0000..0x5400_0000;

/// Files that say which numbers people have given out.
const GIVEN: [(&str, usize); 2] = [("/etc/projid", 1), ("/etc/projects", 0)];

/// Below these a limit is more of the layer's own directories than of what is in it: only our union, which does not count
/// them, can keep it.
const LEAST: (u64, u64) = (64 << 10, 16);

/// The quotas of the file system that `at` is in, where limits by project are kept there and may be set; why not
/// otherwise.
pub fn offered(at: &Path) -> std::result::Result<Quota, String> {
    if !sys::privilege::is_initial_root() {
        return Err("only root of the machine sets limits of projects".to_owned());
    }
    let magic = rustix::fs::statfs(at).map_err(|e| format!("{at:?}: {e}"))?.f_type;
    if magic as i64 != sys::mounts::XFS {
        return Err("the store is not on XFS".to_owned());
    }
    let quota = Quota::of(at).map_err(|e| e.to_string())?;
    match quota.is_kept() {
        Ok(true) => {}
        Ok(false) => {
            return Err("the store's XFS is not mounted with prjquota".to_owned());
        }
        Err(e) => return Err(e.to_string()),
    }
    match inherited(&quota).map_err(|e| e.to_string())? {
        None => Ok(quota),
        Some(project) => Err(format!("the store itself is in the project {project}")),
    }
}

/// Whether a container like this may have its limit by the file system; why not otherwise.
fn suits(config: &Config) -> std::result::Result<(), String> {
    let no = |why: &str| Err(why.to_owned());
    if config.backend == Choice::Fuse {
        return no("--backend fuse was asked for");
    }
    let Limit { size, inodes } = config.limit;
    if size.is_some_and(|size| size < LEAST.0) || inodes.is_some_and(|inodes| inodes < LEAST.1) {
        return no("it is too small for the file system's");
    }
    // A file's owner may give it to another project, and who administers the machine may lift the limit.
    if config.privileged || !matches!(config.seccomp, Filter::Standard) {
        return no("without our filter of system calls its processes could leave their project");
    }
    let held = runtime::capability::choose(&config.cap_add, &config.cap_drop);
    if held.is_ok_and(|held| held.iter().any(|name| name.ends_with("SYS_ADMIN"))) {
        return no("with CAP_SYS_ADMIN its processes could lift their project's");
    }
    Ok(())
}

impl Container {
    /// Gives its writable layer, which is new, a project, where its limit can be kept by one; the row says so.
    pub(crate) fn take_project(&mut self, store: &Store) -> Result<()> {
        self.config.project = None;
        if self.config.limit == Limit::default() || suits(&self.config).is_err() {
            return Ok(());
        }
        if let Ok(quota) = offered(&self.dir) {
            self.save_with_project(store, &quota)?;
            self.enter_project("upper")?;
        }
        Ok(())
    }

    /// Writes its row with another project for its writable layer, where it had one, and the file system keeps limits.
    pub(crate) fn save_with_next_project(&mut self, store: &Store) -> Result<()> {
        let quota = self.config.project.take().and_then(|_| offered(&self.dir).ok());
        match quota {
            Some(quota) => self.save_with_project(store, &quota),
            None => self.save(store),
        }
    }

    fn save_with_project(&mut self, store: &Store, quota: &Quota) -> Result<()> {
        let given = given();
        let free = free(quota, &given, crate::container::random_number()?)?;
        let mut chosen = None;
        // Nobody else writes a row between what is looked at and what is written.
        store.choose_container_state(&self.id, |others| {
            let known = |row: &String| serde_json::from_str::<Config>(row).ok()?.project;
            let known: BTreeSet<u32> = others.iter().filter_map(known).collect();
            chosen = free.into_iter().find(|number| !known.contains(number));
            let config = Config { project: chosen, ..self.config.clone() };
            text(&config).map_err(|e| e.to_string())
        })?;
        self.config.project = chosen;
        Ok(())
    }

    /// Puts a directory of its own, in which nothing is yet, and the union's scratch in its project, or in none.
    pub(crate) fn enter_project(&self, name: &str) -> Result<()> {
        if self.config.limit == Limit::default() {
            return Ok(());
        }
        let project = self.config.project;
        put(&self.dir.join(name), project)?;
        put_all(&self.dir.join("work"), project)
    }

    /// Has the file system keep its limit from here on, and says who keeps it.
    pub(crate) fn keep_limit(&self) -> Result<Keeper> {
        let by_union = |why: String| Ok(Keeper::Union(why));
        if self.config.limit == Limit::default() {
            return Ok(Keeper::default());
        }
        if let Err(why) = suits(&self.config) {
            return by_union(why);
        }
        let quota = match offered(&self.dir) {
            Ok(quota) => quota,
            Err(why) => return by_union(why),
        };
        let Some(project) = self.config.project else {
            return by_union("its writable layer has no project".to_owned());
        };
        let upper = self.upper();
        let dir = File::open(&upper).map_err(|e| Error::io("open", &upper, e))?;
        let known = inherited(&dir).map_err(|e| Error::io("look at", &upper, e.source))?;
        if known != Some(project) {
            // A kill has kept it from being put there when it was made; what is in it would never be counted.
            let mut names = fs::read_dir(&upper).map_err(|e| Error::io("list", &upper, e))?;
            if names.next().is_some() {
                return by_union("its writable layer is in another project".to_owned());
            }
            put(&upper, Some(project))?;
        }
        put_all(&self.dir.join("work"), Some(project))?;
        let (bytes, inodes) = limits(self.config.limit, &dir)?;
        let fail = |e: sys::Error| Error::io("set the limit of", &upper, e.source);
        quota.limit(project, bytes, inodes).map_err(fail)?;
        let set = quota.usage(project).map_err(fail)?.unwrap_or_default();
        if (set.bytes_limit, set.inodes_limit) != (bytes, inodes) {
            return by_union(format!("the file system does not keep the limit of {project}"));
        }
        Ok(Keeper::Project(project))
    }

    /// Why its limit, which the file system has kept so far, is our union's to keep on the next start; none where that is
    /// not so.
    pub fn limit_unkept(&self) -> Option<String> {
        self.config.project?;
        suits(&self.config).and_then(|()| offered(&self.dir).map(drop)).err()
    }

    /// Lifts the limit of its project, where the file system keeps that: before its files are no longer its layer.
    pub(crate) fn lift_limit(&self) -> Result<()> {
        let Some(project) = self.config.project else { return Ok(()) };
        let Ok(quota) = offered(&self.dir) else { return Ok(()) };
        let lifted = quota.limit(project, 0, 0);
        lifted.map_err(|e| Error::io("lift the limit of", &self.dir, e.source))
    }
}

/// Lifts limits of ours that no file is left of: a loss of power brings back what was lifted last.
pub(crate) fn lift_left(store: &Store) -> Result<()> {
    let Ok(quota) = offered(store.root()) else { return Ok(()) };
    let fail = |e: sys::Error| Error::io("look at the limits of", store.root(), e.source);
    let mut next = OURS.start;
    while let Some(found) = quota.next(next).map_err(fail)?.filter(|f| OURS.contains(&f.project)) {
        if found.inodes == 0 && (found.bytes_limit, found.inodes_limit) != (0, 0) {
            quota.limit(found.project, 0, 0).map_err(fail)?;
        }
        next = found.project + 1;
    }
    Ok(())
}

/// What to set: whole blocks, since the file system would round up.
fn limits(limit: Limit, dir: &File) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstatvfs(dir).map_err(|e| Error::io("look at", "the layer", e))?;
    let block = stat.f_frsize.max(512);
    Ok((limit.size.unwrap_or(0) / block * block, limit.inodes.unwrap_or(0)))
}

/// Numbers that nobody is known to have.
fn free(quota: &Quota, given: &BTreeSet<u32>, random: u32) -> Result<Vec<u32>> {
    let count = OURS.end - OURS.start;
    let mut found = Vec::new();
    for step in 0..count {
        let number = OURS.start + random.wrapping_add(step) % count;
        let fail = |e: sys::Error| Error::io("look for a free project", "XFS", e.source);
        if !given.contains(&number) && quota.usage(number).map_err(fail)?.is_none() {
            found.push(number);
        }
        // Who makes containers at the same time has chosen from others, but for a rare chance.
        if found.len() == 8 {
            break;
        }
    }
    Ok(found)
}

/// The numbers in files of the machine.
fn given() -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for (path, field) in GIVEN {
        all.extend(numbers(&fs::read_to_string(path).unwrap_or_default(), field));
    }
    all
}

fn numbers(text: &str, field: usize) -> BTreeSet<u32> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.filter_map(|line| line.split(':').nth(field)?.trim().parse().ok()).collect()
}

fn put(path: &Path, project: Option<u32>) -> Result<()> {
    let dir = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let known = match inherited(&dir) {
        // No file system for that, and so nothing to leave.
        Err(_) if project.is_none() => None,
        known => known.map_err(|e| Error::io("look at", path, e.source))?,
    };
    if known != project {
        inherit(&dir, project).map_err(|e| Error::io("set the project of", path, e.source))?;
    }
    Ok(())
}

/// The same with the directories in it. What else is in the scratch is about to go, or a whiteout to be linked, which
/// overlayfs does not keep from one mount to the next.
fn put_all(path: &Path, project: Option<u32>) -> Result<()> {
    put(path, project)?;
    for entry in fs::read_dir(path).map_err(|e| Error::io("list", path, e))? {
        let entry = entry.map_err(|e| Error::io("list", path, e))?;
        let kind = entry.file_type().map_err(|e| Error::io("look at", entry.path(), e))?;
        if kind.is_dir() {
            put_all(&entry.path(), project)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_people_gave_out_are_known() {
        assert_eq!(numbers("a:7\n# b:8\nc : 9 # d\nodd\n", 1), BTreeSet::from([7, 9]));
        assert_eq!(numbers("11:/srv/a\nx:/srv/b\n", 0), BTreeSet::from([11]));
    }

    #[test]
    fn who_could_leave_a_project_or_has_no_room_in_one_is_limited_by_the_union() {
        let limit = Limit { size: Some(1 << 20), inodes: None };
        let config = Config { limit, ..Config::default() };
        assert!(suits(&config).is_ok());
        let small = Limit { size: Some(1 << 10), inodes: None };
        let few = Limit { size: None, inodes: Some(3) };
        for other in [
            Config { privileged: true, ..config.clone() },
            Config { seccomp: Filter::Unconfined, ..config.clone() },
            Config { cap_add: vec!["SYS_ADMIN".to_owned()], ..config.clone() },
            Config { cap_add: vec!["ALL".to_owned()], ..config.clone() },
            Config { backend: Choice::Fuse, ..config.clone() },
            Config { limit: small, ..config.clone() },
            Config { limit: few, ..config.clone() },
        ] {
            assert!(suits(&other).is_err(), "{other:?}");
        }
    }
}
