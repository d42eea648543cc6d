//! Containers from an image of this machine's own files: run, changed, compared, committed, taken back, ended.

mod scene;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use scene::{STRATA, Scene, possible};

#[test]
fn a_command_runs_in_its_own_machine_and_leaves_nothing() {
    let Some(scene) = Scene::new() else { return };
    assert_eq!(scene.good(&["run", "--rm", "base"]), "hello\n", "the image's own command");
    for backend in ["kernel", "fuse"] {
        let seen = scene.sh(
            &["--backend", backend, "--hostname", "box", "-e", "X=1", "-w", "/etc/app"],
            "echo $$ $X $PWD; cat /proc/sys/kernel/hostname; ls /; cat conf; echo y > /dev/null",
        );
        assert!(seen.starts_with("1 1 /etc/app\nbox\nbin\ndev\n"), "{seen}");
        assert!(seen.ends_with("old\n"), "{seen}");
    }
    assert_eq!(scene.sh(&["-u", "web"], "id -u; id -G; echo $HOME"), "33\n33 4\n/srv\n");
    let volume = scene.temp.path().join("shared");
    fs::create_dir(&volume).expect("a directory");
    let given = format!("{}:/data", volume.display());
    scene.sh(&["-v", &given], "echo from inside > /data/file");
    assert_eq!(fs::read_to_string(volume.join("file")).expect("a file"), "from inside\n");
    let read_only = format!("{given}:ro");
    scene.sh(&["-v", &read_only], "! echo x > /data/file");
    scene.sh(&["--read-only"], "! echo x > /etc/motd; echo x > /dev/shm/x");
    let network = scene.sh(&["--network", "none"], "ls /sys/class/net");
    assert_eq!(network, "lo\n");
    for (script, code) in [("exit 7", 7), ("kill -9 $$; sleep 9", 7)] {
        let output = scene.run(&["run", "--rm", "--init", "base", "sh", "-c", script]);
        let want = if script.starts_with("exit") { code } else { 137 };
        assert_eq!(output.status.code(), Some(want), "{script}");
    }
    assert_eq!(scene.run(&["run", "--rm", "base", "nonesuch"]).status.code(), Some(127));
    assert_eq!(scene.run(&["run", "--rm", "base", "/etc/motd"]).status.code(), Some(126));
    let said = scene.bad(&["run", "--rm", "-u", "nobody", "base"]);
    assert!(said.contains("no user \"nobody\""), "{said}");
    assert!(scene.bad(&["run", "--rm", "bse"]).contains("no image"));
    assert_eq!(scene.good(&["ps", "--all", "--quiet"]), "");
    assert_eq!(scene.directories(), Vec::<PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&scene.temp.path().display().to_string()), "{mounts}");
}

const EDIT: &str = "echo new > /etc/app/conf; rm /etc/app/doomed; mkdir /srv; echo a > /srv/a; \
                    ls /etc/app";

#[test]
fn changes_are_listed_committed_and_never_shared() {
    let Some(scene) = Scene::new() else { return };
    for backend in ["kernel", "fuse"] {
        let (name, image) = (format!("c-{backend}"), format!("{backend}:2"));
        let seen =
            scene.good(&["run", "--backend", backend, "--name", &name, "base", "sh", "-ec", EDIT]);
        assert_eq!(seen, "conf\n");
        let want = "C /etc\nC /etc/app\nC /etc/app/conf\nD /etc/app/doomed\nA /srv\nA /srv/a\n";
        assert_eq!(scene.good(&["diff", &name]), want);
        let stat = scene.good(&["diff", "--stat", &name]);
        assert!(stat.ends_with("2 added, 3 changed, 1 deleted, +1 B\n"), "{stat}");
        // Another one sees nothing of it.
        assert_eq!(scene.sh(&[], "cat /etc/app/conf; ls /etc/app"), "old\nconf\ndoomed\n");
        scene.good(&["commit", &name, &image]);
        let seen = scene.good(&[
            "run",
            "--rm",
            &image,
            "sh",
            "-ec",
            "cat /etc/app/conf /srv/a /etc/motd; ls /etc/app",
        ]);
        assert_eq!(seen, "new\na\nhello\nconf\n");
        let known: serde_json::Value =
            serde_json::from_str(&scene.good(&["inspect", &name])).expect("JSON");
        assert_eq!(known["state"]["backend"], *backend);
        assert_eq!(known["state"]["exit_code"], 0);
        scene.good(&["rm", &name]);
    }
    assert!(scene.directories().is_empty());
}

