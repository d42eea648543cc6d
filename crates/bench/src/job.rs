//! Whole jobs, as people wait for them: of developers in layers made for it, and in the root file systems of images.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::report::SECONDS;
use crate::row::{Ground, Row, Scale, Work, found_below, per_second, shared_below, third};
use crate::scene::{run, timed};
use crate::subject::Mounted;

const REPOSITORY: Ground = Ground::Made("repository", repository);
const CRATE: Ground = Ground::Made("crate", package);
const PYTHON: Ground = Ground::Image("ml:1");
const DEBIAN: Ground = Ground::Image("debian:bookworm");
const NODE: Ground = Ground::Image("node-app:1");

/// Those that need nothing but programs first.
pub const ROWS: &[Row] = &[
    row("git status, cold", SECONDS, git_status, REPOSITORY, &["git"]),
    row("git status, warm", SECONDS, |work| third(work, git_status), REPOSITORY, &["git"]),
    row("cargo build", SECONDS, cargo_build, CRATE, &["cargo"]),
    row("import scipy", SECONDS, import, PYTHON, &["chroot"]),
    row("apt-get install", SECONDS, install, DEBIAN, &["chroot", "dpkg-deb"]),
    row("node-app: find", "entries/s", find, NODE, &["find"]),
    row("node-app: find, warm", "entries/s", |work| third(work, find), NODE, &["find"]),
    row("node-app: read every file", "files/s", read, NODE, &[]),
    row("node-app: read every file, warm", "files/s", |work| third(work, read), NODE, &[]),
    row("node-app: chmod -R", "entries/s", chmod, NODE, &["chmod"]),
    row("node-app: rm -rf", "entries/s", remove, NODE, &["rm"]),
];

const fn row(
    name: &'static str,
    unit: &'static str,
    run: fn(&Work) -> anyhow::Result<f64>,
    ground: Ground,
    needs: &'static [&'static str],
) -> Row {
    Row { name, unit, run, ground, needs }
}

fn git(at: &Path) -> Command {
    let mut git = Command::new("git");
    for name in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"] {
        git.env_remove(name);
    }
    git.arg("-C").arg(at).args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]);
    git
}

/// A repository whose files are not those that its index knows by their inodes, as in an image: git reads every file.
fn repository(layer: &Path, scale: &Scale) -> anyhow::Result<()> {
    let made = layer.join("made");
    for d in 0..scale.dirs {
        let dir = made.join(format!("part{}/mod{d}", d % 10));
        fs::create_dir_all(&dir)?;
        for f in 0..scale.files / 2 {
            fs::write(dir.join(format!("file{f}.rs")), format!("// {d} {f}\n").repeat(40))?;
        }
    }
    let hooks = ["-c", "core.hooksPath=/dev/null"];
    timed(git(&made).args(["init", "-q"]))?;
    timed(git(&made).args(["add", "."]))?;
    timed(git(&made).args(hooks).args(["commit", "-q", "-m", "all"]))?;
    run(Command::new("cp").arg("-a").arg(&made).arg(layer.join("repository")))?;
    Ok(fs::remove_dir_all(&made)?)
}

fn git_status(work: &Work) -> anyhow::Result<f64> {
    let at = work.merged.join("repository");
    let (took, said) = timed(git(&at).args(["status", "--porcelain"]))?;
    anyhow::ensure!(said.is_empty(), "git finds changes where there are none");
    Ok(took)
}

