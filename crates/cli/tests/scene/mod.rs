//! A store with an image of this machine's own files, and the commands of containers on it.

// Each test program uses its part.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use store::Store;

pub const STRATA: &str = env!("CARGO_BIN_EXE_strata");

const PROGRAMS: [&str; 7] =
    ["/bin/sh", "/bin/cat", "/bin/ls", "/bin/rm", "/bin/mkdir", "/bin/sleep", "/usr/bin/id"];

pub fn possible() -> bool {
    let root = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !root {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "needs root and /dev/fuse");
        eprintln!("SKIPPED: needs root and /dev/fuse");
    }
    root
}

/// A store with the image `base` of two layers.
pub struct Scene {
    pub temp: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Option<Self> {
        if !possible() {
            return None;
        }
        let temp = tempfile::tempdir().expect("a directory");
        let at = |path: &str| temp.path().join(path);
        fs::create_dir_all(at("low/etc/app")).expect("directories");
        containers::sample::programs(&PROGRAMS, &at("low")).expect("programs");
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n";
        for (path, text) in [
            ("low/etc/passwd", passwd),
            ("low/etc/group", "root:x:0:\nweb:x:33:\nlogs:x:4:web\n"),
            ("low/etc/app/conf", "old\n"),
            ("low/etc/app/doomed", "x"),
            ("top/etc/motd", "hello\n"),
        ] {
            fs::create_dir_all(at(path).parent().expect("a parent")).expect("directories");
            fs::write(at(path), text).expect("a file");
        }
        let store = Store::open(&at("store")).expect("a store");
        containers::sample::add(&store, "base", &[at("low"), at("top")], &["cat", "/etc/motd"])
            .expect("an image");
        Some(Self { temp })
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["60", STRATA]).args(args);
        command.env("STRATA_ROOT", self.temp.path().join("store"));
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().expect("strata runs");
        eprint!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// What a command that must succeed prints.
    pub fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", output.status);
        String::from_utf8(output.stdout).expect("text")
    }

    /// What a command that must fail says.
    pub fn bad(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?} succeeded");
        String::from_utf8(output.stderr).expect("text")
    }

    pub fn sh(&self, flags: &[&str], script: &str) -> String {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.extend(["base", "sh", "-ec", script]);
        self.good(&args)
    }

    pub fn status(&self, name: &str) -> String {
        let all: serde_json::Value =
            serde_json::from_str(&self.good(&["ps", "--all", "--json"])).expect("JSON");
        let of = |line: &&serde_json::Value| line["name"] == name;
        let found = all.as_array().expect("a list").iter().find(of);
        found.map_or("none".to_owned(), |line| line["status"].as_str().expect("text").to_owned())
    }

    pub fn directories(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.temp.path().join("store/rw")).expect("a list");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    pub fn wait(&self, name: &str, status: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while self.status(name) != status {
            assert!(Instant::now() < until, "{name} is {}, not {status}", self.status(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
