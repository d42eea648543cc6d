//! `strata man`: manual pages.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory;

/// Write the manual pages to a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata man /usr/local/share/man/man1")]
pub struct Args {
    /// The directory
    dir: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("{:?} can't be made", args.dir))?;
    clap_mangen::generate_to(crate::Strata::command(), &args.dir)
        .with_context(|| format!("{:?} can't be written", args.dir))
}
