//! Control groups: which hierarchies this machine has, and where in them this process may make a group.
//!
//! Version 1 has a hierarchy for each controller or a few, version 2 one for all; hybrid is both at once, with each
//! controller in one of them. Nothing is assumed of where they are mounted or who manages them: all is read when it is
//! needed.
//!
//! Source: kernel `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`; cgroups(7); proc_pid_mountinfo(5).

pub mod group;

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

pub use group::Group;

/// Which control groups there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// None is mounted.
    None,
    /// A hierarchy for each controller.
    V1,
    /// The same, beside a hierarchy of version 2.
    Hybrid,
    /// One hierarchy.
    V2,
}

/// A hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub at: PathBuf,
    /// The group of this process.
    own: PathBuf,
    /// Its controllers by version 1, `name=NAME` for one without; none by version 2.
    v1: Option<Vec<String>>,
}

/// The hierarchies of this machine that this process sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub(crate) hierarchies: Vec<Hierarchy>,
}

impl Hierarchy {
    pub(crate) fn is_v2(&self) -> bool {
        self.v1.is_none()
    }

    /// The controllers that a group of this hierarchy can have.
    pub(crate) fn controllers(&self) -> Vec<String> {
        match &self.v1 {
            Some(controllers) => controllers.clone(),
            None => words(&self.at.join("cgroup.controllers")),
        }
    }

    /// Where a group may be made whose groups have `controllers`: at the top, as root has them, otherwise in the group
    /// of this process, or in one above it.
    ///
    /// By version 2 a group with processes gives its groups no controllers, so that this is mostly one above: the slice
    /// that systemd has delegated.
    ///
    /// # Errors
    /// Why not at the last place that was tried.
    pub(crate) fn parent(&self, controllers: &[&str]) -> Result<PathBuf, String> {
        let above = self.own.ancestors().take_while(|dir| dir.starts_with(&self.at));
        let mut why = String::new();
        for dir in std::iter::once(self.at.as_path()).chain(above) {
            match self.usable(dir, controllers) {
                Ok(()) => return Ok(dir.to_owned()),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }

    fn usable(&self, dir: &Path, controllers: &[&str]) -> Result<(), String> {
        let may = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::access(dir, may).map_err(|e| format!("{}: {e}", dir.display()))?;
        if !self.is_v2() {
            return Ok(());
        }
        // A process comes into a group only from where its mover may write to what both have above them.
        let processes = dir.join("cgroup.procs");
        rustix::fs::access(&processes, Access::WRITE_OK)
            .map_err(|e| format!("{}: {e}", processes.display()))?;
        let switch = dir.join("cgroup.subtree_control");
        let given = words(&switch);
        for controller in controllers.iter().filter(|name| !given.iter().any(|own| own == *name)) {
            write(&switch, &format!("+{controller}"))
                .map_err(|e| format!("{} +{controller}: {e}", switch.display()))?;
        }
        Ok(())
    }
}

impl Machine {
    /// What there is now. Where nothing can be read there is nothing.
    pub fn look() -> Self {
        let read = |path: &str| fs::read(path).unwrap_or_default();
        let (mounts, own) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
        Self::parse(&String::from_utf8_lossy(&mounts), &String::from_utf8_lossy(&own))
    }

    fn parse(mounts: &str, own: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mounts.lines() {
            let Some((mount, file_system)) = line.split_once(" - ") else { continue };
            let mount: Vec<&str> = mount.split(' ').collect();
            let file_system: Vec<&str> = file_system.split(' ').collect();
            let (&[_, _, _, root, at, ..], &[kind, _, options]) =
                (mount.as_slice(), file_system.as_slice())
            else {
                continue;
            };
            // What was mounted over is there no more.
            hierarchies.retain(|known| known.at != Path::new(at));
            let options: Vec<&str> = options.split(',').collect();
            let group = own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (number, names, path) = (fields.next()?, fields.next()?, fields.next()?);
                let names: Vec<String> = names.split(',').map(str::to_owned).collect();
                match kind {
                    "cgroup2" if number == "0" => Some((None, path)),
                    "cgroup" if number != "0" => {
                        let here = names.iter().all(|name| options.contains(&name.as_str()));
                        here.then_some((Some(names), path))
                    }
                    _ => None,
                }
            });
            let Some((v1, path)) = group else { continue };
            // A mount may show a part of the hierarchy, and a process may be outside it.
            let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            let plain = below.components().all(|c| matches!(c, std::path::Component::Normal(_)));
            let at = PathBuf::from(at);
            let inside = plain && !below.as_os_str().is_empty();
            let own = if inside { at.join(below) } else { at.clone() };
            if !hierarchies.iter().any(|known| known.v1 == v1) {
                hierarchies.push(Hierarchy { at, own, v1 });
            }
        }
        Self { hierarchies }
    }

    /// Which control groups there are.
    pub fn version(&self) -> Version {
        let v2 = self.hierarchies.iter().any(Hierarchy::is_v2);
        let v1 = self.hierarchies.iter().any(|hierarchy| !hierarchy.is_v2());
        match (v1, v2) {
            (false, false) => Version::None,
            (true, false) => Version::V1,
            (true, true) => Version::Hybrid,
            (false, true) => Version::V2,
        }
    }

    /// Where the hierarchies of version 1 are, with their controllers.
    pub(crate) fn v1(&self) -> impl Iterator<Item = (&Path, &[String])> {
        self.hierarchies.iter().filter_map(|h| Some((h.at.as_path(), h.v1.as_deref()?)))
    }

