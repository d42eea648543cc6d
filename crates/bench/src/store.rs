//! What people wait for with images: pulled from a registry, counted and removed, by Strata and by the peers that are
//! installed. Each pull is into an empty store, on a file system of its own: stores write to a disk.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::containerd::Containerd;
use crate::containers::Disk;
use crate::scene::run;

/// A subject's figures for one step.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What was done.
    pub step: String,
    /// Who did it.
    pub subject: String,
    /// Seconds of each round.
    pub seconds: Vec<f64>,
}

/// The images that bars are set for, as far as they are there.
const IMAGES: [&str; 3] = ["ml:1", "ml-zstd:1", "node-app:1"];

/// A registry on this machine, which ends with the value.
struct Registry {
    child: Child,
    at: String,
}

impl Registry {
    /// Serves those of [`IMAGES`] that are in `layouts`, a directory of OCI layouts.
    fn new(layouts: &Path, disk: &Disk) -> anyhow::Result<(Self, Vec<&'static str>)> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: 127.0.0.1:{port}}}\nlog: {{level: error, accesslog: {{disabled: true}}}}\n",
            disk.at("registry").display()
        );
        let path = disk.at("registry.yml");
        fs::write(&path, config)?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry is not installed (tests/tools.sh installs it)")?;
        let registry = Self { child, at: format!("127.0.0.1:{port}") };
        let begun = Instant::now();
        while std::net::TcpStream::connect(&registry.at).is_err() {
            if begun.elapsed() > Duration::from_secs(20) {
                bail!("docker-registry does not answer");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut images = Vec::new();
        for image in IMAGES {
            let layout = layouts.join(image.split(':').next().unwrap_or(image));
            if !layout.is_dir() {
                println!("SKIPPED: {image} is not in {}", layouts.display());
                continue;
            }
            let tag = image.split(':').next_back().unwrap_or("1");
            run(Command::new("skopeo")
                // As it is: skopeo sends gzip for zstd where the registry has the same layer so.
                .args(["copy", "-q", "--preserve-digests", "--dest-tls-verify=false"])
                .arg(format!("oci:{}:{tag}", layout.display()))
                .arg(format!("docker://{}/{image}", registry.at)))?;
            images.push(image);
        }
        if images.is_empty() {
            bail!("{} has none of the images {}", layouts.display(), IMAGES.join(", "));
        }
        Ok((registry, images))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("strata-bench: docker-registry stays: {error}");
        }
    }
}

/// Who has images.
enum Keeper {
    Strata(PathBuf),
    Podman,
    /// skopeo fetches, umoci unpacks.
    Umoci,
    /// By which of its snapshotters.
    Containerd(Rc<Containerd>, &'static str),
    /// No keeper: blobs of layouts in this directory are inflated and unpacked, one after the other. Nothing is fetched
    /// or verified: what the work itself takes, by programs that are known for their speed.
    Tar(PathBuf),
}

impl Keeper {
    fn name(&self) -> &'static str {
        match self {
            Self::Strata(_) => "strata",
            Self::Podman => "podman",
            Self::Umoci => "skopeo+umoci",
            Self::Containerd(_, "overlayfs") => "containerd",
            Self::Containerd(..) => "ctrd+strata",
            Self::Tar(_) => TAR,
        }
    }

    /// umoci knows no zstd.
    fn can(&self, image: &str) -> bool {
        !matches!(self, Self::Umoci) || !image.contains("zstd")
    }

    fn command(&self, disk: &Disk, words: &[&str]) -> Command {
        let mut command = match self {
            Self::Strata(program) => {
                let mut command = Command::new(program);
                command.env("STRATA_ROOT", disk.at("own"));
                command
            }
            _ => {
                let mut command = Command::new("podman");
                command.arg("--root").arg(disk.at("own")).arg("--runroot").arg(disk.at("run"));
                command.args(["--storage-driver", "overlay"]);
                command
            }
        };
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn pull(&self, disk: &Disk, registry: &str, image: &str) -> anyhow::Result<()> {
        let from = format!("{registry}/{image}");
        match self {
            Self::Containerd(containerd, snapshotter) => containerd.pull(snapshotter, &from),
            Self::Tar(layouts) => unpack(layouts, image, &disk.at("own")),
            Self::Strata(_) => run(&mut self.command(disk, &["pull", "-q", &from])),
            Self::Podman => {
                run(&mut self.command(disk, &["pull", "-q", "--tls-verify=false", &from]))
            }
            Self::Umoci => {
                let name = image.replace(':', "-");
                let layout = format!("{}:image", disk.at(&format!("own/{name}")).display());
                fs::create_dir_all(disk.at("own"))?;
                run(Command::new("skopeo")
                    .args(["copy", "-q", "--src-tls-verify=false"])
                    .args([format!("docker://{from}"), format!("oci:{layout}")]))?;
                run(Command::new("umoci")
                    .args(["unpack", "--image", &layout])
                    .arg(disk.at(&format!("own/{name}-tree")))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null()))
            }
        }
    }

