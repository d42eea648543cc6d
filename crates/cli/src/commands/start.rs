//! `strata start`: runs a container that was made before.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use containers::Container;
use containers::watch::WATCH;
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::place::Place;
use super::terminal;

/// Start containers
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata start web")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Wait for its end, with its standard files here
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on; with --attach
    #[arg(short, long, requires = "attach")]
    interactive: bool,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Watches a container where the arguments ask for it: `WATCH ROOT ID attached|detached [READY]`.
pub fn by_name(args: &[OsString]) -> Option<ExitCode> {
    let [_, name, root, id, how, rest @ ..] = args else { return None };
    if name != WATCH {
        return None;
    }
    let ready = rest.first().and_then(|number| number.to_str()?.parse().ok());
    let attached = how == "attached";
    let exe = Path::new("/proc/self/exe");
    let id = id.to_str()?;
    Some(match containers::watch::watch(exe, Path::new(root), id, ready, attached) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Who waits for it to be ready says it. With a terminal, standard error is one in raw mode.
            if ready.is_none() {
                eprint!("strata: {error}\r\n");
            }
            ExitCode::from(125)
        }
    })
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let root = args.place.root()?;
    let store = args.place.open()?;
    if args.attach {
        let [name] = args.containers.as_slice() else { bail!("only one can be attached to") };
        let container = Container::find(&store, name)?;
        drop(store);
        return attached(&root, &container, args.interactive);
    }
    for name in &args.containers {
        detached(&root, &Container::find(&store, name)?)?;
        writeln!(std::io::stdout(), "{name}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn watcher(root: &Path, container: &Container, how: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("strata").args([OsStr::new(WATCH), root.as_os_str()]);
    command.args([container.id.as_str(), how]);
    command
}

/// Starts it and waits for its end; its status.
pub fn attached(root: &Path, container: &Container, interactive: bool) -> anyhow::Result<ExitCode> {
    tell_of_limit(container);
    let command = watcher(root, container, "attached");
    terminal::attend(command, container.config.terminal, interactive)
}

/// Says where a limit is no longer kept by the file system.
fn tell_of_limit(container: &Container) {
    if let Some(why) = container.limit_unkept() {
        let name = &container.name;
        eprintln!(
            "strata: {name}: its limit is counted by Strata, and no longer by the file system: {why}"
        );
    }
}

/// Starts it, and returns once its command runs.
pub fn detached(root: &Path, container: &Container) -> anyhow::Result<()> {
    if container.config.terminal {
        bail!("{} has a terminal, which needs somebody at it: start --attach", container.name);
    }
    tell_of_limit(container);
    let path = container.dir.join("log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot open {path:?}"))?;
    let said = until_ready(|ready| {
        let mut command = watcher(root, container, "detached");
        command.arg(ready.to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    })?;
    if !said.is_empty() {
        bail!("{} did not start: {said}", container.name);
    }
    Ok(())
}

/// Starts a process that outlives this one: the command that `of` makes of the number of a descriptor. Returns once that
/// is closed; what was said on it, which is why it does not run.
pub fn until_ready(of: impl FnOnce(i32) -> anyhow::Result<Command>) -> anyhow::Result<String> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).context("no pipe")?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let mut command = of(theirs.as_raw_fd())?;
    let _process = command.current_dir("/").spawn().context("cannot start ourselves")?;
    drop(theirs);
    let mut said = String::new();
    File::from(ours).read_to_string(&mut said).context("the container can't be heard")?;
    Ok(said)
}
