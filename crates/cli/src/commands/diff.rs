//! `strata diff`: what a container changed of its image, read from its writable layer alone.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use containers::Container;

use super::place::{Place, become_root};
use super::report::size;

/// Show what a container added (A), changed (C) and deleted (D)
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata diff web\n  strata diff --stat web")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// With the bytes that each file grew, and the sums
    #[arg(long)]
    stat: bool,
    /// Name or id
    container: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    become_root()?;
    let changes = Container::find(&store, &args.container)?.changes(&store)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut counts = [0_u64; 3];
    let mut growth = 0_i64;
    for changed in &changes {
        write!(out, "{} ", changed.change.letter())?;
        out.write_all(changed.path.as_os_str().as_bytes())?;
        if args.stat {
            counts[changed.change as usize] += 1;
            growth = growth.saturating_add(changed.growth());
            match changed.growth() {
                0 => {}
                bytes => write!(out, "  {}", size(bytes))?,
            }
        }
        writeln!(out)?;
    }
    if args.stat {
        let [added, modified, deleted] = counts;
        let sum = size(growth);
        writeln!(out, "{added} added, {modified} changed, {deleted} deleted, {sum}")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