#[test]
fn snapshots_are_gone_back_to_and_committed_as_layers() {
    let Some(scene) = Scene::new() else { return };
    scene.good(&["create", "--name", "box", "base", "sh", "-c", "cat /etc/motd /srv/* 2>&1"]);
    let edit = |script: &str| {
        let id = scene.good(&["inspect", "box"]);
        let known: serde_json::Value = serde_json::from_str(&id).expect("JSON");
        let upper = PathBuf::from(known["upper"].as_str().expect("a path"));
        let done = Command::new("sh").args(["-ec", script]).current_dir(upper).status();
        assert!(done.expect("sh runs").success());
    };
    edit("mkdir srv; echo one > srv/1");
    assert_eq!(scene.good(&["snapshot", "box", "first"]), "first\n");
    edit("mkdir srv; echo two > srv/2; mknod srv/1 c 0 0; mkdir etc; echo bye > etc/motd");
    assert_eq!(scene.good(&["start", "--attach", "box"]), "bye\ntwo\n");
    let want = "C /etc\nC /etc/motd\nA /srv\nA /srv/2\n";
    assert_eq!(scene.good(&["diff", "box"]), want, "of both layers together");
    scene.good(&["snapshot", "box"]);
    assert_eq!(scene.good(&["diff", "box"]), want);
    scene.good(&["commit", "box", "stacked"]);
    let seen = scene.good(&["run", "--rm", "stacked", "sh", "-c", "cat /etc/motd /srv/*"]);
    assert_eq!(seen, "bye\ntwo\n");
    scene.good(&["rollback", "box", "first"]);
    assert_eq!(scene.good(&["start", "--attach", "box"]), "hello\none\n");
    assert_eq!(scene.good(&["diff", "box"]), "A /srv\nA /srv/1\n");
    scene.good(&["rollback", "box", "s2"]);
    assert_eq!(scene.good(&["start", "--attach", "box"]), "bye\ntwo\n");
    let said = scene.bad(&["rollback", "box", "nonesuch"]);
    assert!(said.contains("box has first, s2"), "{said}");
    assert!(scene.bad(&["snapshot", "box", "first"]).contains("choose another"));
}

