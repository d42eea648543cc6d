//! config.json of a bundle, as far as containers here use it.
//!
//! Source: OCI runtime specification 1.2, "Configuration" and "Linux Container Configuration".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::seccomp::Seccomp;
use crate::{Error, Result};

/// A container, as a runtime is told of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification.
    pub oci_version: String,
    /// What runs.
    pub process: Process,
    /// The file system that it sees.
    pub root: Root,
    /// Its name for itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// What is mounted in the root, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// What only Linux has.
    #[serde(default)]
    pub linux: Linux,
    /// Whatever else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A process to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Whether its three standard files are a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Who it is.
    #[serde(default)]
    pub user: User,
    /// The command, its first word looked for in `PATH` of `env`.
    #[serde(default)]
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Where it starts: absolute, in the container.
    pub cwd: String,
    /// What it may do; none at all where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// How much of everything it may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<ProcessLimit>,
    /// Whether set-user-ID programs give it nothing.
    #[serde(default)]
    pub no_new_privileges: bool,
}

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User, in the container.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// One limit of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimit {
    /// `RLIMIT_NOFILE` and the like.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it may raise the limit to.
    pub hard: u64,
    /// The limit.
    pub soft: u64,
}

/// Capabilities by name, `CAP_CHOWN`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// What can ever be gained.
    #[serde(default)]
    pub bounding: Vec<String>,
    /// What counts.
    #[serde(default)]
    pub effective: Vec<String>,
    /// What can be made to count.
    #[serde(default)]
    pub permitted: Vec<String>,
    /// What a program with inheritable file capabilities keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inheritable: Vec<String>,
    /// What every program keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<String>,
}

/// The root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
    /// Whether nothing in it changes.
    #[serde(default)]
    pub readonly: bool,
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, in the container.
    pub destination: PathBuf,
    /// Type of the file system; `bind` or nothing for a bind.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// A device, a name, or the host's path of a bind.
    #[serde(default, skip_serializing_if = "path_is_empty")]
    pub source: PathBuf,
    /// As `mount -o`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

fn path_is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// What only Linux has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    /// The namespaces that are new.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// Paths that can't be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked_paths: Vec<PathBuf>,
    /// Paths that can't be written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readonly_paths: Vec<PathBuf>,
    /// The control group, from the top of its hierarchies; none of its own where there is nothing.
    #[serde(default, skip_serializing_if = "path_is_empty")]
    pub cgroups_path: PathBuf,
    /// What the control group may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Settings of the kernel, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    /// Which system calls its processes may make; all where there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
}

/// What a control group may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<Pids>,
}

/// Limits of memory, in bytes; -1 is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Of memory and swap together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
}

/// Limits of processors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// The share that it has where others want it too; 1024 is what everybody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Microseconds of all processors together in each period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// The period, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// The processors, as `0-2,5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
}

/// A limit of processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// How many; -1 is no limit.
    pub limit: i64,
}

