//! `strata stop` and `strata kill`: ends containers.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use containers::Container;
use containers::container::Status;

use super::place::Place;

/// Ask containers to end, and end them if they don't
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata stop web")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Seconds that they have, in place of their own --stop-timeout
    #[arg(short, long, alias = "timeout", value_name = "SECONDS")]
    time: Option<u64>,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Wait until containers end, and print their exit statuses
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata wait web")]
pub struct WaitArgs {
    #[command(flatten)]
    place: Place,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Send a signal to the first process of containers
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata kill web")]
pub struct KillArgs {
    #[command(flatten)]
    place: Place,
    /// By name or number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    for name in &args.containers {
        Container::find(&store, name)?.stop(args.time.map(Duration::from_secs))?;
        writeln!(std::io::stdout(), "{name}")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn wait(args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    for name in &args.containers {
        let container = Container::find(&store, name)?;
        while container.status()? == Status::Running {
            std::thread::sleep(Duration::from_millis(5));
        }
        // One that was cut off has no status of its own: whoever watched it was killed.
        writeln!(std::io::stdout(), "{}", container.state().exit_code.unwrap_or(137))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn kill(args: &KillArgs) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let signal = containers::control::signal(&args.signal)?;
    for name in &args.containers {
        Container::find(&store, name)?.kill(signal)?;
        writeln!(std::io::stdout(), "{name}")?;
    }
    Ok(ExitCode::SUCCESS)
}
