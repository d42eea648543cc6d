//! `strata materialize`: files of a mount get all their data.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

/// Give big files that were changed all their data now
///
/// A write to a big file of a lower layer leaves the rest of its data there until the mount is idle or ends. This brings
/// it up at once: of one file, or of every one in the mount that a directory is in.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata materialize /mnt/merged\n  strata materialize /mnt/merged/var/lib/db/data"
)]
pub struct Args {
    /// Files, or directories, of mounts of Strata
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    for path in &args.paths {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        match sys::control::ask(&file, mount::MATERIALIZE) {
            Ok(()) => {}
            Err(e) if e.source.raw_os_error() == 25 => {
                anyhow::bail!("{} is in no mount of Strata: nothing to do", path.display())
            }
            Err(e) => {
                let why = format!("cannot give {} all its data", path.display());
                return Err(anyhow::Error::new(e).context(why));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
