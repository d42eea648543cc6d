//! The configuration that containers get: the mounts, masks and capabilities of Docker's default, without its seccomp
//! filter.
//!
//! Source: runtime specification, "Default Filesystems"; `docker inspect` of a default container for masked and
//! read-only paths.

use std::path::PathBuf;

use crate::spec::{Capabilities, Linux, Mount, Namespace, NamespaceKind, Process, Root, Spec};

/// What a caller decides about a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// The machine's network, or none but a loopback that is down.
    pub host_network: bool,
    /// Whether root here is the one user of a user namespace.
    pub rootless: bool,
    /// Whether nothing of the machine is kept from it.
    pub privileged: bool,
    /// Bytes of /dev/shm; 64 MiB where nothing is said.
    pub shm_size: Option<u64>,
}

const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A container that runs `process` in `root`.
pub fn spec(process: Process, root: Root, hostname: String, choices: Choices) -> Spec {
    let mut kinds =
        vec![NamespaceKind::Pid, NamespaceKind::Mount, NamespaceKind::Ipc, NamespaceKind::Uts];
    if !choices.host_network {
        kinds.push(NamespaceKind::Network);
    }
    let linux = Linux {
        namespaces: kinds.into_iter().map(|kind| Namespace { kind }).collect(),
        masked_paths: if choices.privileged { Vec::new() } else { paths(&MASKED) },
        readonly_paths: if choices.privileged { Vec::new() } else { paths(&READ_ONLY) },
    };
    Spec {
        // Nothing here is newer, and older runtimes refuse newer numbers.
        oci_version: "1.0.2".to_owned(),
        process,
        root,
        hostname,
        mounts: mounts(choices),
        linux,
        annotations: std::collections::BTreeMap::new(),
    }
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

/// The sets of a process that may do what `names` say.
pub fn capabilities(names: Vec<String>) -> Capabilities {
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Capabilities::default()
    }
}

fn mounts(choices: Choices) -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.to_owned(),
        source: source.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    let pts: &[&str] = if choices.rootless {
        // The group of terminals, 5, is not among the ids that a user has.
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    } else {
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    };
    let write = if choices.privileged { "rw" } else { "ro" };
    // The kernel mounts sysfs only for who owns the network that it shows.
    let sys = if choices.rootless && choices.host_network {
        mount("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", write])
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", write])
    };
    let shm = format!("size={}", choices.shm_size.unwrap_or(64 << 20));
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", pts),
        sys,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    ]
}