    /// Empties the store, untimed.
    fn clear(&self, disk: &Disk) -> anyhow::Result<()> {
        if let Self::Containerd(containerd, _) = self {
            containerd.clear()?;
            return run(Command::new("sync").arg("-f").arg(disk.at("")));
        }
        if matches!(self, Self::Podman) {
            run(&mut self.command(disk, &["rmi", "--all", "--force"]))?;
            // Its directory is a mount of itself.
            drop(Command::new("umount").arg("-l").arg(disk.at("own/overlay")).output());
        }
        // What Strata removes behind may be at it too.
        let begun = Instant::now();
        while disk.at("own").exists() {
            if let Err(error) = fs::remove_dir_all(disk.at("own"))
                && begun.elapsed() > Duration::from_secs(60)
            {
                return Err(error).context("emptying a store");
            }
        }
        run(Command::new("sync").arg("-f").arg(disk.at("")))
    }

    fn round(
        &self,
        disk: &Disk,
        registry: &str,
        images: &[&str],
        figures: &mut Vec<Figure>,
    ) -> anyhow::Result<()> {
        let mut timed =
            |step: String, act: &dyn Fn() -> anyhow::Result<()>| -> anyhow::Result<()> {
                let begun = Instant::now();
                act()?;
                let took = begun.elapsed().as_secs_f64();
                match figures.iter_mut().find(|f| f.step == step && f.subject == self.name()) {
                    Some(figure) => figure.seconds.push(took),
                    None => figures.push(Figure {
                        step,
                        subject: self.name().to_owned(),
                        seconds: vec![took],
                    }),
                }
                Ok(())
            };
        let images: Vec<&str> = images.iter().copied().filter(|image| self.can(image)).collect();
        for image in &images {
            timed(format!("pull {image}"), &|| self.pull(disk, registry, image))?;
            self.clear(disk)?;
        }
        if matches!(self, Self::Containerd(..) | Self::Tar(_)) {
            return Ok(());
        }
        for image in &images {
            self.pull(disk, registry, image)?;
        }
        match self {
            Self::Containerd(..) | Self::Tar(_) => {}
            Self::Strata(_) => {
                timed("df".to_owned(), &|| run(&mut self.command(disk, &["df"])))?;
                let names: Vec<String> =
                    images.iter().map(|image| format!("{registry}/{image}")).collect();
                let mut words = vec!["rmi"];
                words.extend(names.iter().map(String::as_str));
                timed("rmi of all".to_owned(), &|| run(&mut self.command(disk, &words)))?;
            }
            Self::Podman => {
                timed("df".to_owned(), &|| run(&mut self.command(disk, &["system", "df"])))?;
                let words = ["rmi", "--all", "--force"];
                timed("rmi of all".to_owned(), &|| run(&mut self.command(disk, &words)))?;
            }
            Self::Umoci => {
                timed("df".to_owned(), &|| {
                    run(Command::new("du").arg("-s").arg(disk.at("own")).stdout(Stdio::null()))
                })?;
                timed("rmi of all".to_owned(), &|| Ok(fs::remove_dir_all(disk.at("own"))?))?;
            }
        }
        self.clear(disk)
    }
}

/// The name of the work itself.
const TAR: &str = "inflate | tar";

