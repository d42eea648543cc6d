//! `strata cp`: files between a container and this machine.

use std::io::{BufReader, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use containers::Container;
use containers::transfer::{Opened, Owner, copy_in, copy_in_tar, copy_out, copy_out_tar};
use store::Store;

use super::place::Place;

/// Copy files into or out of a container, whether it runs or not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  strata cp nginx.conf web:/etc/nginx/
  strata cp web:/var/log/nginx ./logs
  strata cp ./site/. web:/srv          the content of ./site
  strata cp web:/etc - | tar t         as a tar; the reverse is strata cp - web:/srv")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Keep owners; copies are root's in the container, and yours here, otherwise
    #[arg(short, long)]
    archive: bool,
    /// A path, CONTAINER:PATH, or - for a tar from standard input
    source: String,
    /// The other; - writes a tar to standard output
    destination: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let owner = |uid, gid| if args.archive { Owner::Same } else { Owner::Of(uid, gid) };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    match (split(&args.source), split(&args.destination)) {
        (Some((name, from)), None) if args.destination == "-" => {
            if std::io::stdout().is_terminal() {
                bail!("a tar is nothing for a terminal: redirect it");
            }
            let (opened, ..) = open(args, name)?;
            let mut out = BufWriter::with_capacity(256 << 10, std::io::stdout());
            copy_out_tar(&opened, &from, &mut out)?;
            out.flush()?;
            opened.close()?;
        }
        (None, Some((name, to))) if args.source == "-" => {
            let (opened, store, container) = open(args, name)?;
            // On the file system of the container's layer, and gone with the container at the latest.
            let stage = tempfile::tempdir_in(&container.dir)?;
            let input = BufReader::with_capacity(256 << 10, std::io::stdin());
            copy_in_tar(&opened, &store, input, stage.path(), &to, owner(0, 0))?;
            opened.close()?;
        }
        (Some((name, from)), None) => {
            let to = std::path::absolute(&args.destination)?;
            let (opened, ..) = open(args, name)?;
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
            let (opened, ..) = open(args, name)?;
            copy_in(&opened, &from, &to, owner(0, 0))?;
            opened.close()?;
        }
        _ => bail!("one of the two must be in a container: CONTAINER:PATH"),
    }
    Ok(ExitCode::SUCCESS)
}

fn open(args: &Args, name: &str) -> anyhow::Result<(Opened, Store, Container)> {
    let store = args.place.open()?;
    let container = Container::find(&store, name)?;
    let opened = container.open_tree(&store, Path::new("/proc/self/exe"))?;
    Ok((opened, store, container))
}

/// The container and the path in it; none for a path here, which begins with `/` or `.`, or has no colon.
fn split(text: &str) -> Option<(&str, PathBuf)> {
    if text.starts_with(['/', '.']) {
        return None;
    }
    let (name, path) = text.split_once(':')?;
    Some((name, Path::new("/").join(path)))
}
