//! `strata install`: makes an engine use Strata, after it has shown how, and takes that back.
//!
//! Each file that is changed is kept beside itself before, as `FILE.before-strata`; one that was not there is kept as an
//! empty one. Whoever takes the change back gets exactly that file.

mod edit;
mod files;
mod unit;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use crate::context::{note, out};
use edit::{Settings, Version};
use files::Change;

/// Make containerd, podman or Docker use Strata
///
/// Shows first what would change in which file for the version that is found, and asks. What was there before is kept
/// beside each file, and --undo brings it back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  strata install containerd
  strata install containerd --kubernetes --yes
  strata install docker --yes
  strata install podman --undo")]
pub struct Args {
    /// The engine
    #[arg(value_enum)]
    engine: Engine,
    /// Do it without asking
    #[arg(short, long)]
    yes: bool,
    /// Bring back what was there before
    #[arg(long)]
    undo: bool,
    /// Also make it what Kubernetes uses on this machine (containerd's CRI)
    #[arg(long)]
    kubernetes: bool,
    /// The engine's version, instead of asking it
    #[arg(long, value_name = "X.Y")]
    engine_version: Option<String>,
    /// Below which directory the files are: that of another system's root
    #[arg(long, value_name = "DIR", default_value = "/")]
    prefix: PathBuf,
    /// The store that the snapshotter is to have
    #[arg(long, value_name = "DIR", default_value = "/var/lib/strata")]
    store: PathBuf,
    /// The socket on which the snapshotter is to serve
    #[arg(long, value_name = "SOCKET", default_value = "/run/strata/snapshotter.sock")]
    address: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    Containerd,
    Podman,
    Docker,
}

impl Args {
    fn at(&self, path: &str) -> PathBuf {
        self.prefix.join(path.trim_start_matches('/'))
    }

    fn version(&self, program: &str) -> anyhow::Result<Version> {
        if let Some(given) = &self.engine_version {
            return Version::find(given).with_context(|| format!("{given:?} is no version"));
        }
        let asked = Command::new(program).arg("--version").output();
        let asked = asked.with_context(|| {
            format!(
                "{program} can't be asked for its version: install it, or give --engine-version"
            )
        })?;
        let said = String::from_utf8_lossy(&asked.stdout).into_owned();
        Version::find(&said).with_context(|| format!("no version in what {program} says: {said:?}"))
    }

    fn settings(&self) -> Settings {
        Settings {
            store: self.store.clone(),
            address: self.address.clone(),
            kubernetes: self.kubernetes,
        }
    }
}

