//! The configuration that containers get: the mounts, masks and capabilities of Docker's default.
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
    /// Whether it sees the machine's processes.
    pub host_pid: bool,
    /// Whether it has the machine's shared memory and message queues.
    pub host_ipc: bool,
    /// Whether it has a control group, to be shown to it.
    pub grouped: bool,
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
    let mut kinds = vec![NamespaceKind::Mount, NamespaceKind::Uts];
    for (has, kind) in [
        (!choices.host_pid, NamespaceKind::Pid),
        (!choices.host_ipc, NamespaceKind::Ipc),
        (!choices.host_network, NamespaceKind::Network),
        (choices.grouped, NamespaceKind::Cgroup),
    ] {
        if has {
            kinds.push(kind);
        }
    }
    let linux = Linux {
        namespaces: kinds.into_iter().map(|kind| Namespace { kind }).collect(),
        masked_paths: if choices.privileged { Vec::new() } else { paths(&MASKED) },
        readonly_paths: if choices.privileged { Vec::new() } else { paths(&READ_ONLY) },
        ..Linux::default()
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
    let host = |path: &str, options: &[&str]| {
        mount(path, "bind", path, &[&["rbind", "nosuid", "noexec", "nodev"], options].concat())
    };
    // The kernel mounts sysfs only for who owns the network that it shows, and processes for who owns their namespace.
    let theirs_is_sys = choices.rootless && choices.host_network;
    let sys = if theirs_is_sys {
        host("/sys", &[write])
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", write])
    };
    let proc = if choices.rootless && choices.host_pid {
        host("/proc", &[])
    } else {
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])
    };
    let shm = format!("size={}", choices.shm_size.unwrap_or(64 << 20));
    let shm = if choices.host_ipc {
        host("/dev/shm", &[])
    } else {
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm])
    };
    let mut mounts = vec![
        proc,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", pts),
        sys,
        shm,
    ];
    // Of the namespace of who mounts it, and only for who owns that.
    if !(choices.rootless && choices.host_ipc) {
        mounts.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    }
    if choices.grouped && !theirs_is_sys {
        let options = ["nosuid", "noexec", "nodev", "relatime", write];
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &options));
    }
    mounts
}
