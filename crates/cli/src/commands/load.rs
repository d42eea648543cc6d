//! `strata load`: images of an archive.

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::Context as _;
use store::{Digest, Store};

use crate::context::{Context, out};
use crate::interruption::Interruption;

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
    let interruption = Interruption::watch(&store)?;
    let loaded = load(args, &store, &interruption);
    let all = interruption.judge(loaded, "nothing of the archive was kept")?;
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

fn load(args: &Args, store: &Store, interruption: &Interruption) -> anyhow::Result<Loaded> {
    let kept;
    let path = match &args.input {
        Some(path) => path.clone(),
        None => {
            // An archive is read more than once. A file without a name goes with this process, however that ends.
            kept = tempfile::tempfile_in(store.root().join("staging"))
                .and_then(|mut file| io::copy(&mut interruption.input(), &mut file).map(|_| file))
                .context("standard input can't be kept")?;
            PathBuf::from(format!("/proc/self/fd/{}", kept.as_raw_fd()))
        }
    };
    let text = path.to_str().context("the archive's name must be text")?;
    let kind = if has_file(&path, b"manifest.json")? { "docker-archive" } else { "oci-archive" };
    super::pull::load(store, &format!("{kind}:{text}"), &args.context, interruption)
}

type Loaded = Vec<(Option<String>, Digest)>;

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
