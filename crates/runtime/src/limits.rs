//! Limits of a process, by name.
//!
//! Source: runtime specification, "POSIX process", `rlimits`; getrlimit(2).

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::spec::ProcessLimit;
use crate::{Error, Result};

const ALL: [(&str, Resource); 16] = [
    ("AS", Resource::As),
    ("CORE", Resource::Core),
    ("CPU", Resource::Cpu),
    ("DATA", Resource::Data),
    ("FSIZE", Resource::Fsize),
    ("LOCKS", Resource::Locks),
    ("MEMLOCK", Resource::Memlock),
    ("MSGQUEUE", Resource::Msgqueue),
    ("NICE", Resource::Nice),
    ("NOFILE", Resource::Nofile),
    ("NPROC", Resource::Nproc),
    ("RSS", Resource::Rss),
    ("RTPRIO", Resource::Rtprio),
    ("RTTIME", Resource::Rttime),
    ("SIGPENDING", Resource::Sigpending),
    ("STACK", Resource::Stack),
];

/// The name that the specification has for a limit that people call `nofile`, or by that name itself.
///
/// # Errors
/// [`Error::NoSuchLimit`].
pub fn name(given: &str) -> Result<String> {
    find(given).map(|(name, _)| format!("RLIMIT_{name}"))
}

fn find(given: &str) -> Result<(&'static str, Resource)> {
    let upper = given.to_ascii_uppercase();
    let short = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
    let found = ALL.into_iter().find(|(name, _)| *name == short);
    found.ok_or_else(|| Error::NoSuchLimit(given.to_owned()))
}

/// Gives this process the limits.
pub(crate) fn apply(limits: &[ProcessLimit]) -> Result<()> {
    for limit in limits {
        let (_, resource) = find(&limit.kind)?;
        // All bits set is no limit, here and in the specification.
        let amount = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Rlimit { current: amount(limit.soft), maximum: amount(limit.hard) };
        setrlimit(resource, wanted).map_err(|e| Error::step("set the limit", &limit.kind, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_names() {
        assert_eq!(name("nofile").expect("a limit"), "RLIMIT_NOFILE");
        assert_eq!(name("RLIMIT_CORE").expect("a limit"), "RLIMIT_CORE");
        assert!(name("files").is_err());
    }
}