#[test]
fn what_runs_is_frozen_and_goes_on() {
    let Some(scene) = Scene::new() else { return };
    // A counter in two names of one file and a copy of it: at any moment that is frozen they differ by one at most.
    let script = "echo 0 > /a; rm -r /etc/app; mkdir /etc/app; echo new > /etc/app/own; i=0; \
                  while :; do i=$((i + 1)); echo $i > /a; echo $i > /b; done";
    for backend in ["kernel", "fuse"] {
        let run =
            ["run", "-d", "--init", "--backend", backend, "--name", "box", "base", "sh", "-ec"];
        scene.good(&[run.as_slice(), &[script]].concat());
        let read = |path: &str| scene.run(&["exec", "box", "cat", path]).stdout;
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while read("/b").is_empty() {
            assert!(std::time::Instant::now() < until, "it does not count");
        }
        assert_eq!(scene.good(&["snapshot", "box", "first"]), "first\n");
        assert_eq!(scene.good(&["snapshot", "box"]), "s2\n");
        assert!(scene.bad(&["snapshot", "box", "first"]).contains("choose another"));
        let before = read("/a");
        while read("/a") == before {
            assert!(std::time::Instant::now() < until, "it does not go on");
        }
        assert_eq!(scene.status("box"), "running");
        let upper = scene.directories()[0].clone();
        fs::create_dir(upper.join("snaps/left")).expect("what a crash leaves");
        scene.good(&["stop", "-t", "0", "box"]);
        scene.good(&["rollback", "box", "first"]);
        let at = scene.temp.path().join("seen");
        fs::create_dir_all(&at).expect("a directory");
        scene.good(&["mount", "box", at.to_str().expect("text")]);
        let number = |name: &str| -> u64 {
            let text = fs::read_to_string(at.join(name)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let (a, b) = (number("a"), number("b"));
        // Between the two a file is empty for a moment.
        assert!(a == b || a == b + 1 || a == 0 || b == 0, "{a} and {b}");
        let own = fs::read_dir(at.join("etc/app")).expect("a list").count();
        assert_eq!(own, 1, "the directory hides what was below it");
        scene.good(&["umount", "box"]);
        assert!(!upper.join("snaps/left").exists() && upper.join("snaps/first").exists());
        scene.good(&["rm", "box"]);
    }
}

#[test]
fn what_runs_can_be_entered_and_ended_and_the_truth_is_told() {
    let Some(scene) = Scene::new() else { return };
    let waits = "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done";
    for backend in ["kernel", "fuse"] {
        let run = ["run", "-d", "--backend", backend, "--name", "svc", "base", "sh", "-c", waits];
        let id = scene.good(&run);
        assert_eq!(id.trim().len(), 64);
        assert_eq!(scene.status("svc"), "running");
        assert!(scene.good(&["ps"]).contains("running"));
        let seen = scene.good(&["exec", "-e", "A=b", "svc", "sh", "-ec", "echo $A; cat /etc/motd"]);
        assert_eq!(seen, "b\nhello\n");
        assert_eq!(scene.good(&["exec", "-u", "web", "-w", "/etc", "svc", "id", "-u"]), "33\n");
        let output = scene.run(&["exec", "svc", "sh", "-c", "exit 5"]);
        assert_eq!(output.status.code(), Some(5));
        assert_eq!(scene.run(&["exec", "svc", "nonesuch"]).status.code(), Some(127));
        for args in [["start", "svc"], ["rm", "svc"]] {
            assert!(scene.bad(&args).contains("svc is running"), "{args:?}");
        }
        assert!(scene.bad(&["run", "--name", "svc", "base"]).contains("already"));
        scene.good(&["stop", "svc"]);
        assert_eq!(scene.good(&["wait", "svc"]), "3\n");
        assert_eq!(scene.status("svc"), "exited");
        assert!(scene.good(&["ps", "--all"]).contains("exited 3"));
        assert_eq!(scene.good(&["logs", "--tail", "1", "svc"]), "up\n");
        assert!(scene.bad(&["exec", "svc", "id"]).contains("not running"));
        // Whoever watches it is killed: nothing of it goes on, and it starts again with its data.
        scene.good(&["start", "svc"]);
        scene.good(&["exec", "svc", "sh", "-c", "echo kept > /kept"]);
        let known: serde_json::Value =
            serde_json::from_str(&scene.good(&["inspect", "svc"])).expect("JSON");
        let pid = known["state"]["pid"].as_u64().expect("a pid");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let parent = stat.split_whitespace().nth(3).expect("a parent");
        assert!(Command::new("kill").args(["-9", parent]).status().expect("kill").success());
        scene.wait("svc", "exited");
        assert!(scene.good(&["ps", "--all"]).contains("was cut off"));
        scene.good(&["start", "svc"]);
        assert_eq!(scene.good(&["exec", "svc", "cat", "/kept"]), "kept\n");
        scene.good(&["rename", "svc", "other"]);
        scene.good(&["rm", "--force", "other"]);
        assert_eq!(scene.status("other"), "none");
        assert!(scene.directories().is_empty());
    }
    // What can't start says why, at once.
    let said = scene.bad(&["run", "-d", "--name", "no", "base", "nonesuch"]);
    assert!(said.contains("did not start") && said.contains("nonesuch"), "{said}");
    let said = scene.good(&["run", "-d", "--rm", "base", "sh", "-c", "exit 0"]);
    assert_eq!(said.trim().len(), 64);
}

#[test]
fn a_tree_is_mounted_at_a_path_and_nobody_else_has_it_then() {
    let Some(scene) = Scene::new() else { return };
    let at = scene.temp.path().join("seen");
    fs::create_dir(&at).expect("a directory");
    let path = at.to_str().expect("text");
    scene.good(&["create", "--name", "box", "base", "cat", "/srv/x"]);
    for killed in [false, true] {
        assert_eq!(scene.good(&["mount", "box", path]).trim(), path);
        assert_eq!(fs::read_to_string(at.join("etc/motd")).expect("a file"), "hello\n");
        fs::create_dir_all(at.join("srv")).expect("a directory");
        fs::write(at.join("srv/x"), format!("killed: {killed}\n")).expect("a file");
        assert_eq!(scene.status("box"), "mounted");
        for args in [vec!["start", "box"], vec!["rm", "-f", "box"], vec!["mount", "box", path]] {
            assert!(scene.bad(&args).contains("box is mounted; strata umount"), "{args:?}");
        }
        assert_eq!(scene.good(&["diff", "box"]), "A /srv\nA /srv/x\n");
        if killed {
            let daemon =
                Command::new("pgrep").args(["-f", &format!("serving.*-- {path}$")]).output();
            let daemon = String::from_utf8(daemon.expect("pgrep runs").stdout).expect("text");
            assert!(
                Command::new("kill").args(["-9", daemon.trim()]).status().expect("kill").success()
            );
            scene.wait("box", "exited");
            assert!(Command::new("umount").arg(path).status().expect("umount").success());
        } else {
            scene.good(&["umount", "box"]);
        }
        assert_eq!(scene.good(&["start", "-a", "box"]), format!("killed: {killed}\n"));
    }
    assert!(scene.bad(&["umount", "box"]).contains("is not mounted"));
    assert!(scene.bad(&["mount", "bix", path]).contains("no container \"bix\""));
    let own = scene.good(&["mount", "box"]);
    assert!(fs::read_to_string(PathBuf::from(own.trim()).join("srv/x")).is_ok(), "{own}");
    scene.good(&["umount", "box"]);
    scene.good(&["rm", "box"]);
}

#[test]
fn a_container_whose_daemon_dies_ends_and_starts_again_with_its_data() {
    let Some(scene) = Scene::new() else { return };
    let waits = ["run", "-d", "--backend", "fuse", "--name", "box", "base", "sleep", "600"];
    scene.good(&waits);
    scene.good(&["exec", "box", "sh", "-c", "echo kept > /kept"]);
    let known = |key: &str| -> serde_json::Value {
        let text = scene.good(&["inspect", "box"]);
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["state"][key].clone()
    };
    let watcher = known("watcher");
    let children = format!("/proc/{watcher}/task/{watcher}/children");
    let children = fs::read_to_string(children).expect("the watcher runs");
    let serves = |pid: &&str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("--serving")
    };
    let daemon = children.split_whitespace().find(serves).expect("a daemon");
    assert!(Command::new("kill").args(["-9", daemon]).status().expect("kill").success());
    scene.wait("box", "exited");
    assert_eq!(known("exit_code"), 137);
    let why = known("why");
    assert!(why.as_str().expect("text").contains("daemon that showed them has died"), "{why}");
    scene.good(&["start", "box"]);
    assert_eq!(scene.good(&["exec", "box", "cat", "/kept"]), "kept\n");
    scene.good(&["rm", "-f", "box"]);
    // One that was to go at its end, and whose watcher was killed, goes with the next collection.
    scene.good(&["run", "-d", "--rm", "--name", "box", "base", "sleep", "600"]);
    let watcher = known("watcher").to_string();
    assert!(Command::new("kill").args(["-9", &watcher]).status().expect("kill").success());
    scene.wait("box", "exited");
    assert!(scene.good(&["gc"]).contains("1 containers that a crash has left"));
    assert!(scene.directories().is_empty());
}

#[test]
fn files_are_copied_in_and_out_of_what_runs_and_what_does_not() {
    let Some(scene) = Scene::new() else { return };
    let at = |path: &str| scene.temp.path().join(path);
    fs::create_dir_all(at("here/sub")).expect("directories");
    fs::write(at("here/file"), "mine\n").expect("a file");
    fs::write(at("here/sub/deep"), "deep\n").expect("a file");
    rustix::fs::chown(at("here/file"), Some(rustix::fs::Uid::from_raw(77)), None).expect("chown");
    let path = |name: &str| at(name).to_str().expect("text").to_owned();
    for (backend, running) in [("kernel", false), ("kernel", true), ("fuse", false), ("fuse", true)]
    {
        let flag = ["create", "--backend", backend, "--name", "box", "base", "sleep", "600"];
        scene.good(&flag);
        if running {
            scene.good(&["start", "box"]);
        }
        scene.good(&["cp", &path("here/file"), "box:/etc/motd"]);
        scene.good(&["cp", "-a", &path("here/file"), "box:/etc/app"]);
        scene.good(&["cp", &path("here"), "box:/new"]);
        scene.good(&["cp", &format!("{}/.", path("here")), "box:/etc/app"]);
        let want = "C /etc\nC /etc/app\nA /etc/app/file\nA /etc/app/sub\nA /etc/app/sub/deep\n\
                    C /etc/motd\nA /new\nA /new/file\nA /new/sub\nA /new/sub/deep\n";
        assert_eq!(scene.good(&["diff", "box"]), want, "{backend}, running: {running}");
        // A link in the container leads nowhere outside it.
        let upper = scene.directories()[0].join("upper");
        if !running {
            std::os::unix::fs::symlink(at("here"), upper.join("out")).expect("a link");
            assert!(scene.bad(&["cp", &path("here/file"), "box:/out/stolen"]).contains("find"));
            assert!(!at("here/stolen").exists());
        }
        let there = at("there");
        fs::create_dir(&there).expect("a directory");
        scene.good(&["cp", "box:/etc/app", &path("there")]);
        scene.good(&["cp", "box:/etc/motd", &path("there/renamed")]);
        let read = |name: &str| fs::read_to_string(there.join(name)).expect("a file");
        assert_eq!((read("renamed"), read("app/conf")), ("mine\n".into(), "old\n".into()));
        assert_eq!(read("app/sub/deep"), "deep\n");
        fs::remove_dir_all(&there).expect("removed");
        assert!(scene.bad(&["cp", "a", "b"]).contains("CONTAINER:PATH"));
        scene.good(&["export", "-o", &path("box.tar"), "box"]);
        let list = Command::new("tar").arg("tvf").arg(at("box.tar")).output().expect("tar");
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        for want in ["etc/app/sub/deep", "etc/motd", "new/file", "etc/app/doomed"] {
            assert!(list.lines().any(|line| line.ends_with(want)), "{want} is not in\n{list}");
        }
        assert!(!list.contains("proc/self"), "{list}");
        scene.good(&["rm", "-f", "box"]);
    }
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&scene.temp.path().display().to_string()), "{mounts}");
}

