//! The daemon and the names by which it is called: mounted when the caller returns, gone when told to.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

struct Layers(tempfile::TempDir);

impl Layers {
    /// A lower layer with a file; none, with a word, where FUSE can't be mounted.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "needs root and /dev/fuse");
            eprintln!("SKIPPED: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        fs::write(dir.path().join("lower/file"), "text").expect("a file");
        Some(Self(dir))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the program under `name` in the directory of the layers.
    fn run(&self, name: &str, args: &[&str]) -> Output {
        let program = self.at(name);
        if !program.exists() {
            symlink(env!("CARGO_BIN_EXE_strata"), &program).expect("a name");
        }
        let mut command = Command::new(program);
        command.args(args).current_dir(self.0.path()).output().expect("it runs")
    }

    fn mounted(&self, place: &str) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        mounts.contains(&format!(" {} fuse.", self.at(place).display()))
    }

    /// Unmounts as umount(8) does. A process that another test is about to start has, for a moment, what is open here:
    /// then once more.
    fn umount(&self, place: &str) {
        let begun = Instant::now();
        while self.mounted(place) {
            let output = Command::new("umount").arg(self.at(place)).output().expect("umount");
            let patient = begun.elapsed() < Duration::from_secs(20);
            assert!(output.status.success() || patient, "{place}: {output:?}");
        }
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for place in ["merged", "upper", "lower", "lower/inside"] {
            if self.mounted(place)
                && let Err(error) = fuse::mount::unmount(&self.at(place), true)
            {
                eprintln!("cannot unmount: {error}");
            }
        }
    }
}

const RELATIVE: &str = "lowerdir=lower,upperdir=upper,workdir=work";

#[test]
fn it_returns_when_the_mount_serves_and_umount_ends_it() {
    let Some(layers) = Layers::new() else { return };
    for (name, args) in [
        ("strata", &["mount", "-o", RELATIVE, "merged"][..]),
        ("fuse-overlayfs", &["-o", RELATIVE, "merged"]),
        ("mount.fuse.strata", &["none", "merged", "-n", "-o", "rw", "-o", RELATIVE]),
        // As mount.fuse3 runs it for the type fuse.strata.
        ("strata", &["none", "merged", "-o", RELATIVE]),
    ] {
        let output = layers.run(name, args);
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        assert_eq!(fs::read_to_string(layers.at("merged/file")).expect("a file"), "text");
        fs::write(layers.at("merged/new"), name).expect("a write");
        layers.umount("merged");
        // Mounted again at once: the daemon may still be about to end.
        assert_eq!(fs::read_to_string(layers.at("upper/new")).expect("a file"), name);
    }
}

#[test]
fn the_daemon_holds_nothing_that_its_caller_has_open() {
    let Some(layers) = Layers::new() else { return };
    let script = "exec 9>lock; flock 9; exec \"$0\" mount -o \"$1\" merged";
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_strata"), RELATIVE]);
        command.current_dir(layers.0.path()).status().expect("sh runs").success()
    };
    assert!(shell(script) && layers.mounted("merged"));
    // Another test may have what is open here open for a moment, as it starts a process.
    assert!(shell("flock -w 20 lock true"), "the lock is held");
    layers.umount("merged");
}

