//! Who a name is in a root: read from its own passwd and group files, and never from outside it.
//!
//! Source: passwd(5), group(5); the image specification's `User` for the forms. CVE-2024-9676 is why the files must be
//! regular and small, and no link may lead out.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::spec::User;
use crate::{Error, Result};

/// More than this is no passwd file.
const LIMIT: u64 = 4 << 20;

/// A user, and where at home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Ids.
    pub user: User,
    /// Home directory, `/` where the container does not know the user.
    pub home: String,
    /// Name, where there is one.
    pub name: Option<String>,
}

/// Finds `wanted` (`user`, `uid`, `user:group`, `uid:gid` and mixtures; empty is root) in the root behind `root`.
///
/// # Errors
/// [`Error::NoSuchUser`]; [`Error::Step`] where a file is there and can't be read.
pub fn find(root: impl AsFd, wanted: &str) -> Result<Known> {
    let passwd = read(&root, "etc/passwd")?;
    let group = read(&root, "etc/group")?;
    resolve(wanted, &passwd, &group)
}

/// Finds a group by name or number in the root behind `root`.
///
/// # Errors
/// As [`find`].
pub fn group(root: impl AsFd, wanted: &str) -> Result<u32> {
    if let Ok(gid) = wanted.parse() {
        return Ok(gid);
    }
    // The user does not matter.
    let named = resolve(&format!("0:{wanted}"), "", &read(&root, "etc/group")?)?;
    Ok(named.user.gid)
}

fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<Known> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (uid, gid) = (uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?);
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        (name == user || number == Some(uid)).then_some((name, uid, gid, home))
    });
    let (name, uid, gid, home) = match (entry, number) {
        (Some((name, uid, gid, home)), _) => (Some(name), uid, gid, home),
        (None, Some(uid)) => (None, uid, 0, "/"),
        (None, None) => {
            let name = user.to_owned();
            return Err(Error::NoSuchUser { kind: "user", name, file: "/etc/passwd" });
        }
    };
    let groups = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?.parse::<u32>().ok()?);
        Some((name, gid, fields.next().unwrap_or("")))
    });
    let mut found = User { uid, gid, additional_gids: Vec::new() };
    match wanted_group {
        Some(wanted) => {
            found.gid = match wanted.parse() {
                Ok(gid) => gid,
                Err(_) => groups.clone().find(|(name, ..)| *name == wanted).map(|g| g.1).ok_or(
                    Error::NoSuchUser {
                        kind: "group",
                        name: wanted.to_owned(),
                        file: "/etc/group",
                    },
                )?,
            };
        }
        None => {
            for (_, gid, members) in groups {
                let ours = name.is_some_and(|name| members.split(',').any(|m| m.trim() == name));
                if ours && gid != found.gid && !found.additional_gids.contains(&gid) {
                    found.additional_gids.push(gid);
                }
            }
        }
    }
    Ok(Known { user: found, home: home.to_owned(), name: name.map(str::to_owned) })
}

/// The file's text; empty where there is none or it is not a regular file of a sane size.
fn read(root: impl AsFd, path: &'static str) -> Result<String> {
    let fail = |source| Error::step("read the container's", Path::new("/").join(path), source);
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match openat2(root, path, flags, Mode::empty(), how) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        Err(e) => return Err(fail(e)),
    };
    let stat = fstat(&file).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::from(file).take(LIMIT).read_to_end(&mut bytes);
    read.map_err(|e| fail(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:\nodd\nx:y:z\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nlog:x:4:www, root\nbad:x:n:www\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let cases = [
            ("", (0, 0, vec![4]), "/root"),
            ("www", (33, 33, vec![4]), "/var/www"),
            ("33", (33, 33, vec![4]), "/var/www"),
            ("www:0", (33, 0, vec![]), "/var/www"),
            ("www:log", (33, 4, vec![]), "/var/www"),
            ("1000", (1000, 0, vec![]), "/"),
            ("1000:1000", (1000, 1000, vec![]), "/"),
        ];
        for (wanted, (uid, gid, additional_gids), home) in cases {
            let known = resolve(wanted, PASSWD, GROUP).expect("a user");
            assert_eq!(known.user, User { uid, gid, additional_gids }, "{wanted:?}");
            assert_eq!(known.home, home, "{wanted:?}");
        }
        for wanted in ["nobody", "www:nobody", "-1", "4294967296"] {
            assert!(resolve(wanted, PASSWD, GROUP).is_err(), "{wanted:?}");
        }
    }

    #[test]
    fn links_stay_in_the_root_and_odd_files_are_no_files() {
        let temp = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(temp.path().join("etc")).expect("a directory");
        std::os::unix::fs::symlink("/elsewhere/passwd", temp.path().join("etc/passwd"))
            .expect("a link");
        std::fs::create_dir(temp.path().join("etc/group")).expect("a directory");
        let root = std::fs::File::open(temp.path()).expect("the root");
        assert!(find(&root, "root").is_err(), "the machine's own passwd must not be read");
        std::fs::create_dir(temp.path().join("elsewhere")).expect("a directory");
        std::fs::write(temp.path().join("elsewhere/passwd"), PASSWD).expect("a file");
        assert_eq!(find(&root, "www").expect("a user").user.uid, 33);
    }
}
