//! `strata try`: a command over this machine, its writes caught in a layer, then shown, and applied or not.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use containers::attempt::{Attempt, CONTAIN, Plan, State};
use containers::changes::Changed;
use containers::others::How;

use super::report::size;

/// Run a command over this machine's own files: what it writes is caught, shown, and applied only on your word
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  strata try -- make install        asks afterwards whether to apply, keep or discard
  strata try --base . --discard -- ./cleanup.sh
  strata try --keep -- sh           then: strata try --of ID --apply, and --undo

The command sees all file systems as one and its writes stay in the layer, except in /dev, /proc
and /sys. It is no sandbox: network, devices and sockets are the machine's. Without privileges the
command is root among your own files.")]
pub struct Args {
    /// Catch writes below this directory only; the others are real
    #[arg(long, default_value = "/", value_name = "DIR")]
    base: PathBuf,
    /// Apply the changes afterwards
    #[arg(long, group = "what")]
    apply: bool,
    /// Keep them afterwards, to look at and to apply later
    #[arg(long, group = "what")]
    keep: bool,
    /// Discard them afterwards
    #[arg(long, group = "what")]
    discard: bool,
    /// Take back what was applied; with --of
    #[arg(long, group = "what", requires = "of")]
    undo: bool,
    /// No command: show, --apply, --discard or --undo a kept attempt
    #[arg(long, value_name = "ID", conflicts_with_all = ["command", "base"])]
    of: Option<String>,
    /// No command: list kept attempts
    #[arg(long, conflicts_with_all = ["command", "of", "base", "what"])]
    list: bool,
    /// Where attempts are kept
    #[arg(long, env = "STRATA_TRY_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required_unless_present_any = ["of", "list"])]
    command: Vec<String>,
}

/// Contains the command of an attempt where the arguments ask for it.
pub fn by_name(args: &[OsString]) -> Option<ExitCode> {
    let [_, name, dir] = args else { return None };
    if name != CONTAIN {
        return None;
    }
    Some(match containers::attempt::contain(Path::new("/proc/self/exe"), Path::new(dir)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("strata: {error}");
            ExitCode::from(125)
        }
    })
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let all = match &args.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => state_dir()?.join("try"),
    };
    if args.list {
        return list(&all);
    }
    if let Some(id) = &args.of {
        return settle(args, Attempt::open(&all, id)?, false, ExitCode::SUCCESS);
    }
    let base = fs::canonicalize(&args.base).with_context(|| format!("no base {:?}", args.base))?;
    if !base.is_dir() {
        bail!("the base {base:?} is not a directory");
    }
    let cwd = std::env::current_dir().context("the working directory is gone")?;
    let plan = Plan {
        base,
        command: args.command.clone(),
        env: environment(),
        cwd: cwd.to_str().context("the working directory has no name in UTF-8")?.to_owned(),
        rootless: !rustix::process::geteuid().is_root(),
    };
    let attempt = Attempt::create(&all, plan)?;
    for other in &attempt.record.others {
        let how = match other.how {
            How::ReadOnly => "shown as it is, and can't be written to",
            How::Scratch => "empty here, and what is written there goes",
            How::Hidden => "not shown",
        };
        eprintln!("strata: {:?} is another file system: {how}", other.at);
    }
    // The terminal's signals are for the command; what comes of them is its status.
    let ends = sys::signal::Ends::hold().context("signals can't be held")?;
    let status = Command::new("/proc/self/exe")
        .arg(CONTAIN)
        .arg(&attempt.dir)
        .status()
        .context("cannot start ourselves")?;
    ends.release().context("signals can't be released")?;
    let code = runtime::launch::code(status);
    if code == 125 && attempt.changes()?.is_empty() {
        attempt.discard()?;
        return Ok(ExitCode::from(code));
    }
    settle(args, attempt, true, ExitCode::from(code))
}

fn settle(
    args: &Args,
    mut attempt: Attempt,
    fresh: bool,
    code: ExitCode,
) -> anyhow::Result<ExitCode> {
    let mut err = std::io::stderr().lock();
    if args.undo {
        let count = attempt.undo()?;
        writeln!(err, "{count} paths are as they were; the changes are kept as {}", attempt.id)?;
        return Ok(code);
    }
    if let State::Applied(_) = attempt.record.state
        && !args.discard
    {
        bail!("{} is applied; --undo takes it back, --discard forgets it", attempt.id);
    }
    let changes = attempt.changes()?;
    if !args.discard || fresh {
        show(&attempt.record.base, &changes, fresh)?;
    }
    if fresh && changes.is_empty() {
        attempt.discard()?;
        return Ok(code);
    }
    let what = if args.apply {
        b'a'
    } else if args.discard {
        b'd'
    } else if args.keep || !fresh || !std::io::stdin().is_terminal() {
        b'k'
    } else {
        ask()?
    };
    let id = attempt.id.clone();
    match what {
        b'a' => {
            if fresh {
                attempt.keep(&changes)?;
            }
            let count = attempt.apply().with_context(|| format!("the changes stay in {id}"))?;
            writeln!(err, "{count} paths applied; strata try --of {id} --undo takes them back")?;
        }
        b'd' => {
            attempt.discard()?;
            writeln!(err, "discarded")?;
        }
        _ if fresh => {
            attempt.keep(&changes)?;
            writeln!(err, "kept as {id}: strata try --of {id} shows it, --apply applies it")?;
        }
        _ => {}
    }
    Ok(code)
}

/// After a command on stderr, which leaves stdout to it; asked for by --of on stdout.
fn show(base: &Path, changes: &[Changed], fresh: bool) -> anyhow::Result<()> {
    let mut out: Box<dyn Write> =
        if fresh { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout().lock()) };
    if fresh && changes.is_empty() {
        writeln!(out, "strata: nothing changed")?;
    }
    for changed in changes {
        write!(out, "{} ", changed.change.letter())?;
        let path = base.join(changed.path.strip_prefix("/").unwrap_or(&changed.path));
        out.write_all(path.as_os_str().as_bytes())?;
        match changed.growth() {
            0 => writeln!(out)?,
            growth => writeln!(out, "  {}", size(growth))?,
        }
    }
    Ok(())
}

fn ask() -> anyhow::Result<u8> {
    let mut line = String::new();
    for _ in 0..3 {
        eprint!(
            "Apply these changes to this machine, keep them for later, or discard them? [a/k/d] "
        );
        line.clear();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            break;
        }
        match line.trim().to_ascii_lowercase().as_str() {
            "a" | "apply" => return Ok(b'a'),
            "d" | "discard" => return Ok(b'd'),
            "k" | "keep" => return Ok(b'k'),
            _ => {}
        }
    }
    Ok(b'k')
}

fn list(all: &Path) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for attempt in Attempt::list(all)? {
        let state = match attempt.record.state {
            State::Started => "cut off",
            State::Kept => "kept",
            State::Applied(_) => "applied",
        };
        let base = attempt.record.base.display();
        let command = attempt.record.command.join(" ");
        writeln!(out, "{}  {state:<8} {base}  {command}", attempt.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where root, or this user, keeps what outlives a command.
fn state_dir() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/strata".into());
    }
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    home("XDG_STATE_HOME")
        .or_else(|| home("HOME").map(|home| home.join(".local/state")))
        .map(|dir| dir.join("strata"))
        .context("neither XDG_STATE_HOME nor HOME is set: give --dir")
}

/// The environment, as far as it is text.
fn environment() -> Vec<String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value.to_str()?)))
        .collect()
}
