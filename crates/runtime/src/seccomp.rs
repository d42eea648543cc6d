//! Which system calls a container's processes may make: the filter of config.json, the one that containers get, and
//! those that people give, in Docker's form.
//!
//! The default allows what Docker's and podman's allow: every call of the table but those that reach beyond the
//! container, or into corners of the kernel that nobody's container needs. Some come with a capability, as there.
//!
//! Source: runtime specification, "Seccomp"; seccomp(2); Docker's manual, "Seccomp security profiles", for what is kept
//! from containers and with which capability it comes back.

mod filter;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub(crate) use filter::install;

/// A filter, as config.json has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// What becomes of a call that no rule is about.
    pub default_action: Action,
    /// With which error, where that is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// The machine's, and those of programs of other machines that it runs, as `SCMP_ARCH_X86`; all of them where there
    /// are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Names of seccomp(2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<Rule>,
}

impl Seccomp {
    /// The same, but files stay in their project, and directories give theirs on: by the requests and the call that their
    /// owners could change that with. Calls have conditions that more than one rule may fulfil, for runtimes that put an
    /// allowed call above what is said of its arguments.
    pub fn within_project(mut self) -> Self {
        for rule in &mut self.syscalls {
            rule.names.retain(|name| !matches!(name.as_str(), "ioctl" | "file_setattr"));
        }
        // The kernel reads 32 bits of a request. What is no forbidden one differs from all of them from some bit on.
        let mut forbidden = sys::project::SET_FLAGS.to_vec();
        forbidden.push(sys::project::SET_ATTRIBUTES);
        for bit in (0..32).rev().map(|bit| 1_u32 << bit) {
            let above = !(bit | (bit - 1));
            let others: BTreeSet<u32> =
                forbidden.iter().map(|request| (request & (above | bit)) ^ bit).collect();
            for other in others {
                if forbidden.iter().any(|request| request & (above | bit) == other) {
                    continue;
                }
                let (value, value_two) = ((above | bit).into(), other.into());
                let args = vec![Argument { index: 1, value, value_two, op: Operator::MaskedEqual }];
                let (names, action) = (vec!["ioctl".to_owned()], Action::Allow);
                self.syscalls.push(Rule { names, action, errno_ret: None, args });
            }
        }
        self
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The process ends.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// The thread ends.
    #[serde(rename = "SCMP_ACT_KILL_THREAD", alias = "SCMP_ACT_KILL")]
    KillThread,
    /// SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// An error.
    #[default]
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// A tracer decides.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// It is made, and the kernel logs it.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// It is made.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
}

/// What becomes of some calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Their names.
    #[serde(default)]
    pub names: Vec<String>,
    /// What becomes of them.
    pub action: Action,
    /// With which error, where that is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Only with arguments of which all of this holds.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

/// What holds for an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// Which, from 0.
    pub index: u32,
    /// What it is compared with.
    pub value: u64,
    /// With [`Operator::MaskedEqual`] what is left of it by the mask `value`.
    #[serde(default)]
    pub value_two: u64,
    /// How it is compared.
    pub op: Operator,
}

/// How numbers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// Not equal.
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// Less.
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// Less or equal.
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// Equal.
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// Greater or equal.
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// Greater.
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// Equal in some bits.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