/// What is to be done, and what remains for whoever asked.
struct Plan {
    changes: Vec<Change>,
    next: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = match args.engine {
        Engine::Containerd => containerd(args)?,
        Engine::Podman => podman(args)?,
        Engine::Docker => docker(args)?,
    };
    let mut shown = String::new();
    let mut todo = Vec::new();
    for change in &plan.changes {
        let act = if args.undo { change.undone()? } else { change.done()? };
        if let Some(act) = act {
            shown += &act.shown();
            todo.push(act);
        }
    }
    if todo.is_empty() {
        note("nothing is to be changed");
        return Ok(ExitCode::SUCCESS);
    }
    out(shown.as_bytes())?;
    if !args.yes && !agreed()? {
        note("nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    for act in todo {
        act.apply()?;
    }
    if !plan.next.is_empty() {
        note("Now:");
    }
    for line in plan.next {
        note(&format!("  {line}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn agreed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        note("give --yes to do this");
        return Ok(false);
    }
    write!(std::io::stderr(), "Do this? [y/N] ")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn containerd(args: &Args) -> anyhow::Result<Plan> {
    let version = args.version("containerd")?;
    let settings = args.settings();
    let config = Change::new(args.at("/etc/containerd/config.toml"), move |text| {
        edit::containerd(text, version, &settings)
    });
    let mut changes = vec![config];
    changes.extend(units(args)?);
    let next = if args.undo {
        vec![
            "systemctl disable --now strata-snapshotter.socket strata-snapshotter.service"
                .to_owned(),
        ]
    } else {
        vec![
            "systemctl daemon-reload && systemctl enable --now strata-snapshotter.socket"
                .to_owned(),
        ]
    };
    let next = [next, vec!["systemctl restart containerd".to_owned()]].concat();
    Ok(Plan { changes, next })
}

/// The units of systemd, unless the package has brought them.
fn units(args: &Args) -> anyhow::Result<Vec<Change>> {
    let packaged = ["/lib/systemd/system", "/usr/lib/systemd/system"];
    if packaged.iter().any(|dir| args.at(dir).join("strata-snapshotter.socket").exists()) {
        return Ok(Vec::new());
    }
    let program = std::env::current_exe().context("where this program is")?;
    let dir = args.at("/etc/systemd/system");
    let service = unit::service(&program, &args.settings());
    let socket = unit::socket(&args.address);
    Ok(vec![
        Change::new(dir.join("strata-snapshotter.service"), move |_| Ok(service.clone())),
        Change::new(dir.join("strata-snapshotter.socket"), move |_| Ok(socket.clone())),
    ])
}

/// The oldest Docker whose containerd image store can have any snapshotter.
const DOCKER: Version = Version(25, 0);

fn docker(args: &Args) -> anyhow::Result<Plan> {
    let version = args.version("dockerd")?;
    if version < DOCKER {
        bail!(
            "Docker {version} has no containerd image store that could use Strata: it needs {DOCKER}"
        );
    }
    // Its containerd is configured as any other; which one that is, only that can say.
    let engine = Args { engine: Engine::Containerd, engine_version: None, ..clone(args) };
    let mut plan = match containerd(&engine) {
        Ok(plan) => plan,
        Err(error) if args.engine_version.is_some() => {
            tracing::debug!(%error, "no containerd to ask");
            containerd(&Args { engine_version: Some("1.7".to_owned()), ..engine })?
        }
        Err(error) => return Err(error),
    };
    let daemon = args.at("/etc/docker/daemon.json");
    plan.changes.push(Change::new(daemon, edit::docker));
    plan.next.push("systemctl restart docker".to_owned());
    if !args.undo {
        plan.next.push(
            "docker pull: images of the store before are not shown under this one".to_owned(),
        );
    }
    Ok(plan)
}

fn clone(args: &Args) -> Args {
    Args {
        engine: args.engine,
        yes: args.yes,
        undo: args.undo,
        kubernetes: args.kubernetes,
        engine_version: args.engine_version.clone(),
        prefix: args.prefix.clone(),
        store: args.store.clone(),
        address: args.address.clone(),
    }
}

fn podman(args: &Args) -> anyhow::Result<Plan> {
    let root = rustix::process::geteuid().is_root();
    let program = std::env::current_exe().context("where this program is")?;
    let home = || std::env::var_os("HOME").map(PathBuf::from).context("HOME is not set");
    // By this name it takes what podman gives to fuse-overlayfs.
    let (config, link) = if root {
        (
            args.at("/etc/containers/storage.conf"),
            args.at("/usr/local/libexec/strata/fuse-overlayfs"),
        )
    } else {
        let home = home()?;
        (
            home.join(".config/containers/storage.conf"),
            home.join(".local/libexec/strata/fuse-overlayfs"),
        )
    };
    let packaged = Path::new("/usr/libexec/strata/fuse-overlayfs");
    let defaults = args.at("/usr/share/containers/storage.conf");
    let (link, links) = if args.at("/usr/libexec/strata/fuse-overlayfs").exists() {
        (packaged.to_owned(), Vec::new())
    } else {
        (link.clone(), vec![Change::link(link, program)])
    };
    let shown = if args.prefix == Path::new("/") {
        link
    } else {
        Path::new("/").join(link.strip_prefix(&args.prefix).unwrap_or(&link))
    };
    let edit = Change::new(config, move |text| {
        // Without a file the defaults count, of which the system's own has to name its directories.
        let text = if text.is_empty() && root {
            std::fs::read_to_string(&defaults).unwrap_or_default()
        } else {
            text.to_owned()
        };
        edit::podman(&text, &shown, root)
    });
    let mut changes = links;
    changes.push(edit);
    let next = vec!["podman info --format '{{.Store.GraphOptions}}' shows it".to_owned()];
    Ok(Plan { changes, next: if args.undo { Vec::new() } else { next } })
}
