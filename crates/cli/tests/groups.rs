//! What containers may use together, and what of the machine they share: by our launcher and by other runtimes.

mod scene;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use scene::{STRATA, Scene};

/// Flags of each runtime that is here.
fn runtimes() -> Vec<Vec<&'static str>> {
    let mut all = vec![Vec::new()];
    for name in ["crun", "runc"] {
        if Command::new(name).arg("--version").output().is_ok() {
            all.push(vec!["--runtime", name]);
        } else {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "{name} is not installed");
            eprintln!("SKIPPED: {name} is not installed");
        }
    }
    all
}

/// The directories of control groups that are those of a container with this id.
fn groups(id: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let at =
        fields.filter(|fields| fields[2].starts_with("cgroup")).map(|fields| fields[1].to_owned());
    at.map(|at| Path::new(&at).join(format!("strata-{id}"))).filter(|dir| dir.exists()).collect()
}

fn can_limit() -> bool {
    let (what, can) = runtime::cgroup::Machine::look().summary();
    if !can {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "control groups: {what}");
        eprintln!("SKIPPED: control groups: {what}");
    }
    can
}

#[test]
fn limits_are_kept_and_nothing_of_a_group_is_left() {
    let Some(scene) = Scene::new() else { return };
    if !can_limit() {
        return;
    }
    // In memory, so that it counts as the container's, whatever shows its files.
    let fill = "cat /dev/zero > /dev/shm/full";
    for runtime in runtimes() {
        let run = |flags: &[&str], script: &str| {
            let all = [&["run"], runtime.as_slice(), flags, &["base", "sh", "-c", script]].concat();
            scene.run(&all)
        };
        let memory =
            ["--name", "box", "--memory", "32m", "--memory-swap", "32m", "--shm-size", "1g"];
        let output = run(&memory, fill);
        assert_eq!(output.status.code(), Some(137), "{runtime:?}");
        let known: serde_json::Value =
            serde_json::from_str(&scene.good(&["inspect", "box"])).expect("JSON");
        if runtime.is_empty() {
            assert_eq!(known["state"]["out_of_memory"], true);
        }
        scene.good(&["rm", "box"]);
        let forks = "for i in 1 2 3 4 5 6 7 8; do sleep 0.2 & done; wait";
        let output = run(&["--rm", "--pids-limit", "4"], forks);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("fork"), "{runtime:?}: {said}");
        // It sees its limits where programs look for them.
        let seen = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids/pids.max \
                    /sys/fs/cgroup/cpu*/cpu.cfs_quota_us 2>/dev/null";
        let output = run(&["--rm", "--pids-limit", "44", "--cpus", "0.5"], seen);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("44\n") && said.contains("50000"), "{runtime:?}: {said}");
        // What enters it is in its group; whoever watches it is killed, and the group goes with a collection.
        let script = "sleep 600 & sleep 601";
        let id = run(&["-d", "--name", "box", "--pids-limit", "44", "--pid", "host"], script);
        let id = String::from_utf8(id.stdout).expect("text").trim().to_owned();
        let own = |args: &[&str]| scene.good(&[&["exec", "box"], args].concat());
        let seen = own(&["sh", "-c", "ls /proc"]);
        let this = std::process::id().to_string();
        assert!(seen.lines().any(|line| line == this), "the machine's processes: {seen}");
        assert!(!groups(&id).is_empty());
        let known: serde_json::Value =
            serde_json::from_str(&scene.good(&["inspect", "box"])).expect("JSON");
        let watcher = known["state"]["watcher"].to_string();
        assert!(Command::new("kill").args(["-9", &watcher]).status().expect("kill").success());
        scene.wait("box", "exited");
        scene.good(&["gc"]);
        assert_eq!(groups(&id), Vec::<PathBuf>::new(), "{runtime:?}");
        scene.good(&["start", "box"]);
        scene.good(&["rm", "--force", "box"]);
        assert_eq!(groups(&id), Vec::<PathBuf>::new(), "{runtime:?}");
    }
    let said = scene.bad(&["create", "--memory", "1m", "--cgroups", "disabled", "base"]);
    assert!(said.contains("forbids"), "{said}");
    scene.bad(&["run", "--rm", "--cpuset-cpus", "4000", "base"]);
    assert!(scene.directories().is_empty(), "also where it does not start");
}