impl Resources {
    /// The controllers that they need.
    pub fn controllers(&self) -> Vec<&'static str> {
        let files = self.files(false);
        let mut names: Vec<&str> = files.into_iter().map(|(controller, ..)| controller).collect();
        names.dedup();
        names
    }

    /// The files that set them, in order: controller, name, value.
    ///
    /// Source: kernel `Documentation/admin-guide/cgroup-v1/` and `cgroup-v2.rst`; for a share as a weight, the
    /// runtime specification's "CPU".
    pub(crate) fn files(&self, v2: bool) -> Vec<(&'static str, &'static str, String)> {
        let mut files = Vec::new();
        let mut set = |controller, v1_name, v2_name, v1_value: String, v2_value: Option<String>| {
            let value = if v2 { v2_value.unwrap_or(v1_value) } else { v1_value };
            files.push((controller, if v2 { v2_name } else { v1_name }, value));
        };
        let most = |limit: i64| (limit < 0).then(|| "max".to_owned());
        if let Some(memory) = &self.memory {
            if let Some(limit) = memory.limit {
                let name = "memory.limit_in_bytes";
                set("memory", name, "memory.max", limit.to_string(), most(limit));
            }
            if let Some(both) = memory.swap {
                // Version 2 counts swap alone.
                let swap = most(both).or_else(|| Some((both - memory.limit?.max(0)).to_string()));
                let name = "memory.memsw.limit_in_bytes";
                set("memory", name, "memory.swap.max", both.to_string(), swap);
            }
        }
        if let Some(cpu) = &self.cpu {
            if let Some(shares) = cpu.shares {
                let weight = 1 + shares.clamp(2, 262_144).saturating_sub(2) * 9999 / 262_142;
                set(
                    "cpu",
                    "cpu.shares",
                    "cpu.weight",
                    shares.to_string(),
                    Some(weight.to_string()),
                );
            }
            if let Some(quota) = cpu.quota {
                let period = cpu.period.unwrap_or(100_000);
                if !v2 {
                    set("cpu", "cpu.cfs_period_us", "", period.to_string(), None);
                }
                let quota = most(quota).filter(|_| v2).unwrap_or_else(|| quota.to_string());
                let both = format!("{quota} {period}");
                set("cpu", "cpu.cfs_quota_us", "cpu.max", quota, Some(both));
            }
            if let Some(cpus) = &cpu.cpus {
                set("cpuset", "cpuset.cpus", "cpuset.cpus", cpus.clone(), None);
            }
        }
        if let Some(pids) = &self.pids {
            let count = most(pids.limit).unwrap_or_else(|| pids.limit.to_string());
            set("pids", "pids.max", "pids.max", count, None);
        }
        files
    }
}

/// A namespace that is new to the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Which kind.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
}

/// Kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// Process ids.
    Pid,
    /// Interfaces, addresses, ports.
    Network,
    /// Mounts.
    Mount,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Users.
    User,
    /// Control groups.
    Cgroup,
}

/// The annotation that asks our launcher for an init: a first process that only reaps and passes signals on.
pub const INIT: &str = "strata.init";

impl Spec {
    /// Reads `bundle`/config.json.
    ///
    /// # Errors
    /// [`Error::Bundle`], [`Error::Config`].
    pub fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let file =
            File::open(&path).map_err(|source| Error::Bundle { path: path.clone(), source })?;
        let spec: Self = serde_json::from_reader(BufReader::new(file))
            .map_err(|e| Error::Config { path: path.clone(), why: e.to_string() })?;
        let why = if spec.process.args.is_empty() {
            "process.args is empty: there is no command to run"
        } else if !spec.process.cwd.starts_with('/') {
            "process.cwd is not absolute"
        } else {
            return Ok(spec);
        };
        Err(Error::Config { path, why: why.to_owned() })
    }

    /// Writes `bundle`/config.json anew. Not durable: it is made again at each start.
    ///
    /// # Errors
    /// [`Error::Bundle`].
    pub fn write(&self, bundle: &Path) -> Result<()> {
        let path = bundle.join("config.json");
        let fail = |source| Error::Bundle { path: path.clone(), source };
        let mut out = BufWriter::new(File::create(&path).map_err(fail)?);
        serde_json::to_writer(&mut out, self).map_err(|e| fail(e.into()))?;
        out.flush().map_err(fail)
    }

    /// Whether the process gets new namespaces of this kind.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.linux.namespaces.iter().any(|namespace| namespace.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_files_of_either_version() {
        let resources = Resources {
            memory: Some(Memory { limit: Some(100), swap: Some(150) }),
            cpu: Some(Cpu {
                shares: Some(1024),
                quota: Some(50_000),
                cpus: Some("0".into()),
                ..Cpu::default()
            }),
            pids: Some(Pids { limit: -1 }),
        };
        let text = |v2| {
            let files = resources.files(v2).into_iter();
            files.map(|(_, name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(
            text(false),
            "memory.limit_in_bytes=100; memory.memsw.limit_in_bytes=150; cpu.shares=1024; \
             cpu.cfs_period_us=100000; cpu.cfs_quota_us=50000; cpuset.cpus=0; pids.max=max"
        );
        assert_eq!(
            text(true),
            "memory.max=100; memory.swap.max=50; cpu.weight=39; cpu.max=50000 100000; \
             cpuset.cpus=0; pids.max=max"
        );
        assert_eq!(resources.controllers(), ["memory", "cpu", "cpuset", "pids"]);
        assert!(Resources::default().controllers().is_empty());
    }
}