fn or_null<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// What only root of the machine does, or reaches into the kernel further than containers do, and the capability with
/// which it comes all the same.
const KEPT: [(&str, &[&str]); 15] = [
    // Never: keys are no namespace's, io_uring passes by filters, the rest is old or the machine's.
    (
        "",
        &[
            "_sysctl",
            "add_key",
            "create_module",
            "get_kernel_syms",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "kexec_file_load",
            "kexec_load",
            "keyctl",
            "migrate_pages",
            "move_pages",
            "nfsservctl",
            "pivot_root",
            "query_module",
            "request_key",
            "swapoff",
            "swapon",
            "sysfs",
            "uselib",
            "userfaultfd",
            "ustat",
            "vm86",
            "vm86old",
        ],
    ),
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("BPF", &["bpf"]),
    ("PERFMON", &["perf_event_open"]),
    ("SYSLOG", &["syslog"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
];

/// The flags of clone(2) by which a process gets namespaces of its own.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// What personality(2) may be asked for: Linux, its 32 bits, either with a constant `uname -r`, and the present one.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// AF_VSOCK, which talks to the machine below this one.
const VSOCK: u64 = 40;

/// The filter of a container whose processes have `capabilities`, by full names.
pub fn standard(capabilities: &[String]) -> Seccomp {
    let has = |name: &str| {
        !name.is_empty() && capabilities.iter().any(|held| held.strip_prefix("CAP_") == Some(name))
    };
    let of = |with: bool| {
        let groups = KEPT.iter().filter(move |(capability, _)| has(capability) == with);
        groups.flat_map(|(_, names)| names.iter().copied())
    };
    let given: BTreeSet<&str> = of(true).collect();
    let mut kept: BTreeSet<&str> = of(false).filter(|name| !given.contains(name)).collect();
    let mut syscalls = Vec::new();
    let allow = |name: &str, args: Vec<Argument>| Rule {
        names: vec![name.to_owned()],
        action: Action::Allow,
        args,
        ..Rule::default()
    };
    let on_first = |op, value| Argument { index: 0, value, value_two: 0, op };
    if !has("SYS_ADMIN") {
        syscalls.push(allow("clone", vec![on_first(Operator::MaskedEqual, NEW_NAMESPACES)]));
        // Its flags are in memory, which no filter sees: programs fall back to clone.
        let names = vec!["clone3".to_owned()];
        let no = Rule { names, action: Action::Errno, errno_ret: Some(ENOSYS), args: Vec::new() };
        syscalls.push(no);
        kept.extend(["clone", "clone3"]);
    }
    for value in PERSONALITIES {
        syscalls.push(allow("personality", vec![on_first(Operator::Equal, value)]));
    }
    syscalls.push(allow("socket", vec![on_first(Operator::NotEqual, VSOCK)]));
    kept.extend(["personality", "socket"]);
    let names = filter::names().into_iter().filter(|name| !kept.contains(name));
    let names = names.map(str::to_owned).collect();
    syscalls.push(Rule { names, action: Action::Allow, ..Rule::default() });
    Seccomp {
        default_action: Action::Errno,
        default_errno_ret: Some(EPERM),
        architectures: filter::architectures(),
        flags: Vec::new(),
        syscalls,
    }
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// A filter as people write it: Docker's form, which has conditions beside what config.json has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    #[serde(flatten)]
    plain: Plain,
    #[serde(default, deserialize_with = "or_null")]
    syscalls: Vec<Conditional>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Plain {
    default_action: Action,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_null")]
    architectures: Vec<String>,
    #[serde(default, deserialize_with = "or_null")]
    flags: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Conditional {
    #[serde(flatten)]
    rule: Rule,
    /// An older form of `names`.
    #[serde(default)]
    name: String,
    #[serde(default, deserialize_with = "or_null")]
    includes: Condition,
    #[serde(default, deserialize_with = "or_null")]
    excludes: Condition,
}

/// Where a rule is one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default, deserialize_with = "or_null")]
    arches: Vec<String>,
    #[serde(default, deserialize_with = "or_null")]
    caps: Vec<String>,
    #[serde(default)]
    min_kernel: String,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// [`Error::Bundle`]; [`Error::Profile`] for what is none, or asks for what there is not.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path)
            .map_err(|source| Error::Bundle { path: path.to_owned(), source })?;
        let wrong = |why: String| Error::Profile { path: path.to_owned(), why };
        let profile: Self = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        filter::program(&profile.resolve(&[])).map_err(|why| wrong(why.to_string()))?;
        Ok(profile)
    }

    /// The filter that it is on this machine, for processes that have `capabilities`, by full names.
    pub fn resolve(&self, capabilities: &[String]) -> Seccomp {
        let kernel = rustix::system::uname();
        let kernel = version(&kernel.release().to_string_lossy());
        let applies = |rule: &Conditional| {
            let here = |arches: &[String]| arches.iter().any(|arch| arch == filter::HERE);
            let held = |cap: &String| capabilities.contains(cap);
            let (with, without) = (&rule.includes, &rule.excludes);
            (with.arches.is_empty() || here(&with.arches))
                && !here(&without.arches)
                && with.caps.iter().all(held)
                && !without.caps.iter().any(held)
                && kernel >= version(&with.min_kernel)
                && (without.min_kernel.is_empty() || kernel < version(&without.min_kernel))
        };
        let rules = self.syscalls.iter().filter(|rule| applies(rule)).map(|conditional| {
            let mut rule = conditional.rule.clone();
            if !conditional.name.is_empty() {
                rule.names.push(conditional.name.clone());
            }
            rule
        });
        Seccomp {
            default_action: self.plain.default_action,
            default_errno_ret: self.plain.default_errno_ret,
            architectures: self.plain.architectures.clone(),
            flags: self.plain.flags.clone(),
            syscalls: rules.collect(),
        }
    }
}

/// The first two numbers of a kernel's version.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(filter: &Seccomp, name: &str) -> Action {
        let rules = filter.syscalls.iter().filter(|rule| rule.args.is_empty());
        let found = rules.clone().find(|rule| rule.names.iter().any(|n| n == name));
        found.map_or(filter.default_action, |rule| rule.action)
    }

    #[test]
    fn what_is_kept_comes_with_its_capability() {
        let plain = standard(&[]);
        let admin = standard(&["CAP_SYS_ADMIN".to_owned()]);
        for name in ["read", "openat2", "ptrace", "futex_wake", "landlock_restrict_self"] {
            assert_eq!(action(&plain, name), Action::Allow, "{name}");
        }
        for name in ["mount", "unshare", "bpf", "setns", "clone", "clone3"] {
            assert_eq!(action(&plain, name), Action::Errno, "{name}");
            assert_eq!(action(&admin, name), Action::Allow, "{name}");
        }
        for name in ["keyctl", "io_uring_setup", "pivot_root", "reboot", "chroot"] {
            assert_eq!(action(&admin, name), Action::Errno, "{name}");
        }
        assert_eq!(action(&standard(&["CAP_SYS_CHROOT".to_owned()]), "chroot"), Action::Allow);
        if cfg!(target_arch = "x86_64") {
            let known = filter::names();
            for name in KEPT.iter().flat_map(|(_, names)| names.iter()) {
                assert!(known.contains(name), "{name} is no system call");
            }
        }
    }

    #[test]
    fn conditions_of_a_profile_are_of_this_machine_and_container() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "archMap": [], "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}},
            {"name": "write", "action": "SCMP_ACT_ALLOW", "args": []},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.1"}},
            {"names": ["sync_file_range2"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["ppc64le"]}}
        ]}"#;
        let profile: Profile = serde_json::from_str(text).expect("a profile");
        let names = |caps: &[&str]| {
            let caps: Vec<String> = caps.iter().map(|cap| (*cap).to_owned()).collect();
            let rules = profile.resolve(&caps).syscalls;
            rules.into_iter().flat_map(|rule| rule.names).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["read", "write", "clone", "ptrace"]);
        assert_eq!(names(&["CAP_SYS_ADMIN"]), ["read", "write", "mount", "ptrace"]);
        let again = serde_json::to_string(&profile).expect("text");
        let again: Profile = serde_json::from_str(&again).expect("the same");
        assert_eq!(again.resolve(&[]), profile.resolve(&[]));
    }
}
