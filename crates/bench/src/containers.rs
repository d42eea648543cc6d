//! What people wait for with containers: made, run, compared, committed, by Strata and by the peers that are installed.
//!
//! The same two images for everyone, of 2 and of 121 layers, on an ext4 of its own: stores write to a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use store::Store;

use crate::scene::run;

/// A subject's figures for one step with one image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What was done.
    pub step: String,
    /// Layers of the image.
    pub layers: usize,
    /// Who did it.
    pub subject: String,
    /// Milliseconds of each round.
    pub milliseconds: Vec<f64>,
}

impl Figure {
    fn median(&self) -> f64 {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn best(&self) -> f64 {
        self.milliseconds.iter().copied().fold(f64::NAN, f64::min)
    }
}

const LAYERS: [usize; 2] = [2, 121];
const TRUE: &str = "/bin/true";
const TOUCH: &str = "/bin/touch";

/// Who has containers.
struct Keeper {
    name: &'static str,
    program: PathBuf,
    before: Vec<String>,
    /// Flags of `run` and `create` beside those that everyone has.
    flags: &'static [&'static str],
    /// Strata's store.
    store: PathBuf,
}

impl Keeper {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.before).args(args).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("STRATA_ROOT", &self.store);
        command
    }

    fn does(&self, args: &[&str]) -> anyhow::Result<()> {
        let output = self.command(args).stderr(Stdio::piped()).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            bail!("{} {args:?}: {said}", self.name);
        }
        Ok(())
    }

    fn timed(&self, args: &[&str]) -> anyhow::Result<f64> {
        let begun = Instant::now();
        self.does(args)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// The machine's network, which costs nobody anything, and limits that whoever measures may set.
    fn with<'a>(&self, verb: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
        let same = ["--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"];
        let own = self.flags.iter().copied();
        std::iter::once(verb).chain(same).chain(own).chain(rest.iter().copied()).collect()
    }

    fn image(&self, layers: usize) -> String {
        format!("localhost/bench:{layers}")
    }

    /// One round: each step with each image.
    fn round(&self, round: usize, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
        for layers in LAYERS {
            let image = self.image(layers);
            let own = self.name.replace(' ', "-");
            let name = |what: &str| format!("{what}-{own}-{layers}-{round}");
            let (made, changed) = (name("made"), name("changed"));
            self.does(&self.with("run", &["--name", &changed, &image, TOUCH, "/changed"]))?;
            let committed = format!("localhost/committed:{own}-{layers}-{round}");
            let create = self.with("create", &["--name", &made, &image, TRUE]);
            let run = self.with("run", &["--rm", &image, TRUE]);
            let steps: [(&str, &[&str]); 4] = [
                ("create", &create),
                ("run --rm true", &run),
                ("diff", &["diff", &changed]),
                ("commit", &["commit", &changed, &committed]),
            ];
            for (step, args) in steps {
                let took = self.timed(args)?;
                let of = |f: &&mut Figure| {
                    f.step == step && f.layers == layers && f.subject == self.name
                };
                match figures.iter_mut().find(of) {
                    Some(figure) => figure.milliseconds.push(took),
                    None => figures.push(Figure {
                        step: step.to_owned(),
                        layers,
                        subject: self.name.to_owned(),
                        milliseconds: vec![took],
                    }),
                }
            }
        }
        Ok(())
    }
}

/// A file system in a file, mounted until the value is dropped, or the mount namespace ends.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    pub(crate) fn of(kind: &str, bytes: u64) -> anyhow::Result<Self> {
        // Not a tmpfs, on which nothing waits for a disk.
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let (image, at) = (dir.path().join("disk"), dir.path().join("at"));
        fs::create_dir(&at)?;
        fs::File::create(&image)?.set_len(bytes)?;
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &at]))?;
        Ok(Self { dir })
    }

    /// A path on it.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("at").join(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Podman leaves a mount of its store's directory on itself.
        for at in [self.at("graph/overlay"), self.at("own/overlay"), self.at("")] {
            let unmounted =
                Command::new("umount").arg("-l").arg(&at).stderr(Stdio::null()).status();
            if let Err(error) = unmounted {
                eprintln!("strata-bench: {} stays mounted: {error}", at.display());
            }
        }
    }
}