/// Unpacks the layers of an image of a layout into `to`, each over the one before.
fn unpack(layouts: &Path, image: &str, to: &Path) -> anyhow::Result<()> {
    let (name, tag) = image.split_once(':').context("an image has a tag")?;
    let layout = layouts.join(name);
    let blob = |digest: &serde_json::Value| {
        let hex = digest.as_str().and_then(|text| text.strip_prefix("sha256:")).unwrap_or("");
        layout.join("blobs/sha256").join(hex)
    };
    let read = |path: PathBuf| -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_slice(&fs::read(&path).with_context(|| format!("{path:?}"))?)?)
    };
    let index = read(layout.join("index.json"))?;
    let named = |manifest: &&serde_json::Value| {
        manifest["annotations"]["org.opencontainers.image.ref.name"] == *tag
    };
    let manifests = index["manifests"].as_array().context("an index has manifests")?;
    let manifest = manifests.iter().find(named).context("the layout has the tag")?;
    let manifest = read(blob(&manifest["digest"]))?;
    fs::create_dir_all(to)?;
    for layer in manifest["layers"].as_array().context("a manifest has layers")? {
        let zstd = layer["mediaType"].as_str().is_some_and(|kind| kind.ends_with("zstd"));
        let mut inflate = Command::new(if zstd { "zstd" } else { "pigz" })
            .arg("-dc")
            .arg(blob(&layer["digest"]))
            .stdout(Stdio::piped())
            .spawn()?;
        let tar = inflate.stdout.take().context("a pipe")?;
        run(Command::new("tar").arg("-x").arg("-C").arg(to).stdin(tar))?;
        inflate.wait()?;
    }
    Ok(())
}

/// Measures all of it in `rounds` rounds; `strata` is the program, `layouts` a directory of OCI layouts.
/// `kind` is the file system of the stores, `programs` the directory of another containerd than that on the PATH.
pub fn measure(
    strata: &Path,
    layouts: &Path,
    kind: &str,
    programs: Option<&Path>,
    rounds: usize,
) -> anyhow::Result<Vec<Figure>> {
    let there = |program: &str| {
        let mut command = Command::new(program);
        let found = command.arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        if !found {
            println!("SKIPPED: {program} is not installed");
        }
        found
    };
    let disk = Disk::of(kind, 16 << 30).context("making a file system for stores")?;
    let (registry, images) = Registry::new(layouts, &disk)?;
    let mut keepers = vec![Keeper::Strata(strata.to_owned())];
    if there("podman") {
        keepers.push(Keeper::Podman);
    }
    if there("umoci") {
        keepers.push(Keeper::Umoci);
    }
    match Containerd::start(strata, programs, &disk)? {
        None => println!("SKIPPED: containerd is not installed"),
        Some(containerd) => {
            let containerd = Rc::new(containerd);
            keepers.push(Keeper::Containerd(Rc::clone(&containerd), "overlayfs"));
            if containerd.differ {
                keepers.push(Keeper::Containerd(containerd, "strata"));
            } else {
                println!("SKIPPED: containerd before 1.7 unpacks itself, whatever the snapshotter");
            }
        }
    }
    if there("pigz") && there("zstd") {
        keepers.push(Keeper::Tar(layouts.to_owned()));
    }
    let mut figures = Vec::new();
    for round in 0..rounds {
        for turn in 0..keepers.len() {
            // Another one first each time.
            let keeper = &keepers[(turn + round) % keepers.len()];
            keeper.round(&disk, &registry.at, &images, &mut figures)?;
        }
    }
    Ok(figures)
}

/// A line for each step: medians of each subject, in seconds, how many times faster Strata is than the best other, and
/// than overlayfs as snapshotter of the same containerd.
pub fn table(figures: &[Figure]) -> String {
    let mut subjects: Vec<&str> = Vec::new();
    let mut steps: Vec<&str> = Vec::new();
    for figure in figures {
        if !subjects.contains(&figure.subject.as_str()) {
            subjects.push(&figure.subject);
        }
        if !steps.contains(&figure.step.as_str()) {
            steps.push(&figure.step);
        }
    }
    let median = |step: &str, subject: &str| {
        let found = figures.iter().find(|f| f.step == step && f.subject == subject);
        let mut sorted = found.map(|f| f.seconds.clone()).unwrap_or_default();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let mut text = format!("{:<18}", "seconds");
    for subject in &subjects {
        text += &format!("{subject:>14}");
    }
    text += &format!("{:>14}{:>14}", "best other ÷", "in containerd");
    for step in steps {
        text += &format!("\n{step:<18}");
        for subject in &subjects {
            text += &format!("{:>14.2}", median(step, subject));
        }
        let others =
            subjects.iter().filter(|subject| !subject.contains("strata") && **subject != TAR);
        let best = others.map(|subject| median(step, subject)).fold(f64::NAN, f64::min);
        text += &format!("{:>14.1}", best / median(step, "strata"));
        text += &format!("{:>14.1}", median(step, "containerd") / median(step, "ctrd+strata"));
    }
    text + "\n"
}
