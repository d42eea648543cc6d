//! `strata volume`: directories of the store that containers share and that outlive them.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use containers::volumes;

use super::place::{Place, become_root};

/// Directories that outlive containers: strata run -v NAME:/DIR
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  strata volume create data; strata run --rm -v data:/srv nginx ls /srv"
)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make volumes; a container makes those that it names, too
    Create {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List volumes, and who has them
    #[command(visible_alias = "list")]
    Ls {
        /// Only names
        #[arg(short, long)]
        quiet: bool,
        /// Machine-readable
        #[arg(long, conflicts_with = "quiet")]
        json: bool,
    },
    /// Remove volumes with their files
    #[command(visible_alias = "remove")]
    Rm {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Show all that is known of a volume, as JSON
    Inspect {
        /// Its name
        name: String,
    },
    /// Remove those that no container has
    Prune,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let mut out = std::io::stdout().lock();
    match &args.what {
        What::Create { names } => {
            for name in names {
                volumes::create(&store, name)?;
                writeln!(out, "{name}")?;
            }
        }
        What::Ls { json: true, .. } => {
            serde_json::to_writer_pretty(&mut out, &volumes::list(&store)?)?;
            writeln!(out)?;
        }
        What::Ls { quiet, .. } => {
            let all = volumes::list(&store)?;
            let rows: Vec<Vec<String>> =
                all.into_iter().map(|v| vec![v.name, v.containers.join(", ")]).collect();
            if *quiet {
                rows.iter().try_for_each(|row| writeln!(out, "{}", row[0]))?;
            } else {
                write!(out, "{}", crate::context::table(&["VOLUME", "CONTAINERS"], &rows))?;
            }
        }
        What::Inspect { name } => {
            let all = volumes::list(&store)?;
            let found = all.iter().find(|volume| volume.name == *name);
            let found = found.with_context(|| format!("there is no volume {name:?}"))?;
            serde_json::to_writer_pretty(&mut out, found)?;
            writeln!(out)?;
        }
        What::Rm { names } => {
            become_root()?;
            for name in names {
                volumes::remove(&store, name)?;
                writeln!(out, "{name}")?;
            }
        }
        What::Prune => {
            become_root()?;
            for volume in volumes::list(&store)?.iter().filter(|v| v.containers.is_empty()) {
                volumes::remove(&store, &volume.name)?;
                writeln!(out, "{}", volume.name)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
