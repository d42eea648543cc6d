//! `strata run`: a container made, started and waited for.

use std::process::ExitCode;

use anyhow::bail;

use super::create::What;
use super::place::Place;
use super::start;

/// Run a command in a new container
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:
  strata run --rm -it debian bash
  strata run -d --name web -v $PWD/site:/srv:ro nginx"
)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    what: What,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Have a terminal
    #[arg(short, long)]
    tty: bool,
    /// Print the id and leave it running; strata logs has what it says
    #[arg(short, long)]
    detach: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.detach && args.tty {
        bail!("a terminal needs somebody at it: give -d or -t, not both");
    }
    let root = args.place.root()?;
    let store = args.place.open()?;
    let container = args.what.create(&store, &args.place, args.tty)?;
    if args.detach {
        start::detached(&root, &container)?;
        println!("{}", container.id);
        return Ok(ExitCode::SUCCESS);
    }
    let code = start::attached(&root, &container, args.interactive);
    // Open until now: the last to close a database writes it all back, and the watcher has no time for that.
    drop(store);
    code
}
