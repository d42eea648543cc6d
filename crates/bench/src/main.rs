//! `strata-bench`: the same work on the kernel's overlayfs, on other unions and on Strata, in turn, round after round.
//!
//! Reading order: [`scene`] (the layers, most on a tmpfs of their own), [`subject`] (who is measured), [`row`] (what is
//! measured), [`job`] (whole jobs), [`sync`] (writes that wait for a disk), [`containers`] and [`store`] (containers and images, beside podman's), [`containerd`], [`report`] (medians, ratios, JSON), [`page`] (the page and the plot in docs/).

mod containerd;
mod containers;
mod job;
mod page;
mod report;
mod row;
mod scene;
mod store;
mod subject;
mod sync;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::Parser;

use report::Report;
use row::Scale;
use scene::Scene;
use subject::Subject;

/// Measure Strata beside the kernel's overlayfs, fuse-overlayfs and other unions, as root.
#[derive(Debug, Parser)]
#[command(
    after_help = "Example:\n  cargo run --release -p strata-bench -- --roots layouts --page docs"
)]
struct Args {
    /// How many times everything is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// A little of everything, once: shows that it works, and no figures to trust
    #[arg(long)]
    quick: bool,
    /// Only the rows whose name has this in it
    #[arg(long)]
    only: Option<String>,
    /// Layers in this directory, and not on a tmpfs
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Name what is slower than in these figures, by more than both spreads
    #[arg(long)]
    against: Option<PathBuf>,
    /// Write performance.md and performance.svg into this directory
    #[arg(long)]
    page: Option<PathBuf>,
    /// Containers alone: made, run, compared and committed, beside podman
    #[arg(long)]
    containers: bool,
    /// Images alone, of OCI layouts in this directory: pulled from a registry, counted and removed, beside podman and containerd
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// With --store: the directory of the containerd to measure [default: as on the PATH]
    #[arg(long, value_name = "DIR")]
    containerd: Option<PathBuf>,
    /// With --store: on which file system: xfs, ext4 or btrfs
    #[arg(long, default_value = "xfs", value_name = "KIND")]
    disk: String,
    /// We are in a mount namespace of our own
    #[arg(long, hide = true)]
    isolated: bool,
    /// A peer to measure, once or several times [default: what is on the PATH]
    #[arg(long, value_name = "PROGRAM")]
    fuse_overlayfs: Vec<PathBuf>,
    /// Jobs in root file systems too, those of OCI layouts in this directory: DIR/NAME with the tag of the row
    #[arg(long, value_name = "DIR")]
    roots: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("strata-bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("it mounts file systems and drops caches: run it as root");
    }
    let (scale, rounds) =
        if args.quick { (Scale::QUICK, 1) } else { (Scale::FULL, args.rounds.max(1)) };
    let own = built()?;
    if let Some(layouts) = &args.store {
        let figures =
            store::measure(&own, layouts, &args.disk, args.containerd.as_deref(), rounds)?;
        print!("{}", store::table(&figures));
        if let Some(path) = &args.json {
            std::fs::write(path, serde_json::to_vec_pretty(&figures)?)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        return Ok(());
    }
    if args.containers && args.isolated {
        let figures = containers::measure(&own, rounds)?;
        print!("{}", containers::table(&figures));
        if let Some(path) = &args.json {
            std::fs::write(path, serde_json::to_vec_pretty(&figures)?)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        return Ok(());
    }
    if args.containers || args.quick {
        isolated(args, rounds)?;
        if args.containers {
            return Ok(());
        }
    }
    let subjects = subjects(args, &own);
    let dir = args.dir.as_deref();
    let mut scene = Scene::new(dir, scale, &own, args.roots.as_deref()).context("making layers")?;
    let mut rows = Vec::new();
    for row in row::all() {
        if args.only.as_ref().is_some_and(|only| !row.name.contains(only.as_str())) {
            continue;
        }
        match scene.prepare(row).with_context(|| format!("making layers for {}", row.name))? {
            None => rows.push(row),
            Some(why) => eprintln!("SKIPPED: {}: {why}", row.name),
        }
    }
    let mut report = Report::new(&subjects, rounds);
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for row in &rows {
            for turn in 0..subjects.len() {
                // Another one first each time, so that none always follows the same.
                let subject = &subjects[(turn + round) % subjects.len()];
                let value = scene
                    .measure(subject, row)
                    .with_context(|| format!("{} on {}", row.name, subject.name))?;
                report.add(row, subject, value);
            }
        }
    }
    scene.check_layers()?;
    print!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(dir) = &args.page {
        page::write(&report, dir)?;
    }
    if let Some(path) = &args.against {
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        for line in report.slower_than(&serde_json::from_slice(&text)?) {
            println!("{line}");
        }
    }
    Ok(())
}

/// Measures containers in a mount namespace, which takes all mounts with it, and where the second hierarchy of a machine
/// with control groups of both versions is out of sight: crun, by which podman runs containers, refuses both.
fn isolated(args: &Args, rounds: usize) -> anyhow::Result<()> {
    let script = "umount -l /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(std::env::current_exe()?);
    command.args(["--containers", "--isolated", "--rounds", &rounds.to_string()]);
    if let Some(path) = args.json.as_ref().filter(|_| args.containers) {
        command.arg("--json").arg(path);
    }
    // Strata is built already.
    scene::run(command.env_remove("CARGO"))
}

/// The program `strata`, built first where cargo runs us.
fn built() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?.with_file_name("strata");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--locked", "--package", "strata", "--profile", profile])
            .status()?;
        if !built.success() {
            bail!("strata could not be built");
        }
    }
    if !own.exists() {
        bail!("{} is not there: cargo build --release -p strata", own.display());
    }
    Ok(own)
}

/// Everyone who is there, Strata last.
fn subjects(args: &Args, own: &Path) -> Vec<Subject> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = std::env::split_paths(&path)
        .map(|dir| dir.join("fuse-overlayfs"))
        .filter(|program| program.exists())
        .collect();
    let asked = if args.fuse_overlayfs.is_empty() { &on_path } else { &args.fuse_overlayfs };
    let mut subjects = vec![Subject::kernel()];
    let mut add = |name: &str, found: Option<Subject>| match found {
        // The same version may be on the PATH by two names.
        Some(subject) if subjects.iter().any(|known| known.name == subject.name) => {}
        Some(subject) => subjects.push(subject),
        None => eprintln!("SKIPPED: {name} is not installed, or does not start"),
    };
    if asked.is_empty() {
        add("fuse-overlayfs", None);
    }
    for program in asked {
        add(&program.display().to_string(), Subject::fuse_overlayfs(program));
    }
    add("unionfs-fuse", Subject::unionfs_fuse());
    add("mergerfs", Subject::mergerfs());
    let uring = Subject::strata_uring(own);
    subjects.push(Subject::strata(own, uring.is_ok()));
    match uring {
        Ok(subject) => subjects.push(subject),
        Err(error) => eprintln!("SKIPPED: strata over io_uring: {error:#}"),
    }
    subjects
}