/// Measures all of it in `rounds` rounds; `strata` is the program.
pub fn measure(strata: &Path, rounds: usize) -> anyhow::Result<Vec<Figure>> {
    let disk = Disk::of("ext4", 4 << 30).context("making a file system for containers")?;
    let own = Keeper {
        name: "strata",
        program: strata.to_owned(),
        before: Vec::new(),
        flags: &[],
        store: disk.at("store"),
    };
    let fuse = Keeper {
        name: "strata fuse",
        program: strata.to_owned(),
        before: Vec::new(),
        flags: &["--backend=fuse"],
        store: disk.at("store"),
    };
    images(&disk).context("making the images")?;
    let mut keepers = vec![own, fuse];
    keepers.extend(podman(&disk)?);
    for layers in LAYERS {
        let archive = disk.at("image.tar");
        let archive = archive.to_str().context("a path that is no text")?;
        let image = keepers[0].image(layers);
        keepers[0].does(&["save", "--format", "docker-archive", "-o", archive, &image])?;
        for peer in &keepers[2..] {
            peer.does(&["load", "--quiet", "--input", archive])?;
        }
        fs::remove_file(archive)?;
    }
    let mut figures = Vec::new();
    for round in 0..rounds {
        for turn in 0..keepers.len() {
            // Another one first each time.
            keepers[(turn + round) % keepers.len()].round(round, &mut figures)?;
        }
    }
    for peer in &keepers[2..] {
        peer.does(&["rm", "--all", "--force"])?;
    }
    Ok(figures)
}

/// Podman with a store of its own, where it is installed and can run a container.
fn podman(disk: &Disk) -> anyhow::Result<Option<Keeper>> {
    let path = |name: &str| disk.at(name).to_str().map(str::to_owned).context("a path");
    let program = PathBuf::from("podman");
    if Command::new(&program).arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED: podman is not installed");
        return Ok(None);
    }
    let before = ["--root", &path("graph")?, "--runroot", &path("run")?];
    let before = before.iter().chain(&["--storage-driver", "overlay"]);
    let before = before.map(|word| (*word).to_owned()).collect();
    // Control groups of its own cost it time, and crun refuses those of mixed versions.
    let flags = &["--cgroups=disabled"];
    Ok(Some(Keeper { name: "podman", program, before, flags, store: disk.at("none") }))
}

/// The images, in Strata's store: this machine's own programs below, and a small file in each further layer.
fn images(disk: &Disk) -> anyhow::Result<()> {
    let trees = disk.at("trees");
    let layer = |number: usize| trees.join(number.to_string());
    containers::sample::programs(&[TRUE, TOUCH], &layer(0))?;
    let most = LAYERS.into_iter().max().unwrap_or(1);
    for number in 1..most {
        fs::create_dir_all(layer(number).join("layers"))?;
        fs::write(layer(number).join(format!("layers/{number}")), vec![b'x'; 4096])?;
    }
    let store = Store::open(&disk.at("store"))?;
    for layers in LAYERS {
        let paths: Vec<PathBuf> = (0..layers).map(layer).collect();
        containers::sample::add(&store, &format!("localhost/bench:{layers}"), &paths, &[TRUE])?;
    }
    Ok(())
}

/// A line for each step and image: of each subject the median and the best, in milliseconds.
pub fn table(figures: &[Figure]) -> String {
    let mut subjects: Vec<&str> = Vec::new();
    let mut lines: Vec<(&str, usize)> = Vec::new();
    for figure in figures {
        let (subject, line) = (figure.subject.as_str(), (figure.step.as_str(), figure.layers));
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let mut text = format!("{:<16}{:>8}", "milliseconds", "layers");
    for subject in &subjects {
        text += &format!("{subject:>16}");
    }
    for (step, layers) in lines {
        text += &format!("\n{step:<16}{layers:>8}");
        for subject in &subjects {
            let of = |f: &&Figure| f.step == step && f.layers == layers && f.subject == *subject;
            let (median, best) = figures
                .iter()
                .find(of)
                .map_or((f64::NAN, f64::NAN), |figure| (figure.median(), figure.best()));
            text += &format!("{median:>9.1} ({best:>4.1})");
        }
    }
    text + "\n"
}
