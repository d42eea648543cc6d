//! Capabilities by name.
//!
//! Source: capabilities(7); Docker's default set from its documentation, "Runtime privilege and Linux capabilities".

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::spec::Capabilities;
use crate::{Error, Result};

/// What Docker gives a container, but for `CAP_MKNOD`, as with podman: nothing here would keep a device that a container
/// has made, this machine's disk among them, from being opened.
pub const DEFAULT: [&str; 13] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All of them, each at its number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability, by full name.
pub fn all() -> Vec<String> {
    ALL.iter().map(|name| format!("CAP_{name}")).collect()
}

/// Docker's set with `add` and without `drop`, by full names; `ALL` in either is all of them.
///
/// # Errors
/// [`Error::NoSuchCapability`].
pub fn choose(add: &[String], drop: &[String]) -> Result<Vec<String>> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let bits = |names: &[String]| {
        let named = names.iter().filter(|name| !is_all(name));
        named
            .map(|name| Ok(1_u64 << number(name)?))
            .try_fold(0, |all, bit| bit.map(|bit| all | bit))
    };
    let (added, dropped) = (bits(add)?, bits(drop)?);
    let default = bits(&DEFAULT.map(str::to_owned))?;
    let base = match (add.iter().any(is_all), drop.iter().any(is_all)) {
        (true, _) => u64::MAX,
        (false, true) => 0,
        (false, false) => default,
    };
    let chosen = base & !dropped | added;
    let names = ALL.iter().enumerate().filter(|(bit, _)| chosen & 1 << bit != 0);
    Ok(names.map(|(_, name)| format!("CAP_{name}")).collect())
}

fn number(name: &str) -> Result<usize> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.iter()
        .position(|known| *known == short)
        .ok_or_else(|| Error::NoSuchCapability(name.to_owned()))
}

fn set(names: &[String]) -> Result<CapabilitySet> {
    let bits = names.iter().try_fold(0_u64, |bits, name| Ok(bits | 1 << number(name)?))?;
    Ok(CapabilitySet::from_bits_retain(bits))
}

/// Takes from this thread's bounding set all that is not in `wanted`.
pub(crate) fn bound(wanted: &Capabilities) -> Result<()> {
    let keep = set(&wanted.bounding)?;
    for (bit, name) in ALL.iter().enumerate() {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        // A kernel that does not know the capability gives an error, and has none to take.
        if !keep.contains(one)
            && rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false)
        {
            rustix::thread::remove_capability_from_bounding_set(one)
                .map_err(|e| Error::step("drop the capability", *name, e))?;
        }
    }
    Ok(())
}

/// Leaves this thread with the sets of `wanted`.
pub(crate) fn apply(wanted: &Capabilities) -> Result<()> {
    let held = rustix::thread::capabilities(None)
        .map_err(|e| Error::step("read the capabilities of", "this process", e))?;
    // What was already given up, by becoming another user, stays given up.
    let permitted = set(&wanted.permitted)? & held.permitted;
    let sets = CapabilitySets {
        effective: set(&wanted.effective)? & permitted,
        permitted,
        inheritable: set(&wanted.inheritable)? & permitted,
    };
    set_capabilities(None, sets)
        .map_err(|e| Error::step("set the capabilities of", "this process", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers() {
        for (name, want) in
            [("CAP_CHOWN", 0), ("net_raw", 13), ("SYS_ADMIN", 21), ("CAP_CHECKPOINT_RESTORE", 40)]
        {
            assert_eq!(number(name).expect("a capability"), want, "{name}");
        }
        assert!(number("CAP_FLY").is_err());
    }

    #[test]
    fn sets_are_added_to_and_taken_from() {
        let choose = |add: &[&str], drop: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
            super::choose(&owned(add), &owned(drop))
        };
        let default = choose(&[], &[]).expect("the default");
        assert_eq!(default.len(), DEFAULT.len());
        let changed = choose(&["sys_admin"], &["CAP_CHOWN"]).expect("a set");
        assert!(changed.contains(&"CAP_SYS_ADMIN".to_owned()));
        assert!(!changed.contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(choose(&["kill"], &["all"]).expect("a set"), ["CAP_KILL"]);
        assert_eq!(choose(&["ALL"], &["KILL"]).expect("a set").len(), ALL.len() - 1);
        assert!(choose(&["fly"], &[]).is_err());
    }
}
