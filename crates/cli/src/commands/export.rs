//! `strata export`: a container's merged tree as a tar.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use containers::Container;

use super::place::Place;

/// Write all files of a container as a tar
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata export web | tar t")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Write here, not to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or id
    container: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.output.is_none() && io::stdout().is_terminal() {
        bail!("a tar is nothing for a terminal: redirect it, or give --output");
    }
    // Opened before the namespace changes: it is this machine's.
    let mut out: Box<dyn Write> = match &args.output {
        Some(path) => {
            Box::new(File::create(path).with_context(|| format!("cannot write {path:?}"))?)
        }
        None => Box::new(io::stdout()),
    };
    let store = args.place.open()?;
    let container = Container::find(&store, &args.container)?;
    let opened = container.open_tree(&store, Path::new("/proc/self/exe"))?;
    let mut buffer = BufWriter::with_capacity(256 << 10, &mut out);
    opened.export(&mut buffer)?;
    opened.close()?;
    buffer.flush()?;
    drop(buffer);
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
