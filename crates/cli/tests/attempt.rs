//! `strata try`, as root and without privileges: caught, shown, applied, undone, refused.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const STRATA: &str = env!("CARGO_BIN_EXE_strata");

fn possible() -> bool {
    let root = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !root {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "needs root and /dev/fuse");
        eprintln!("SKIPPED: needs root and /dev/fuse");
    }
    root
}

struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let temp = tempfile::tempdir().expect("a directory");
        let base = temp.path().join("base");
        fs::create_dir_all(base.join("dir")).expect("directories");
        for (name, text) in [("edited", "one\n"), ("gone", "x"), ("dir/inside", "two")] {
            fs::write(base.join(name), text).expect("a file");
        }
        // The clock that stamps files ticks every few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        Self { temp }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.temp.path().join("base").join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", STRATA, "try"]).args(args);
        command.env("STRATA_TRY_DIR", self.temp.path().join("try"));
        command.current_dir(self.temp.path().join("base"));
        let output = command.stdin(std::process::Stdio::null()).output().expect("strata runs");
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Catches `script`'s writes below the base; the name under which they are kept.
    fn keep(&self, script: &str) -> String {
        let output = self.run(&["--base", ".", "--keep", "--", "sh", "-ec", script]);
        assert!(output.status.success());
        let said = String::from_utf8(output.stderr).expect("text");
        let at = said.find("kept as ").expect("a name") + "kept as ".len();
        said[at..].split(':').next().expect("a name").to_owned()
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.at(name)).ok()
    }
}

const SCRIPT: &str = "echo more >> edited; rm gone; rm -r dir; mkdir new; echo n > new/file; \
                      test ! -e gone; chmod 700 new";

#[test]
fn what_is_caught_is_shown_applied_and_undone() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let id = scene.keep(SCRIPT);
    let untouched = |scene: &Scene| {
        assert_eq!(scene.read("edited").as_deref(), Some("one\n"));
        assert_eq!(scene.read("gone").as_deref(), Some("x"));
        assert_eq!(scene.read("dir/inside").as_deref(), Some("two"));
        assert!(!scene.at("new").exists());
    };
    untouched(&scene);
    let shown = scene.run(&["--of", &id]);
    let base = scene.at("").display().to_string();
    let lines = String::from_utf8(shown.stdout).expect("text").replace(&base, "");
    assert_eq!(lines, "D dir\nC edited  +5 B\nD gone  -1 B\nA new\nA new/file  +2 B\n");
    for _ in 0..2 {
        assert!(scene.run(&["--of", &id, "--apply"]).status.success());
        assert_eq!(scene.read("edited").as_deref(), Some("one\nmore\n"));
        assert!(!scene.at("gone").exists() && !scene.at("dir").exists());
        assert_eq!(scene.read("new/file").as_deref(), Some("n\n"));
        assert!(!scene.run(&["--of", &id, "--apply"]).status.success(), "applied twice");
        assert!(scene.run(&["--of", &id, "--undo"]).status.success());
        untouched(&scene);
    }
    assert!(scene.run(&["--of", &id, "--discard"]).status.success());
    let left = fs::read_dir(scene.temp.path().join("try")).expect("a list").count();
    assert_eq!(left, 0, "discarded attempts leave nothing");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&scene.temp.path().display().to_string()), "{mounts}");
}

#[test]
fn a_base_that_changed_meanwhile_is_left_alone() {
    if !possible() {
        return;
    }
    for meanwhile in ["edited", "gone", "dir/inside"] {
        let scene = Scene::new();
        let id = scene.keep(SCRIPT);
        fs::write(scene.at(meanwhile), "mine").expect("a write");
        let output = scene.run(&["--of", &id, "--apply"]);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("nothing was applied") && said.contains(meanwhile), "{said}");
        assert_eq!(scene.read(meanwhile).as_deref(), Some("mine"));
        assert!(!scene.at("new").exists());
    }
    for meanwhile in ["edited", "gone"] {
        let scene = Scene::new();
        let id = scene.keep(SCRIPT);
        fs::remove_file(scene.at(meanwhile)).expect("removed");
        let output = scene.run(&["--of", &id, "--apply"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("nothing was applied") && said.contains(meanwhile), "{said}");
        assert!(!scene.at(meanwhile).exists() && !scene.at("new").exists());
    }
    // The same for an undo: what somebody did to an applied file is not lost.
    let scene = Scene::new();
    let id = scene.keep(SCRIPT);
    assert!(scene.run(&["--of", &id, "--apply"]).status.success());
    std::thread::sleep(Duration::from_millis(20));
    fs::write(scene.at("new/file"), "mine").expect("a write");
    assert!(!scene.run(&["--of", &id, "--undo"]).status.success());
    assert_eq!(scene.read("new/file").as_deref(), Some("mine"));
}

