//! config.json of a bundle, as far as containers here use it.
//!
//! Source: OCI runtime specification 1.2, "Configuration" and "Linux Container Configuration".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
