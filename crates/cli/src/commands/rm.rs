//! `strata rm` and `strata rename`: containers go, or get another name.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use containers::Container;

use super::place::{Place, become_root};

/// Remove containers with what they wrote; images stay
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata rm web")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Also those that run
    #[arg(short, long)]
    force: bool,
    /// Also their volumes without a name, which stay otherwise
    #[arg(short, long)]
    volumes: bool,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Give a container another name
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata rename web old-web")]
pub struct RenameArgs {
    #[command(flatten)]
    place: Place,
    /// Name or id
    container: String,
    /// The name from now on
    name: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    for name in &args.containers {
        let container = Container::find(&store, name)?;
        if args.force {
            container.stop(Some(Duration::ZERO))?;
        }
        if container.dir.exists() {
            container.remove(&store, args.volumes)?;
        }
        writeln!(std::io::stdout(), "{name}")?;
    }
    become_root()?;
    store.empty_trash()?;
    Ok(ExitCode::SUCCESS)
}

pub fn rename(args: &RenameArgs) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    Container::find(&store, &args.container)?.rename(&store, &args.name)?;
    Ok(ExitCode::SUCCESS)
}
