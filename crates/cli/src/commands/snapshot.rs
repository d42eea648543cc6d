//! `strata snapshot` and `strata rollback`: a container's writable layer, frozen and gone back to.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use containers::Container;

use super::place::Place;

/// Freeze what a container wrote, or list what was frozen
///
/// Of a stopped one at no cost; of one that runs a copy, for which its processes stand still. A rollback is for a
/// stopped one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata snapshot web before")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// List its snapshots
    #[arg(short, long)]
    list: bool,
    /// Name or id
    container: String,
    /// A name for the snapshot; a number otherwise
    #[arg(conflicts_with = "list")]
    name: Option<String>,
}

/// Take a stopped container back to a snapshot, or an image's name back to where it led before
///
/// What the container wrote since the snapshot is gone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata rollback web before")]
pub struct RollbackArgs {
    #[command(flatten)]
    place: Place,
    /// A container, by name or id, or the name of an image
    #[arg(value_name = "CONTAINER|IMAGE")]
    container: String,
    /// The snapshot; the latest that it stands on otherwise
    snapshot: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let mut container = Container::find(&store, &args.container)?;
    let mut out = std::io::stdout().lock();
    if args.list {
        for snapshot in &container.config.snapshots {
            let here = container.config.current.as_ref() == Some(&snapshot.name);
            let mark = if here { '*' } else { ' ' };
            let parent = snapshot.parent.as_deref().unwrap_or("the image");
            writeln!(out, "{mark} {}  on {parent}", snapshot.name)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let name = args.name.clone().unwrap_or_else(|| {
        let taken = |name: &String| container.config.snapshots.iter().any(|s| s.name == *name);
        let mut number = container.config.snapshots.len() + 1;
        loop {
            let name = format!("s{number}");
            if !taken(&name) {
                return name;
            }
            number += 1;
        }
    });
    container.snapshot(&store, &name)?;
    writeln!(out, "{name}")?;
    Ok(ExitCode::SUCCESS)
}

pub fn rollback(args: &RollbackArgs) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let mut container = match Container::find(&store, &args.container) {
        Ok(container) => container,
        Err(_) if args.snapshot.is_none() && store.image(&args.container).is_ok() => {
            writeln!(std::io::stdout(), "{}", store.roll_back_tag(&args.container)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(e) => return Err(e.into()),
    };
    let name = match args.snapshot.clone().or_else(|| container.config.current.clone()) {
        Some(name) => name,
        None => container
            .config
            .snapshots
            .last()
            .map(|snapshot| snapshot.name.clone())
            .with_context(|| format!("{} has no snapshot", container.name))?,
    };
    container.roll_back(&store, &name)?;
    writeln!(std::io::stdout(), "{name}")?;
    Ok(ExitCode::SUCCESS)
}