#[test]
fn the_whole_machine_is_the_base_unless_another_is_given() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let new = format!("/etc/strata-try-{}", std::process::id());
    let shared = format!("/dev/shm/strata-try-{}", std::process::id());
    let script =
        format!("echo out; echo x > {new}; echo y > {shared}; rm edited; test $$ -lt 10; exit 7");
    let output = scene.run(&["--discard", "--", "sh", "-c", &script]);
    assert_eq!(output.status.code(), Some(7), "the command's own status");
    assert_eq!(output.stdout, b"out\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("A {new}  +2 B")), "{said}");
    assert!(said.contains(&format!("D {}", scene.at("edited").display())), "{said}");
    assert!(!Path::new(&new).exists() && scene.at("edited").exists());
    assert!(!Path::new(&shared).exists(), "shared memory is written too");
    let missing = scene.run(&["--", "no-such-command"]);
    assert_eq!(missing.status.code(), Some(127));
    let unknown = scene.run(&["--of", "nonesuch"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("--list"));
}

#[test]
fn other_file_systems_below_are_shown_and_never_written() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    // In a mount namespace of our own: nobody else sees the mounts.
    let script = r#"
        mkdir "$BASE/disk" "$BASE/tmp"
        mount -t tmpfs -o mode=755 disk "$BASE/disk"; echo there > "$BASE/disk/file"
        mount -t tmpfs -o mode=1777 tmp "$BASE/tmp"; echo there > "$BASE/tmp/file"
        for base in / "$BASE"; do
            "$STRATA" try --discard --dir "$TEMP/try" --base "$base" -- sh -ec '
                cat disk/file; ! echo no > disk/file; ! test -e tmp/file; echo x > tmp/x; echo caught > new'
        done
        cat "$BASE/disk/file"; ls "$BASE/tmp"
    "#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", script]).env("STRATA", STRATA);
    command.env("TEMP", scene.temp.path()).env("BASE", scene.at(""));
    let output = command.current_dir(scene.at("")).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(output.stdout, b"there\nthere\nthere\nfile\n", "{said}");
    for (name, how) in [("disk", "can't be written to"), ("tmp", "what is written there goes")] {
        let line = format!("{:?} is another file system", scene.at(name));
        assert!(said.lines().any(|l| l.contains(&line) && l.ends_with(how)), "{said}");
    }
    assert!(!scene.at("new").exists());
}

#[test]
fn without_privileges_it_works_over_the_whole_machine() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let temp = scene.temp.path();
    // As udev makes the device; here for us alone. The program and the place must be open to the user.
    let script = r#"
        cp "$STRATA" "$TEMP/strata"; chmod 755 "$TEMP"; mkdir -p "$TEMP/mine"
        chown -R 1000:1000 "$TEMP/mine" "$TEMP/base"
        mknod "$TEMP/fuse" c 10 229; chmod 666 "$TEMP/fuse"; mount --bind "$TEMP/fuse" /dev/fuse
        exec timeout 60 setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all \
            "$TEMP/strata" try --keep --dir "$TEMP/mine/try" -- sh -ec \
            'id -u; rm /etc/hostname; echo x >> /etc/passwd; echo y > edited; ! cat /etc/shadow'
    "#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", script]).env("STRATA", STRATA).env("TEMP", temp);
    let output = command.current_dir(scene.at("")).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(output.stdout, b"0\n", "root in a namespace of its own");
    for line in ["D /etc/hostname", "C /etc/passwd  +2 B"] {
        assert!(said.contains(line), "{said}");
    }
    assert!(said.contains(&format!("C {}  -2 B", scene.at("edited").display())), "{said}");
    assert_eq!(scene.read("edited").as_deref(), Some("one\n"));
}