#[test]
fn a_limit_that_cannot_be_kept_is_refused() {
    if !scene::possible() {
        return;
    }
    // A user of whom nothing is, and whose no group is.
    let temp = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let strata = temp.path().join("strata");
    fs::copy(STRATA, &strata).expect("a copy where everybody may look");
    let (user, group) = (rustix::fs::Uid::from_raw(65534), rustix::fs::Gid::from_raw(65534));
    rustix::fs::chown(temp.path(), Some(user), Some(group)).expect("chown");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&strata)
        .args(["run", "--memory", "1g", "--cpus", "1", "base"])
        .env("STRATA_ROOT", temp.path().join("store"))
        .output();
    let said = String::from_utf8(output.expect("setpriv runs").stderr).expect("text");
    assert!(said.contains("can't be limited") && said.contains("Delegate=yes"), "{said}");
}

#[test]
fn a_container_of_another_runtime_ends_with_who_watches_it() {
    let Some(scene) = Scene::new() else { return };
    for runtime in runtimes() {
        let wait = ["-d", "--name", "box", "base", "sh", "-c", "sleep 602 & sleep 603"];
        scene.good(&[&["run"], runtime.as_slice(), &wait].concat());
        assert_eq!(scene.good(&["exec", "box", "cat", "/etc/motd"]), "hello\n", "{runtime:?}");
        let known: serde_json::Value =
            serde_json::from_str(&scene.good(&["inspect", "box"])).expect("JSON");
        let of = |key: &str| known["state"][key].to_string();
        assert!(
            Command::new("kill").args(["-9", &of("watcher")]).status().expect("kill").success()
        );
        scene.wait("box", "exited");
        let process = PathBuf::from("/proc").join(of("pid")).join("root");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while process.read_link().is_ok() {
            assert!(std::time::Instant::now() < until, "{runtime:?}: it goes on");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        scene.good(&["start", "box"]);
        assert_eq!(scene.good(&["exec", "box", "cat", "/etc/motd"]), "hello\n", "{runtime:?}");
        scene.good(&["rm", "--force", "box"]);
    }
}

#[test]
fn what_is_shared_with_the_machine_and_what_is_not() {
    let Some(scene) = Scene::new() else { return };
    for runtime in runtimes() {
        let sh = |flags: &[&str], script: &str| {
            let all = [runtime.as_slice(), flags].concat();
            scene.sh(&all, script)
        };
        let own = fs::read_link("/proc/self/ns/ipc").expect("a namespace");
        let own = own.to_str().expect("text");
        let ipc = "cat /proc/self/mounts | while read a b c; do [ $b != /dev/shm ] || echo $c; done; ls -l /proc/self/ns/ipc";
        assert!(sh(&["--ipc", "host"], ipc).contains(own), "{runtime:?}");
        assert!(!sh(&[], ipc).contains(own), "{runtime:?}");
        let set = [
            "--sysctl",
            "kernel.shmmni=77",
            "--network",
            "none",
            "--sysctl",
            "net.ipv4.ip_forward=1",
        ];
        let read = "cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward";
        assert_eq!(sh(&set, read), "77\n1\n", "{runtime:?}");
        let hosts = sh(
            &["--add-host", "other:10.1.2.3", "--dns", "10.9.9.9"],
            "cat /etc/hosts /etc/resolv.conf",
        );
        assert!(hosts.contains("localhost") && hosts.contains("10.1.2.3 other\n"), "{hosts}");
        assert!(hosts.ends_with("nameserver 10.9.9.9\n"), "{hosts}");
    }
    assert_ne!(fs::read_to_string("/proc/sys/kernel/shmmni").expect("a number").trim(), "77");
    let said = scene.bad(&["run", "--restart", "always", "base"]);
    assert!(said.contains("strata start --attach"), "{said}");
    assert!(scene.bad(&["run", "--sysctl", "vm.swappiness=1", "base"]).contains("machine"));
}

#[test]
fn a_volume_begins_as_the_image_has_it_and_outlives_its_containers() {
    let Some(scene) = Scene::new() else { return };
    let volume = ["-v", "data:/etc/app"];
    assert_eq!(scene.sh(&volume, "cat /etc/app/conf; echo new > /etc/app/conf"), "old\n");
    // Not anew, and not into the image.
    assert_eq!(scene.sh(&volume, "cat /etc/app/conf; rm /etc/app/doomed"), "new\n");
    assert_eq!(
        scene.sh(&["--mount", "src=data,dst=/srv,ro"], "ls /srv; ! echo x > /srv/x"),
        "conf\n"
    );
    assert_eq!(scene.sh(&[], "cat /etc/app/conf; ls /etc/app"), "old\nconf\ndoomed\n");
    scene.good(&["create", "--name", "box", "-v", "data:/srv", "-v", "other:/none", "base"]);
    let listed = scene.good(&["volume", "ls"]);
    assert_eq!(listed, "VOLUME  CONTAINERS\ndata    box\nother   box\n");
    let said = scene.bad(&["volume", "rm", "data"]);
    assert!(said.contains("box: remove that first"), "{said}");
    scene.good(&["start", "-a", "box"]);
    scene.good(&["rm", "box"]);
    scene.good(&["volume", "rm", "data"]);
    assert!(scene.bad(&["volume", "rm", "data"]).contains("there are other"));
    assert_eq!(scene.good(&["volume", "prune"]), "other\n");
    assert!(scene.bad(&["run", "--rm", "-v", "a b:/x", "base"]).contains("no name"));
    assert_eq!(scene.run(&["run", "--rm", "bse"]).status.code(), Some(125));
    // A link of the image does not lead out of it.
    scene.good(&["run", "--name", "link", "base", "sh", "-c", "rm -r /etc/app"]);
    let upper = scene.directories()[0].join("upper/etc");
    fs::remove_file(upper.join("app")).expect("the whiteout");
    std::os::unix::fs::symlink("/proc/self", upper.join("app")).expect("a link");
    scene.good(&["commit", "link", "linked"]);
    scene.good(&["rm", "link"]);
    let seen = scene.good(&["run", "--rm", "-v", "new:/etc/app/fd", "linked", "ls", "/etc"]);
    assert!(seen.contains("app"), "{seen}");
    let data = scene.temp.path().join("store/volumes/new/data");
    assert_eq!(fs::read_dir(data).expect("a list").count(), 0);
}

#[test]
fn hundreds_of_layers_are_shown_by_the_kernel_and_more_by_us() {
    let Some(scene) = Scene::new() else { return };
    let at = |path: String| scene.temp.path().join(path);
    let mut paths = vec![at("low".to_owned())];
    // The kernel has 500 lower layers at most, and one of them is ours; the store takes images of 500.
    for number in 1..500 {
        let dir = at(format!("many/{number}"));
        fs::create_dir_all(dir.join("layers")).expect("a directory");
        fs::write(dir.join("layers").join(number.to_string()), "x").expect("a file");
        fs::write(dir.join("layers/top"), format!("{number}\n")).expect("a file");
        paths.push(dir);
    }
    let store = store::Store::open(&scene.temp.path().join("store")).expect("a store");
    for (name, count) in [("many", 499), ("more", 500)] {
        containers::sample::add(&store, name, &paths[..count], &["cat", "/layers/top"])
            .expect("an image");
    }
    let script = "cat /layers/top; set -- /layers/*; echo $#";
    for (image, backend, want) in [
        ("many", "kernel", "498\n499\n"),
        ("many", "fuse", "498\n499\n"),
        ("more", "auto", "499\n500\n"),
    ] {
        let run = ["run", "--name", "box", "--backend", backend, image, "sh", "-c", script];
        assert_eq!(scene.good(&run), want, "{image} by {backend}");
        let known: serde_json::Value =
            serde_json::from_str(&scene.good(&["inspect", "box"])).expect("JSON");
        let by = if backend == "kernel" { "kernel" } else { "fuse" };
        assert_eq!(known["state"]["backend"], by, "{}", known["state"]["why"]);
        scene.good(&["rm", "box"]);
    }
}

#[test]
fn a_write_to_a_big_file_copies_what_was_written_and_nobody_sees_a_part() {
    let Some(scene) = Scene::new() else { return };
    // Data that no file system shares: in its own layer, on top of what the programs are in.
    let big = scene.temp.path().join("big");
    fs::create_dir_all(big.join("data")).expect("a directory");
    let content: Vec<u8> = (0_u32..16 << 20).map(|at| (at / 4096) as u8 | 1).collect();
    fs::write(big.join("data/big"), &content).expect("a file");
    let store = store::Store::open(&scene.temp.path().join("store")).expect("a store");
    let low = scene.temp.path().join("low");
    containers::sample::add(&store, "large", &[low, big], &["cat"]).expect("an image");
    drop(store);
    let script = "echo changed > /tmp/x; exec 3<>/data/big; echo patch >&3; exec sleep 600";
    let run = ["run", "-d", "--backend", "fuse", "--name", "box", "large", "sh", "-ec", script];
    let upper = |scene: &Scene| scene.directories()[0].join("upper/data/big");
    let held = |path: &Path| {
        let stat = rustix::fs::stat(path).map(|stat| stat.st_blocks * 512);
        stat.unwrap_or_default()
    };
    let begin = |scene: &Scene| {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut first = [0; 6];
        // Not only a file that has an attribute, which takes space too.
        while !fs::File::open(upper(scene))
            .is_ok_and(|mut file| file.read_exact(&mut first).is_ok())
            || first != *b"patch\n"
        {
            assert!(std::time::Instant::now() < until, "nothing is written");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let same = |image: &str| {
        let script = "cat /data/big | { read x; echo $x; }; ls -l /data/big";
        let seen = scene.good(&["run", "--rm", image, "sh", "-c", script]);
        assert!(seen.starts_with("patch\n") && seen.contains("16777216"), "{image}: {seen}");
    };
    let whole = |path: &Path| {
        let now = fs::read(path).expect("the file");
        assert!(now[..6] == *b"patch\n" && now[6..] == content[6..], "{path:?} is whole");
    };
    scene.good(&run);
    begin(&scene);
    assert!(held(&upper(&scene)) < 8 << 20, "{} bytes were copied", held(&upper(&scene)));
    assert!(scene.good(&["diff", "box"]).contains("C /data/big\n"));
    scene.good(&["snapshot", "box", "frozen"]);
    whole(&scene.directories()[0].join("snaps/frozen/data/big"));
    scene.good(&["commit", "box", "committed"]);
    same("committed");
    scene.good(&["rm", "--force", "box"]);
    // After its end, and after the end of whoever showed it.
    for killed in [false, true] {
        scene.good(&run);
        begin(&scene);
        if killed {
            let known: serde_json::Value =
                serde_json::from_str(&scene.good(&["inspect", "box"])).expect("JSON");
            let watcher = known["state"]["watcher"].to_string();
            assert!(Command::new("kill").args(["-9", &watcher]).status().expect("kill").success());
            scene.wait("box", "exited");
        } else {
            scene.good(&["stop", "--time", "0", "box"]);
        }
        // It may be a part as long as nobody reads it; who looks what changed needs no data.
        assert!(scene.good(&["diff", "box"]).contains("C /data/big\n"));
        assert!(held(&upper(&scene)) < 8 << 20, "{} bytes were copied", held(&upper(&scene)));
        // The next run goes on with it.
        scene.good(&["start", "box"]);
        let seen = ["exec", "box", "sh", "-c", "read x < /data/big; echo $x"];
        assert_eq!(scene.good(&seen), "patch\n");
        scene.good(&["stop", "--time", "0", "box"]);
        let name = format!("ended:{killed}");
        scene.good(&["commit", "box", &name]);
        whole(&upper(&scene));
        same(&name);
        scene.good(&["rm", "box"]);
    }
}