/// A package of some modules, without dependencies.
fn package(layer: &Path, scale: &Scale) -> anyhow::Result<()> {
    let source = layer.join("package/src");
    fs::create_dir_all(&source)?;
    fs::write(
        layer.join("package/Cargo.toml"),
        "[package]\nname = \"package\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
    )?;
    let mut main = String::new();
    for module in 0..scale.dirs / 5 {
        let mut text = String::new();
        for f in 0..scale.files / 4 {
            writeln!(
                text,
                "pub fn f{f}(n: u64) -> Option<String> {{\n    let all: Vec<_> = (0..n).map(|x| x * {f}).collect();\n    \
                 all.iter().max().map(|most| format!(\"{{most}} of {{}}\", all.len()))\n}}\n"
            )?;
        }
        fs::write(source.join(format!("m{module}.rs")), text)?;
        writeln!(main, "#[allow(dead_code)]\nmod m{module};")?;
    }
    main += "\nfn main() {\n    println!(\"{:?}\", m0::f0(3));\n}\n";
    Ok(fs::write(source.join("main.rs"), main)?)
}

fn cargo_build(work: &Work) -> anyhow::Result<f64> {
    let at = work.merged.join("package");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "-q", "--offline"]).current_dir(&at).env_remove("CARGO_TARGET_DIR");
    let (took, _) = timed(&mut cargo)?;
    anyhow::ensure!(at.join("target/debug/package").exists(), "nothing was built");
    Ok(took)
}

/// A program in the root file system, which has this machine's devices and processes.
fn inside(work: &Work, words: &[&str]) -> anyhow::Result<f64> {
    let machine = Mounted::machine(work.merged, &["dev", "proc"])?;
    let mut chroot = Command::new("chroot");
    chroot.arg(work.merged).args(words).env_clear().env("LC_ALL", "C");
    chroot.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    chroot.env("DEBIAN_FRONTEND", "noninteractive").env("HOME", "/root");
    let took = timed(&mut chroot);
    drop(machine);
    Ok(took?.0)
}

fn import(work: &Work) -> anyhow::Result<f64> {
    inside(work, &["python3", "-c", "import scipy, scipy.linalg, scipy.sparse"])
}

/// A package of some hundred files, made beforehand.
fn install(work: &Work) -> anyhow::Result<f64> {
    let made = tempfile::tempdir()?;
    let root = made.path().join("root");
    fs::create_dir_all(root.join("DEBIAN"))?;
    fs::write(
        root.join("DEBIAN/control"),
        "Package: strata-bench-sample\nVersion: 1\nArchitecture: all\nMaintainer: bench <bench@localhost>\n\
         Description: files to install\n",
    )?;
    for d in 0..work.scale.dirs.min(20) {
        let dir = root.join(format!("usr/share/strata-bench-sample/d{d}"));
        fs::create_dir_all(&dir)?;
        for f in 0..20 {
            fs::write(dir.join(format!("f{f}")), vec![b'p'; 2048])?;
        }
    }
    let name = "/strata-bench-sample.deb";
    let package = work.merged.join(&name[1..]);
    timed(Command::new("dpkg-deb").args(["-Znone", "--build"]).args([&root, &package]))?;
    inside(work, &["apt-get", "install", "-qq", "-y", "--no-install-recommends", name])
}

fn find(work: &Work) -> anyhow::Result<f64> {
    found_below(work.merged)
}

fn read_below(dir: &Path, buffer: &mut [u8]) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            count += read_below(&entry.path(), buffer)?;
        } else if kind.is_file() {
            let mut file = File::open(entry.path())?;
            while file.read(buffer)? > 0 {}
            count += 1;
        }
    }
    Ok(count)
}

fn read(work: &Work) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let count = read_below(work.merged, &mut vec![0; 1 << 17])?;
    Ok(per_second(count, begun))
}

fn chmod(work: &Work) -> anyhow::Result<f64> {
    Ok(work.entries as f64 / shared_below(work.merged)?)
}

fn remove(work: &Work) -> anyhow::Result<f64> {
    let tops: Vec<_> = fs::read_dir(work.merged)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    let (took, _) = timed(Command::new("rm").arg("-rf").args(tops))?;
    anyhow::ensure!(fs::read_dir(work.merged)?.next().is_none(), "something is left");
    Ok(work.entries as f64 / took)
}