#[test]
fn a_limit_of_size_is_exact_and_survives_a_stop() {
    let Some(scene) = Scene::new() else { return };
    let fill = "cat /dev/zero > /full; ls -l /full; rm /full; echo fits > /kept; cat /kept";
    let flags = ["create", "--size", "1m", "--name", "box", "base", "sh", "-c", fill];
    scene.good(&flags);
    for _ in 0..2 {
        let output = scene.run(&["start", "--attach", "box"]);
        let said = String::from_utf8(output.stdout).expect("text");
        let size: u64 = said
            .split_whitespace()
            .nth(4)
            .and_then(|size| size.parse().ok())
            .unwrap_or_else(|| panic!("no size: {said}"));
        assert!((900 << 10..=1 << 20).contains(&size), "{said}");
        assert!(said.ends_with("fits\n"), "what was freed can be used: {said}");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(complaint.contains("No space left"), "{complaint}");
    }
    let known: serde_json::Value =
        serde_json::from_str(&scene.good(&["inspect", "box"])).expect("JSON");
    assert_eq!(known["state"]["backend"], "fuse");
    assert!(known["state"]["why"].as_str().expect("text").contains("limit of size"));
    assert!(scene.bad(&["run", "--size", "1x", "base"]).contains("k, m, g or t"));
    let both = ["run", "--rm", "--size", "1m", "--backend", "kernel", "base"];
    assert!(scene.bad(&both).contains("--backend fuse"));
}

