//! containerd on a file system for stores, with Strata as one of its snapshotters where it takes a differ too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::containers::Disk;
use crate::scene::run;

/// A containerd and a snapshotter of Strata's, which end with the value.
pub(crate) struct Containerd {
    /// Where its programs are; none for those on the PATH.
    programs: Option<PathBuf>,
    at: PathBuf,
    daemon: Child,
    snapshotter: Child,
    /// Whether Strata unpacks: not under versions before 1.7.
    pub differ: bool,
}

/// The name in which images are.
const NAMESPACE: &str = "strata-bench";

fn wait(what: &str, mut until: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !until() {
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("{what} takes more than a minute");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn program(programs: Option<&Path>, name: &str) -> Command {
    let mut command =
        Command::new(programs.map_or_else(|| PathBuf::from(name), |dir| dir.join(name)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Containerd {
    /// The containerd of a directory, or that on the PATH; none where there is none.
    pub fn start(
        strata: &Path,
        programs: Option<&Path>,
        disk: &Disk,
    ) -> anyhow::Result<Option<Self>> {
        let version =
            program(programs, "containerd").arg("--version").stdout(Stdio::piped()).output();
        let Ok(version) = version else { return Ok(None) };
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        println!("{}", version.trim());
        let differ = !version.contains(" 1.6.");
        let at = disk.at("containerd");
        fs::create_dir_all(&at)?;
        let socket = at.join("strata.sock");
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = {:?}\n\
             [proxy_plugins.strata]\ntype = \"snapshot\"\naddress = {socket:?}\n{}",
            at.join("root"),
            at.join("state"),
            at.join("sock"),
            if differ {
                format!(
                    "[proxy_plugins.strata-diff]\ntype = \"diff\"\naddress = {socket:?}\n\
                     [plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"strata-diff\", \"walking\"]\n"
                )
            } else {
                String::new()
            }
        );
        let path = at.join("config.toml");
        fs::write(&path, config)?;
        let mut snapshotter = Command::new(strata);
        snapshotter.arg("snapshotter").arg("--root").arg(at.join("store"));
        snapshotter.arg("--address").arg(&socket).arg("--containerd").arg(at.join("sock"));
        snapshotter.arg("--content").arg(at.join("root/io.containerd.content.v1.content"));
        snapshotter.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let snapshotter = snapshotter.spawn().context("starting the snapshotter")?;
        let daemon = program(programs, "containerd").arg("--config").arg(&path).spawn();
        let daemon = daemon.context("starting containerd")?;
        let programs = programs.map(Path::to_owned);
        let this = Self { programs, at, daemon, snapshotter, differ };
        wait("the snapshotter's start", || socket.exists())?;
        wait("containerd's start", || this.ctr(&["version"]).status().is_ok_and(|s| s.success()))?;
        Ok(Some(this))
    }

    fn ctr(&self, words: &[&str]) -> Command {
        let mut command = program(self.programs.as_deref(), "ctr");
        command.arg("--address").arg(self.at.join("sock")).args(["--namespace", NAMESPACE]);
        command.args(words);
        command
    }

    fn lines(&self, words: &[&str]) -> anyhow::Result<Vec<String>> {
        let out = self.ctr(words).stdout(Stdio::piped()).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
    }

    /// Pulls and unpacks an image.
    pub fn pull(&self, snapshotter: &str, image: &str) -> anyhow::Result<()> {
        run(&mut self.ctr(&["images", "pull", "--plain-http", "--snapshotter", snapshotter, image]))
    }

    /// Removes all images, and waits until nothing is left of them.
    pub fn clear(&self) -> anyhow::Result<()> {
        for image in self.lines(&["images", "ls", "-q"])? {
            run(&mut self.ctr(&["images", "rm", "--sync", &image]))?;
        }
        wait("removing images", || {
            let pruned = self.ctr(&["content", "prune", "references"]).status().is_ok();
            let none = |words: &[&str], head: usize| {
                self.lines(words).is_ok_and(|lines| lines.len() == head)
            };
            let gone = |place: &str| {
                fs::read_dir(self.at.join("store").join(place))
                    .is_ok_and(|mut d| d.next().is_none())
            };
            pruned
                && none(&["content", "ls", "-q"], 0)
                && none(&["snapshots", "--snapshotter", "overlayfs", "ls"], 1)
                && none(&["snapshots", "--snapshotter", "strata", "ls"], 1)
                && ["snapshots", "layers", "trash"].into_iter().all(gone)
        })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.snapshotter] {
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                eprintln!("strata-bench: process {} stays: {error}", child.id());
            }
        }
    }
}
