//! The ids that a user without privileges may give to others: ranges of /etc/subuid and /etc/subgid, which newuidmap
//! and newgidmap map.
//!
//! Source: subuid(5), newuidmap(1).

use std::fs;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// The ranges of a user, for users and for groups; none where one is missing.
pub fn of(uid: u32) -> Option<(Range, Range)> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |path: &str| range(&fs::read_to_string(Path::new(path)).ok()?, uid, &passwd);
    Some((find("/etc/subuid")?, find("/etc/subgid")?))
}

/// The longest range of the user in a file of lines `NAME-OR-UID:START:COUNT`.
fn range(text: &str, uid: u32, passwd: &str) -> Option<Range> {
    let number = uid.to_string();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then_some(name)
    });
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            (owner == number || Some(owner) == name).then_some(Range { start, count })
        })
        .filter(|range| range.count > 0 && range.start.checked_add(range.count).is_some())
        .max_by_key(|range| range.count)
}

/// Waits outside a user namespace that is to be, to map its ids.
#[derive(Debug)]
pub(crate) struct Mapper {
    child: Child,
    go: Option<ChildStdin>,
}

/// Reads until it is let go, then maps: root is the caller, everyone else comes from the ranges.
const SCRIPT: &str =
    r#"read _; newuidmap "$1" 0 "$2" 1 1 "$3" "$4" && newgidmap "$1" 0 "$5" 1 1 "$6" "$7""#;

impl Mapper {
    /// Starts it for this process; none where the machine has no such programs or no range for the user.
    pub(crate) fn start(uid: u32, gid: u32) -> Option<Self> {
        let (users, groups) = of(uid)?;
        let pid = std::process::id();
        let numbers = [pid, uid, users.start, users.count, gid, groups.start, groups.count];
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh"]).args(numbers.map(|number| number.to_string()));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let go = child.stdin.take();
        Some(Self { child, go })
    }

    /// Lets it map; whether it did.
    pub(crate) fn map(mut self) -> bool {
        drop(self.go.take());
        self.child.wait().is_ok_and(|status| status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n";
        let cases = [
            ("me:100000:65536\n", Some((100_000, 65536))),
            ("1000:5:9\nme:7:8\n", Some((5, 9))),
            ("you:100000:65536\nme:x:1\nme:1\n", None),
            ("me:4294967295:5\nme:1:0\n", None),
        ];
        for (text, want) in cases {
            let got = range(text, 1000, passwd).map(|range| (range.start, range.count));
            assert_eq!(got, want, "{text:?}");
        }
    }
}