#[test]
fn a_terminal_is_one_on_both_sides() {
    let Some(scene) = Scene::new() else { return };
    // script(1) gives us a terminal.
    let store = scene.temp.path().join("store");
    let inner = format!(
        "STRATA_ROOT={} {STRATA} run --rm -it base sh -c 'test -t 0 && read x && echo got $x'",
        store.display()
    );
    let mut command = Command::new("script");
    command.args(["-qec", &inner, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        eprintln!("SKIPPED: no script(1)");
        return;
    };
    std::io::Write::write_all(child.stdin.as_mut().expect("stdin"), b"word\n").expect("a write");
    let output = child.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("got word"), "{said}");
}

#[test]
fn other_runtimes_run_the_same_bundle() {
    let Some(scene) = Scene::new() else { return };
    for runtime in ["crun", "runc"] {
        if Command::new(runtime).arg("--version").output().is_err() {
            eprintln!("SKIPPED: no {runtime}");
            continue;
        }
        let args = ["run", "--rm", "--runtime", runtime, "-u", "web", "base"];
        let output = scene.run(&[&args[..], &["sh", "-ec", "id -u; cat /etc/motd"]].concat());
        if String::from_utf8_lossy(&output.stderr).contains("hybrid mode not supported") {
            // No container runs with it on a machine with control groups of both versions.
            eprintln!("SKIPPED: {runtime} refuses this machine's control groups");
            continue;
        }
        assert_eq!(output.stdout, b"33\nhello\n", "{runtime}");
    }
    assert!(scene.bad(&["run", "--runtime", "nonesuch", "base"]).contains("no runtime"));
}