    /// The hierarchy that has a controller: by version 1 where there are both, as it can be in one alone.
    pub(crate) fn with(&self, controller: &str) -> Option<&Hierarchy> {
        let has = |h: &&Hierarchy| h.controllers().iter().any(|name| name == controller);
        let (v2, v1): (Vec<_>, Vec<_>) = self.hierarchies.iter().partition(|h| h.is_v2());
        v1.into_iter().find(has).or_else(|| v2.into_iter().find(has))
    }

    /// Whether a limit of memory can be one of memory and swap together.
    pub fn counts_swap(&self) -> bool {
        self.with("memory").is_some_and(|hierarchy| match hierarchy.is_v2() {
            true => hierarchy.own.join("memory.swap.max").exists(),
            false => hierarchy.at.join("memory.memsw.limit_in_bytes").exists(),
        })
    }

    /// Where the hierarchy of version 2 is mounted beside those of version 1.
    pub(crate) fn hybrid_at(&self) -> Option<&Path> {
        let v2 = self.hierarchies.iter().find(|hierarchy| hierarchy.is_v2());
        v2.filter(|_| self.version() == Version::Hybrid).map(|hierarchy| hierarchy.at.as_path())
    }

    /// What there is, in a line, and whether memory, processors and processes can be limited by this process.
    pub fn summary(&self) -> (String, bool) {
        let version = match self.version() {
            Version::None => return ("none is mounted".to_owned(), false),
            Version::V1 => "version 1",
            Version::Hybrid => "hybrid",
            Version::V2 => "version 2",
        };
        let (mut can, mut cannot) = (Vec::new(), Vec::new());
        for controller in ["memory", "cpu", "cpuset", "pids"] {
            let place = self.with(controller).map(|hierarchy| hierarchy.parent(&[controller]));
            match place {
                Some(Ok(_)) => can.push(controller),
                _ => cannot.push(controller),
            }
        }
        let mut text = version.to_owned();
        for (what, names) in [("usable", &can), ("not usable", &cannot)] {
            if !names.is_empty() {
                text += &format!("; {what}: {}", names.join(", "));
            }
        }
        (text, cannot.is_empty())
    }
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// In one write(2), as these files demand, and never making one.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    std::io::Write::write_all(&mut fs::File::options().write(true).open(path)?, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
26 23 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
27 26 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
28 26 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
29 26 0:25 /docker/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
30 26 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 26 0:26 / /elsewhere rw - cgroup cgroup rw,memory
32 26 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 32 0:28 / /sys/fs/cgroup/pids rw - tmpfs tmpfs rw
";

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let own =
            "4:pids:/\n3:memory:/a/b\n2:cpu,cpuacct:/docker/x/y\n1:name=systemd:/\n0::/../up\n";
        let machine = Machine::parse(HYBRID, own);
        let found: Vec<_> = machine
            .hierarchies
            .iter()
            .map(|h| (h.at.to_str().expect("text"), h.own.to_str().expect("text"), h.v1.is_some()))
            .collect();
        let unified = "/sys/fs/cgroup/unified";
        assert_eq!(
            found,
            [
                // Outside of what is mounted: the top is as near as it gets.
                (unified, unified, false),
                ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd", true),
                ("/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/y", true),
                ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/a/b", true),
            ]
        );
        assert_eq!(machine.version(), Version::Hybrid);
        assert_eq!(machine.hybrid_at(), Some(Path::new(unified)));
        let of = |name| machine.with(name).map(|h| h.at.to_str().expect("text"));
        assert_eq!(of("cpuacct"), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(of("pids"), None);
    }

    #[test]
    fn versions_are_told_apart() {
        let version = |mounts: &str, own: &str| Machine::parse(mounts, own).version();
        assert_eq!(version("", "0::/\n"), Version::None);
        let v2 = "27 26 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(version(v2, "0::/\n"), Version::V2);
        let v1 = "30 26 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(version(v1, "1:memory:/\n0::/\n"), Version::V1);
        assert_eq!(Machine::parse(v2, "0::/\n").hybrid_at(), None);
    }

    #[test]
    fn a_delegated_group_is_used_where_it_gives_controllers() {
        let temp = tempfile::tempdir().expect("a directory");
        let at = temp.path().join("unified");
        let own = at.join("user/app/scope");
        fs::create_dir_all(&own).expect("directories");
        for (dir, given) in [("user", "memory pids"), ("user/app", "memory"), ("", "")] {
            fs::write(at.join(dir).join("cgroup.subtree_control"), given).expect("a file");
            fs::write(at.join(dir).join("cgroup.procs"), "").expect("a file");
        }
        fs::write(at.join("cgroup.controllers"), "cpu memory pids\n").expect("a file");
        let hierarchy = Hierarchy { at: at.clone(), own, v1: None };
        assert_eq!(hierarchy.controllers(), ["cpu", "memory", "pids"]);
        // Everything can be written here, so that the top is chosen, and its groups get the controller.
        assert_eq!(hierarchy.parent(&["pids"]), Ok(at.clone()));
        assert_eq!(words(&at.join("cgroup.subtree_control")), ["+pids"]);
        // Where the top can't give it, the nearest group that can: the own one has no such file.
        fs::remove_file(at.join("cgroup.procs")).expect("removed");
        assert_eq!(hierarchy.parent(&["memory"]), Ok(at.join("user/app")));
        fs::remove_file(at.join("user/app/cgroup.procs")).expect("removed");
        assert_eq!(hierarchy.parent(&["pids"]), Ok(at.join("user")));
        fs::remove_file(at.join("user/cgroup.procs")).expect("removed");
        assert!(hierarchy.parent(&["pids"]).expect_err("none").contains("cgroup.procs"));
    }
}
