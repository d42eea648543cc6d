//! `strata load`: images of an archive.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::context::{Context, out};

/// Load the images of an archive: docker save's, podman save's, or an OCI archive
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  docker save nginx | strata load")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The archive [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    let kept;
    let path = match &args.input {
        Some(path) => path,
        None => {
            // An archive is read more than once.
            kept =
                Kept(store.root().join("staging").join(format!("load-{}.tar", std::process::id())));
            store::collect::write_new(&kept.0, &mut std::io::stdin().lock())?;
            &kept.0
        }
    };
    let text = path.to_str().context("the archive's name must be text")?;
    let kind = if has_file(path, b"manifest.json")? { "docker-archive" } else { "oci-archive" };
    let all = super::pull::load(&store, &format!("{kind}:{text}"), context)?;
    let named: Vec<_> =
        all.iter().map(|(name, id)| serde_json::json!({ "name": name, "id": id })).collect();
    if context.json {
        return context.print(&named, |_| String::new());
    }
    for (name, id) in all {
        out(format!("Loaded {}\n", name.unwrap_or_else(|| id.to_string())).as_bytes())?;
    }
    Ok(())
}

/// A file that goes when it is not needed any more.
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, "the copy of the archive stays");
        }
    }
}

fn has_file(path: &std::path::Path, name: &[u8]) -> anyhow::Result<bool> {
    let file = std::fs::File::open(path).with_context(|| format!("{path:?} can't be opened"))?;
    let mut reader = store::tar::read::Reader::new(std::io::BufReader::new(file));
    while let Some(entry) =
        reader.next_entry().with_context(|| format!("{path:?} is no archive"))?
    {
        if entry.path.strip_prefix(b"./").unwrap_or(&entry.path) == name {
            return Ok(true);
        }
    }
    Ok(false)
}
