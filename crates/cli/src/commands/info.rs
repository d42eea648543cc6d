//! `strata info`: what this machine allows, and what to do about what it does not.

use std::fs;
use std::io::Write;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::place::Place;

/// Show what this machine allows, and what to do about what it does not
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata info --json")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Machine-readable
    #[arg(long)]
    json: bool,
}

/// One thing that matters.
#[derive(Debug, Serialize)]
pub(super) struct Fact {
    pub name: &'static str,
    pub works: bool,
    pub detail: String,
    /// What would make it work, and what is lost until then.
    pub advice: Option<&'static str>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut facts = facts();
    facts.push(project_quota(&args.place.root()?));
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &facts)?;
        writeln!(out)?;
        return Ok(());
    }
    for fact in &facts {
        let works = if fact.works { "yes" } else { "no" };
        writeln!(out, "{:<20} {works:<4} {}", fact.name, fact.detail)?;
        if let Some(advice) = fact.advice.filter(|_| !fact.works) {
            writeln!(out, "{:<25} {advice}", "")?;
        }
    }
    Ok(())
}

/// What matters on this machine.
pub(super) fn facts() -> Vec<Fact> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = version(&kernel);
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let root = rustix::process::geteuid().is_root();
    let first_namespace = first_user_namespace();
    let number = |path: &str| first_number(path);
    let uring_allowed = number("/proc/sys/kernel/io_uring_disabled") != Some(2);
    let openat2 = rustix::fs::openat2(
        CWD,
        "/",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    );
    let overlay = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let overlay = overlay.lines().any(|line| line.trim().ends_with("overlay"));
    let userns = number("/proc/sys/user/max_user_namespaces").unwrap_or(0) > 0
        && number("/proc/sys/kernel/unprivileged_userns_clone") != Some(0)
        && number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") != Some(1);
    let helper = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|dir| dir.join("fusermount3")).find(|file| file.exists())
    });
    let files = getrlimit(Resource::Nofile).maximum;
    let (groups, limits) = runtime::cgroup::Machine::look().summary();
    let pages = number("/proc/sys/fs/fuse/max_pages_limit").unwrap_or(256);
    vec![
        Fact {
            name: "kernel",
            works: version >= (5, 10),
            detail: kernel,
            advice: Some("Strata needs Linux 5.10 or newer."),
        },
        Fact {
            name: "fuse",
            works: device.is_ok(),
            detail: device
                .map_or_else(|e| format!("/dev/fuse: {e}"), |_| "/dev/fuse opens".to_owned()),
            advice: Some("modprobe fuse; in a container, pass /dev/fuse into it."),
        },
        Fact {
            name: "fuse over io_uring",
            works: fuse::uring_enabled() && uring_allowed,
            detail: format!("enabled: {}, allowed: {uring_allowed}", fuse::uring_enabled()),
            advice: Some(
                "As root: echo Y > /sys/module/fuse/parameters/enable_uring (Linux 6.14); \
                 sysctl kernel.io_uring_disabled=0. Until then a request takes twice the time.",
            ),
        },
        Fact {
            name: "fuse passthrough",
            works: version >= (6, 9) && root && first_namespace,
            detail: format!(
                "Linux 6.9: {}, privileged: {}",
                version >= (6, 9),
                root && first_namespace
            ),
            advice: Some(
                "Needs Linux 6.9 and root outside user namespaces; reads go through Strata.",
            ),
        },
        Fact {
            name: "fuse request size",
            works: pages >= 256,
            detail: format!("{} KiB at most", pages * 4),
            advice: Some("sysctl fs.fuse.max_pages_limit=256"),
        },
        Fact {
            name: "fusermount3",
            works: helper.is_some() || root,
            detail: helper
                .map_or_else(|| "not in PATH".to_owned(), |path| path.display().to_string()),
            advice: Some("Install fuse3, to mount without privileges outside a user namespace."),
        },
        Fact {
            name: "openat2",
            works: openat2.is_ok(),
            detail: openat2
                .map_or_else(|e| e.to_string(), |_| "names stay in their layer".to_owned()),
            advice: Some("Allow openat2 in the seccomp profile; nothing is mounted without it."),
        },
        Fact {
            name: "trusted attributes",
            works: root && first_namespace,
            detail: format!("privileged: {}", root && first_namespace),
            advice: Some("Mount with -o userxattr: marks then live in user.overlay.*."),
        },
        Fact {
            name: "overlayfs",
            works: overlay,
            detail: "Linux's own, which mounts our upper layers".to_owned(),
            advice: Some("modprobe overlay, where that is wanted; Strata does without."),
        },
        Fact {
            name: "user namespaces",
            works: userns,
            detail: format!("for users without privileges; we are in the first: {first_namespace}"),
            advice: Some(
                "sysctl user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1 \
                 kernel.apparmor_restrict_unprivileged_userns=0, as far as they exist.",
            ),
        },
        Fact {
            name: "control groups",
            works: limits,
            detail: groups,
            advice: Some(
                "Only --memory, --cpus, --cpuset-cpus and --pids-limit need them: as root, or in a group of one's own \
                 (systemd-run --user --scope -p Delegate=yes).",
            ),
        },
        Fact {
            name: "open files",
            works: files.is_none_or(|files| files >= 65536),
            detail: files
                .map_or_else(|| "unlimited".to_owned(), |files| format!("{files} at most")),
            advice: Some("Raise the hard limit (ulimit -Hn 1048576): every open file is one here."),
        },
    ]
}

/// Whether the file system of the store in `root`, which need not be there yet, keeps limits of containers.
fn project_quota(root: &Path) -> Fact {
    let there = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let offered = containers::project::offered(there).err();
    Fact {
        name: "project quota",
        works: offered.is_none(),
        detail: offered.unwrap_or_else(|| "the store's file system keeps limits".to_owned()),
        advice: Some(
            "As root, with the store on XFS that is mounted with -o prjquota, containers with --size are shown by the \
             kernel; until then Strata counts what they write, and shows them by FUSE.",
        ),
    }
}

/// Major and minor of a kernel's release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn first_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// In the first user namespace every id is mapped to itself.
fn first_user_namespace() -> bool {
    let map = fs::read_to_string(Path::new("/proc/self/uid_map")).unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(version("odd"), (0, 0));
    }
}
