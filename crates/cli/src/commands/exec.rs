//! `strata exec`: one command more in a container that runs.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use containers::Container;
use containers::container::Config;
use containers::control::{ENTER, Entry};

use super::flags::{env_file, variables};
use super::place::Place;
use super::{start, terminal};

/// Run a command in a running container
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata exec -it web sh\n  strata exec -d web nginx -s reload")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Return once it runs; what it writes goes nowhere
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Have a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables that this file lists; --env comes after it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Do all that a root may
    #[arg(long)]
    privileged: bool,
    /// Start in this directory
    #[arg(short, long, value_name = "DIR", default_value = "")]
    workdir: String,
    /// Be this user
    #[arg(short, long, value_name = "USER[:GROUP]", default_value = "")]
    user: String,
    /// Name or id
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Enters a container where the arguments ask for it: `ENTER BUNDLE ENTRY`.
pub fn by_name(args: &[OsString]) -> Option<ExitCode> {
    let [_, name, bundle, entry] = args else { return None };
    if name != ENTER {
        return None;
    }
    let entry: Entry = serde_json::from_str(entry.to_str()?).ok()?;
    Some(match containers::control::enter(Path::new(bundle), entry) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprint!("strata: {error}\r\n");
            ExitCode::from(match error {
                containers::Error::Runtime(error) => error.exit_code(),
                _ => 125,
            })
        }
    })
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let container = Container::find(&store, &args.container)?;
    let mut env = Vec::new();
    for file in &args.env_file {
        env.extend(env_file(file)?);
    }
    env.extend(variables(&args.env)?);
    let change = Config {
        args: args.command.clone(),
        env,
        privileged: args.privileged,
        cwd: args.workdir.clone(),
        terminal: args.tty,
        ..Config::default()
    };
    let mut entry = Entry {
        pid: container.running()?,
        rootless: !rustix::process::geteuid().is_root(),
        user: args.user.clone(),
        unconfined: args.privileged,
        ready: None,
        process: container.process(&change)?,
    };
    let enter = |entry: &Entry| {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("strata").arg(ENTER).arg(&container.dir).arg(serde_json::to_string(entry)?);
        anyhow::Ok(command)
    };
    drop(store);
    if args.detach {
        let said = start::until_ready(|ready| {
            entry.ready = Some(ready);
            let mut command = enter(&entry)?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Ok(command)
        })?;
        anyhow::ensure!(said.is_empty(), "{said}");
        return Ok(ExitCode::SUCCESS);
    }
    terminal::attend(enter(&entry)?, args.tty, args.interactive)
}