#[test]
fn what_fails_leaves_no_mount_and_one_line() {
    let Some(layers) = Layers::new() else { return };
    let mounted = layers.run("strata", &["mount", "-o", RELATIVE, "merged"]);
    assert!(mounted.status.success());
    fs::create_dir(layers.at("other")).expect("a directory");
    for options in [RELATIVE, "lowerdir=missing", "lowerdir=lower,upperdir=upper"] {
        let output = layers.run("fuse-overlayfs", &["-o", options, "other"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{options}: {said}");
        assert_eq!(said.lines().count(), 1, "{options}: {said}");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        assert!(!mounts.contains(&layers.at("other").display().to_string()));
    }
}

#[test]
fn sigterm_unmounts() {
    let Some(layers) = Layers::new() else { return };
    let program = env!("CARGO_BIN_EXE_strata");
    let mut child = Command::new(program)
        .args(["mount", "-f", "-o", RELATIVE, "merged"])
        .current_dir(layers.0.path())
        .spawn()
        .expect("strata");
    let begun = Instant::now();
    while !layers.at("merged/file").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not mount");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    assert!(child.wait().expect("it ends").success());
    assert!(!layers.mounted("merged"));
}

#[test]
fn the_name_answers_for_its_version() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("fuse-overlayfs");
    symlink(env!("CARGO_BIN_EXE_strata"), &program).expect("a name");
    let output = Command::new(program).arg("--version").output().expect("it runs");
    assert!(output.stdout.starts_with(b"fuse-overlayfs: version"), "{output:?}");
}

#[test]
fn it_mounts_over_and_inside_its_own_layers_but_not_inside_the_upper() {
    let Some(layers) = Layers::new() else { return };
    fs::create_dir(layers.at("lower/inside")).expect("a directory");
    fs::create_dir(layers.at("upper/inside")).expect("a directory");
    for place in ["lower/inside", "lower", "upper"] {
        let output = layers.run("strata", &["mount", "-o", RELATIVE, place]);
        assert!(output.status.success(), "{place}: {output:?}");
        let mount = fs::canonicalize(layers.at(place)).expect("the mountpoint");
        assert_eq!(fs::read_to_string(mount.join("file")).expect("a file"), "text");
        assert!(fs::read_dir(mount.join("inside")).expect("a directory").next().is_none());
        layers.umount(place);
    }
    let output = layers.run("strata", &["mount", "-o", RELATIVE, "upper/inside"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("choose one outside"), "{said}");
}

/// As mount(8) and mount.fuse3 call it, who hand over every option that the mount has.
#[test]
fn a_remount_makes_it_read_only_and_back() {
    let Some(layers) = Layers::new() else { return };
    let mounted = layers.run("strata", &["mount", "-o", RELATIVE, "-o", "nosuid", "merged"]);
    assert!(mounted.status.success(), "{mounted:?}");
    let mut file = fs::File::create(layers.at("merged/open")).expect("a file");
    let read_only = ["strata", "merged", "-o", "rw,nosuid,user_id=0,remount,ro"];
    let output = layers.run("strata", &read_only);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("busy"), "open for writing: {said}");
    file.write_all(b"kept").expect("a write");
    drop(file);
    // FUSE releases a file a moment after its last close(2).
    let begun = Instant::now();
    while !layers.run("strata", &read_only).status.success() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it stays busy");
    }
    let refused = fs::write(layers.at("merged/open"), "other").expect_err("it is read-only");
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    assert_eq!(fs::read_to_string(layers.at("merged/open")).expect("a file"), "kept");
    let back = layers.run("mount.fuse.strata", &["strata", "merged", "-o", "remount,rw"]);
    assert!(back.status.success(), "{back:?}");
    fs::write(layers.at("merged/open"), "other").expect("a write");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let line = mounts.lines().find(|line| line.contains(&*layers.at("merged").to_string_lossy()));
    assert!(line.is_some_and(|line| line.contains("nosuid")), "a flag is lost: {line:?}");
    layers.umount("merged");
    let output = layers.run("strata", &["mount", "-o", "remount,ro", "merged"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("no mount of Strata's"), "{said}");
}

/// Both ways: neither Strata nor the kernel takes an upper layer that the other left volatile.
#[test]
fn a_volatile_upper_is_refused_afterwards_as_the_kernel_refuses_it() {
    let Some(layers) = Layers::new() else { return };
    let kernel = |options: &str| {
        let options = format!("{RELATIVE}{options}");
        let args = ["-t", "overlay", "overlay", "-o", &options, "merged"];
        let output = Command::new("mount").args(args).current_dir(layers.0.path()).output();
        output.expect("mount").status.success()
    };
    let strata = |options: &str| {
        let output = layers.run("strata", &["mount", "-o", RELATIVE, "-o", options, "merged"]);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mark = layers.at("work/work/incompat/volatile");
    // What does not mount leaves no mark.
    let nowhere = "lowerdir=missing,upperdir=upper,workdir=work,volatile";
    assert!(!layers.run("strata", &["mount", "-o", nowhere, "merged"]).status.success());
    assert!(!mark.exists());
    for by_kernel in [false, true] {
        if by_kernel {
            assert!(kernel(",volatile"));
            let gone = Command::new("umount").arg(layers.at("merged")).status();
            assert!(gone.expect("umount").success());
        } else {
            let (mounted, said) = strata("volatile");
            assert!(mounted, "{said}");
            layers.umount("merged");
        }
        assert!(mark.join("dirty").exists());
        for options in ["", ",volatile"] {
            assert!(!kernel(options), "the kernel takes it");
            let (mounted, said) = strata(options);
            assert!(!mounted && said.contains("remove") && said.lines().count() == 1, "{said}");
        }
        // The way out, which is the same for both.
        fs::remove_dir_all(&mark).expect("it is removed");
        assert!(strata("rw").0);
        layers.umount("merged");
    }
}
