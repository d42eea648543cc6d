//! The filter of system calls: the one that containers get, one of the caller's, and none; for the first process and for
//! those that join it.

mod scene;

use std::fs;
use std::process::Command;

use scene::{STRATA, Scene};

const STATUS: &str = "cat /proc/self/status";

fn filtered(status: &str) -> bool {
    let line = status.lines().find(|line| line.starts_with("Seccomp:")).expect("a line");
    line.ends_with('2')
}

#[test]
fn system_calls_of_the_machine_are_kept_from_containers() {
    let Some(scene) = Scene::new() else { return };
    for flags in [&[][..], &["-u", "web"], &["--security-opt", "no-new-privileges", "-u", "web"]] {
        assert!(filtered(&scene.sh(flags, STATUS)), "{flags:?}");
    }
    for flags in [&["--privileged"][..], &["--security-opt", "seccomp=unconfined"]] {
        assert!(!filtered(&scene.sh(flags, STATUS)), "{flags:?}");
    }
    // A namespace of its own is the machine's to give; with the capability it is given.
    let run = |flags: &[&str]| {
        let program = ["run", "--rm", "-v", "/usr/bin/unshare:/bin/unshare:ro"];
        let command = ["base", "unshare", "--user", "cat", "/etc/motd"];
        scene.run(&[&program[..], flags, &command].concat())
    };
    assert_eq!(run(&["--cap-add", "SYS_ADMIN"]).stdout, b"hello\n");
    let said = String::from_utf8(run(&[]).stderr).expect("text");
    assert!(said.contains("Operation not permitted"), "{said}");
}

#[test]
fn a_profile_of_the_callers_is_kept_for_starts_and_for_exec() {
    let Some(scene) = Scene::new() else { return };
    let profile = scene.temp.path().join("profile.json");
    fs::write(
        &profile,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}]}"#,
    )
    .expect("a profile");
    let option = format!("seccomp={}", profile.display());
    let flags = ["--security-opt", &option];
    let seen = scene.sh(&flags, "mkdir /made 2>&1 || echo no");
    assert!(seen.contains("Read-only file system") && seen.ends_with("no\n"), "{seen}");
    let run = ["run", "-d", "--name", "box", flags[0], flags[1], "base", "sleep", "60"];
    scene.good(&run);
    let make = ["sh", "-c", "mkdir /made 2>&1; mkdir /made2 2>/dev/null || echo no"];
    let seen = scene.good(&[&["exec", "box"], &make[..]].concat());
    assert!(seen.contains("Read-only file system") && seen.ends_with("no\n"), "{seen}");
    assert_eq!(scene.good(&[&["exec", "--privileged", "box"], &make[..]].concat()), "");
    // It was read when the container was made.
    fs::remove_file(&profile).expect("removed");
    scene.good(&["stop", "--time", "0", "box"]);
    scene.good(&["start", "box"]);
    let status = scene.good(&["exec", "box", "cat", "/proc/self/status"]);
    assert!(filtered(&status), "{status}");
    scene.good(&["rm", "--force", "box"]);

    let said = scene.bad(&["run", "--rm", "--security-opt", "seccomp=/etc/passwd", "base"]);
    assert!(said.contains("is no seccomp profile"), "{said}");
    let said = scene.bad(&["run", "--rm", "--security-opt", "selinux=off", "base"]);
    assert!(said.contains("seccomp=unconfined|FILE"), "{said}");
}

#[test]
fn what_the_caller_has_open_is_not_open_in_a_container() {
    let Some(scene) = Scene::new() else { return };
    let lock = scene.temp.path().join("lock");
    let with_more_open = |args: &[&str]| {
        let mut command = Command::new("sh");
        let script = "exec 7</ 8</etc 9>\"$LOCK\"; flock 9; exec timeout 60 \"$@\"";
        command.args(["-c", script, "sh", STRATA]).args(args);
        command.env("STRATA_ROOT", scene.temp.path().join("store")).env("LOCK", &lock);
        let output = command.output().expect("sh runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    // The last is the directory that is listed.
    let own = "0\n1\n2\n3\n";
    for backend in ["kernel", "fuse"] {
        let list = ["run", "--rm", "--backend", backend, "base", "ls", "/proc/self/fd"];
        assert_eq!(with_more_open(&list), own, "{backend}");
        // Nor is it held by what goes on in the background.
        with_more_open(&[
            "run",
            "-d",
            "--backend",
            backend,
            "--name",
            "box",
            "base",
            "sleep",
            "60",
        ]);
        assert_eq!(with_more_open(&["exec", "box", "ls", "/proc/self/fd"]), own, "{backend}");
        with_more_open(&["exec", "-d", "box", "sleep", "50"]);
        scene.good(&["rm", "-f", "box"]);
    }
}