#[test]
fn the_demonstration_works_and_leaves_nothing_with_and_without_privileges() {
    if !possible() {
        return;
    }
    let temp = tempfile::tempdir().expect("a directory");
    let at = |path: &str| temp.path().join(path);
    fs::create_dir(at("tmp")).expect("a directory");
    fs::copy(STRATA, at("strata")).expect("a copy");
    for user in ["0", "1000"] {
        let script = r#"
            chmod 755 "$TEMP"; chown -R "$WHO:$WHO" "$TEMP/tmp"; cd /
            TMPDIR="$TEMP/tmp" exec timeout 120 \
                setpriv --reuid "$WHO" --regid "$WHO" --clear-groups "$TEMP/strata" demo
        "#;
        let mut command = Command::new("sh");
        command.args(["-ec", script]).env("TEMP", temp.path()).env("WHO", user);
        let output = command.output().expect("sh runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}\n{complaint}");
        for want in [
            "the base layer is there once",
            "listen 8080; } }\n   $ strata exec two",
            "index.html: a device 0:0, which says: deleted",
            "D /usr/share/nginx/html/index.html",
            "3 layers, 2 of them those of web:1",
            "nothing is left of it",
        ] {
            assert!(said.contains(want), "{want:?} is not in\n{said}");
        }
        assert_eq!(fs::read_dir(at("tmp")).expect("a list").count(), 0);
    }
}
