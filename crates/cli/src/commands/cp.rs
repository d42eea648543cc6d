//! `strata cp`: files between a container and this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use containers::Container;
use containers::transfer::{Owner, copy_in, copy_out};

use super::place::Place;

/// Copy files into or out of a container, whether it runs or not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  strata cp nginx.conf web:/etc/nginx/
  strata cp web:/var/log/nginx ./logs
  strata cp ./site/. web:/srv          the content of ./site")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Keep owners; copies are root's in the container, and yours here, otherwise
    #[arg(short, long)]
    archive: bool,
    /// A path, or CONTAINER:PATH
    source: String,
    /// The other
    destination: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let owner = |uid, gid| if args.archive { Owner::Same } else { Owner::Of(uid, gid) };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    match (split(&args.source), split(&args.destination)) {
        (Some((name, from)), None) => {
            let to = std::path::absolute(&args.destination)?;
            let opened = open(args, name)?;
            // In a user namespace of ours we are root, and so is what was ours.
            let ours = rustix::process::geteuid().as_raw() == uid;
            let owner = if ours { owner(uid, gid) } else { owner(0, 0) };
            copy_out(&opened, &from, &to, owner)?;
            opened.close()?;
        }
        (None, Some((name, to))) => {
            let mut from = std::path::absolute(&args.source)?;
            if args.source.ends_with("/.") {
                from.push(".");
            }
            let opened = open(args, name)?;
            copy_in(&opened, &from, &to, owner(0, 0))?;
            opened.close()?;
        }
        _ => bail!("one of the two must be in a container: CONTAINER:PATH"),
    }
    Ok(ExitCode::SUCCESS)
}

fn open(args: &Args, name: &str) -> anyhow::Result<containers::transfer::Opened> {
    let store = args.place.open()?;
    let container = Container::find(&store, name)?;
    Ok(container.open_tree(&store, Path::new("/proc/self/exe"))?)
}

/// The container and the path in it; none for a path here, which begins with `/` or `.`, or has no colon.
fn split(text: &str) -> Option<(&str, PathBuf)> {
    if text.starts_with(['/', '.']) {
        return None;
    }
    let (name, path) = text.split_once(':')?;
    Some((name, Path::new("/").join(path)))
}
