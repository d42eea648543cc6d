//! `strata logs`: what a container wrote while nobody was attached.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use containers::Container;
use containers::container::Status;

use super::place::Place;

/// Print what a detached container wrote to its standard output and error
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,
    /// Name or id
    container: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let container = Container::find(&store, &args.container)?;
    let path = container.dir.join("log");
    let mut log = match File::open(&path) {
        Ok(log) => log,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            eprintln!("strata: {} was never started detached", container.name);
            return Ok(ExitCode::SUCCESS);
        }
        Err(e) => return Err(e).with_context(|| format!("cannot read {path:?}")),
    };
    let mut out = io::stdout().lock();
    loop {
        // Asked before the rest is read: what comes after is the end.
        let running = args.follow && container.status()? == Status::Running;
        io::copy(&mut log, &mut out)?;
        out.flush()?;
        if !running {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
