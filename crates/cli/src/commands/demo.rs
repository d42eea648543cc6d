//! `strata demo`: the story of layers with real figures, from this machine's own files.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use containers::{Container, sample};
use store::Store;

use super::report::bytes;

/// Show what layers are, in seconds, with this machine's own files; nothing is left behind
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata demo")]
pub struct Args {
    /// Leave the store behind, to look around in it
    #[arg(long)]
    keep: bool,
}

/// What the base image has: enough to look around.
const PROGRAMS: [&str; 6] = ["/bin/sh", "/bin/cat", "/bin/ls", "/bin/rm", "/bin/sed", "/bin/sleep"];

const CONF: &str = "/etc/nginx/nginx.conf";

const INDEX: &str = "/usr/share/nginx/html/index.html";

const CONFIGURATION: &str = "worker_processes 1;\nevents {}\nhttp { server { listen 80; } }\n";

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = std::env::temp_dir().join(format!("strata-demo-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("cannot make {dir:?}"))?;
    let demo = Demo { dir, root: PathBuf::new() };
    let demo = Demo { root: demo.dir.join("store"), ..demo };
    let told = demo.tell();
    demo.end();
    if args.keep {
        eprintln!("kept: STRATA_ROOT={}", demo.root.display());
    } else {
        containers::tree::remove_path(&demo.dir)?;
    }
    told.map(|()| ExitCode::SUCCESS)
}

struct Demo {
    dir: PathBuf,
    root: PathBuf,
}

impl Demo {
    fn tell(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let store = Store::open(&self.root)?;
        self.images(&store)?;
        self.containers(&store)?;
        self.fall_through(&store)?;
        self.copy_up(&store)?;
        self.whiteout(&store)?;
        self.commit(&store)?;
        self.clean_up(&store)?;
        say(&format!(
            "That took {:.1} s, and nothing is left of it.",
            began.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// Ends what still runs, however the story went.
    fn end(&self) {
        let Ok(store) = Store::open(&self.root) else { return };
        for container in Container::list(&store).unwrap_or_default() {
            if let Err(error) = container.stop(Some(Duration::ZERO)) {
                eprintln!("strata: {error}");
            }
        }
    }

    fn images(&self, store: &Store) -> anyhow::Result<()> {
        say("1. Two images of this machine's own files. Both stand on one base layer.");
        let at = |path: &str| self.dir.join("made").join(path);
        sample::programs(&PROGRAMS, &at("base"))?;
        let release = fs::read("/etc/os-release").unwrap_or_else(|_| b"NAME=unknown\n".to_vec());
        for (path, text) in [
            ("base/etc/passwd", b"root:x:0:0::/root:/bin/sh\n".as_slice()),
            ("base/etc/os-release", &release),
            ("web/etc/nginx/nginx.conf", CONFIGURATION.as_bytes()),
            ("web/etc/nginx/mime.types", b"types { text/html html; }\n"),
            ("web/usr/share/nginx/html/index.html", b"<h1>It works</h1>\n"),
            ("db/etc/db/db.conf", b"port = 5432\n"),
        ] {
            let file = at(path);
            fs::create_dir_all(file.parent().unwrap_or(&self.dir))?;
            fs::write(&file, text).with_context(|| format!("cannot write {file:?}"))?;
        }
        for (name, top) in [("web:1", "web"), ("db:1", "db")] {
            sample::add(store, name, &[at("base"), at(top)], &["sleep", "600"])?;
            let image = store.image(name)?;
            let layers: Vec<String> = image.layers.iter().map(|layer| bytes(layer.bytes)).collect();
            line(&format!("{name:<6} {} = {}", bytes(image.bytes()), layers.join(" + ")));
        }
        let usage = store.usage()?;
        line(&format!(
            "both   {} in the store, not {}: the base layer is there once",
            bytes(usage.bytes),
            bytes(usage.bytes + usage.shared_layers)
        ));
        Ok(())
    }

    fn containers(&self, store: &Store) -> anyhow::Result<()> {
        say("2. Two containers of one image. Each is an empty writable layer, whatever the image.");
        for name in ["one", "two"] {
            let (_, took) = self.strata(&["create", "--name", name, "web:1"])?;
            let container = Container::find(store, name)?;
            let disk = disk(&container.dir)?;
            line(&format!("{:.0} ms, {} on disk", took.as_secs_f64() * 1e3, bytes(disk)));
        }
        self.strata(&["start", "one", "two"])?;
        Ok(())
    }

    fn fall_through(&self, store: &Store) -> anyhow::Result<()> {
        say("3. A read falls through to the uppermost layer that has the file.");
        self.strata(&["exec", "one", "sed", "-n", "1p", "/etc/os-release"])?;
        let container = Container::find(store, "one")?;
        self.layers(store, &container, "etc/os-release")?;
        if let Some(backend) = container.state().backend {
            let why = container.state().why;
            line(&format!("(shown by {backend:?}: {why})").to_lowercase());
        }
        Ok(())
    }

    /// Which layer of a container has a path, from the top.
    fn layers(&self, store: &Store, container: &Container, path: &str) -> anyhow::Result<()> {
        let image = store.image("web:1")?;
        let lowers = store.lower_dirs(&image);
        let names = ["the writable layer", "the layer of web:1", "the base layer"];
        for (name, dir) in names.iter().zip(std::iter::once(&container.upper()).chain(&lowers)) {
            let file = dir.join(path);
            let Ok(meta) = fs::symlink_metadata(&file) else {
                line(&format!("{name:<20} -"));
                continue;
            };
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                line(&format!("{name:<20} /{path}: a device 0:0, which says: deleted"));
            } else {
                line(&format!("{name:<20} /{path}, {}", bytes(meta.len())));
            }
        }
        Ok(())
    }

    fn copy_up(&self, store: &Store) -> anyhow::Result<()> {
        say("4. An edit copies the file up into the writable layer first. The image stays.");
        self.strata(&["exec", "one", "sed", "-i", "s/listen 80/listen 8080/", CONF])?;
        let container = Container::find(store, "one")?;
        self.layers(store, &container, CONF.trim_start_matches('/'))?;
        for name in ["one", "two"] {
            self.strata(&["exec", name, "sed", "-n", "3p", CONF])?;
        }
        Ok(())
    }

    fn whiteout(&self, store: &Store) -> anyhow::Result<()> {
        say("5. A deleted file can't go from the image: a whiteout hides it.");
        self.strata(&["exec", "one", "rm", INDEX])?;
        self.strata(&["exec", "one", "ls", "/usr/share/nginx/html"])?;
        let container = Container::find(store, "one")?;
        self.layers(store, &container, INDEX.trim_start_matches('/'))?;
        line("All that the container changed, read from its writable layer alone:");
        let (_, took) = self.strata(&["diff", "one"])?;
        line(&format!("in {:.0} ms", took.as_secs_f64() * 1e3));
        Ok(())
    }

    fn commit(&self, store: &Store) -> anyhow::Result<()> {
        say("6. A commit makes a layer of the changes: a new image, on the layers of the old.");
        let before = store.usage()?;
        self.strata(&["commit", "-m", "listen on 8080", "one", "web:2"])?;
        let after = store.usage()?;
        let (old, new) = (store.image("web:1")?, store.image("web:2")?);
        let shared = new
            .layers
            .iter()
            .filter(|layer| old.layers.iter().any(|known| known.diff_id == layer.diff_id));
        line(&format!(
            "web:2 has {} layers, {} of them those of web:1; it takes {} more",
            new.layers.len(),
            shared.count(),
            bytes(after.bytes.saturating_sub(before.bytes))
        ));
        self.strata(&["run", "--rm", "web:2", "sed", "-n", "3p", CONF])?;
        Ok(())
    }

    fn clean_up(&self, store: &Store) -> anyhow::Result<()> {
        say("7. What nothing needs any more goes; what others share stays.");
        self.strata(&["rm", "--force", "one", "two"])?;
        for (image, what) in [("db:1", "its own layer"), ("web:1", "no layer: web:2 has them")] {
            let before = store.usage()?;
            store.remove(image)?;
            let freed = before.bytes.saturating_sub(store.usage()?.bytes);
            line(&format!("without {image}: {} less, {what}", bytes(freed)));
        }
        let before = store.usage()?;
        store.remove("web:2")?;
        let freed = before.bytes.saturating_sub(store.usage()?.bytes);
        line(&format!("without web:2: {} less, all the rest", bytes(freed)));
        store.empty_trash()?;
        Ok(())
    }

    /// Runs ourselves as a user would, shows the command and what it says, and gives that and the time it took.
    fn strata(&self, args: &[&str]) -> anyhow::Result<(String, Duration)> {
        let (good, said, took) = self.shown(args)?;
        if !good {
            bail!("strata {} failed; strata info tells what this machine allows", args.join(" "));
        }
        Ok((said, took))
    }

    fn shown(&self, args: &[&str]) -> anyhow::Result<(bool, String, Duration)> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
        let quoted = args.iter().map(|arg| {
            if arg.chars().all(plain) { (*arg).to_owned() } else { format!("\"{arg}\"") }
        });
        println!("   $ strata {}", quoted.collect::<Vec<_>>().join(" "));
        let began = Instant::now();
        let output = self.command(args).output().context("cannot start ourselves")?;
        let took = began.elapsed();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        for text in said.lines() {
            let short: String = text.chars().take(90).collect();
            println!("   {short}");
        }
        for text in complaint.lines() {
            println!("   {text}");
        }
        std::io::stdout().flush()?;
        Ok((output.status.success(), said, took))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(args).env("STRATA_ROOT", &self.root).stdin(Stdio::null());
        command
    }
}

/// Bytes of a tree's blocks.
fn disk(path: &Path) -> anyhow::Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    let mut sum = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            sum += disk(&entry?.path())?;
        }
    }
    Ok(sum)
}

fn say(text: &str) {
    println!("\n{text}");
}

fn line(text: &str) {
    println!("   {text}");
}
