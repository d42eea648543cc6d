//! `strata save`: images as an archive.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use store::save::Format;
use store::{Image, Reference, Store};

use crate::context::Context;
use crate::interruption::Interruption;

/// Write images as an archive that docker, podman and skopeo load
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata save -o nginx.tar nginx:1.27")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// docker-archive or oci-archive
    #[arg(long, default_value = "docker-archive", value_parser = ["docker-archive", "oci-archive"])]
    format: String,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    let interruption = Interruption::watch(&store)?;
    let mut images = Vec::new();
    for name in &args.images {
        let image = store.image(name)?;
        let full = name.parse::<Reference>().ok().map(|reference| reference.to_string());
        let tag =
            full.filter(|full| image.tags.contains(full)).or_else(|| image.tags.first().cloned());
        images.push((image, tag));
    }
    let format =
        if args.format == "oci-archive" { Format::OciArchive } else { Format::DockerArchive };
    let saved = save(args, &store, &images, format, &interruption);
    // An image may have been removed meanwhile: its layers were kept until now.
    if store.is_untidy()? {
        context.tidy()?;
    }
    saved
}

fn save(
    args: &Args,
    store: &Store,
    images: &[(Image, Option<String>)],
    format: Format,
    interruption: &Interruption,
) -> anyhow::Result<()> {
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            bail!("an archive is nothing for a terminal: give -o FILE");
        }
        let saved = store.save(images, format, &mut io::stdout().lock());
        return interruption.judge(saved.map_err(Into::into), "what was written is no archive");
    };
    let file = File::create(path).with_context(|| format!("{path:?} can't be written"))?;
    let mut writer = io::BufWriter::with_capacity(1 << 20, file);
    let saved =
        store.save(images, format, &mut writer).map_err(anyhow::Error::from).and_then(|()| {
            let file = writer.into_inner().map_err(|e| e.into_error())?;
            Ok(file.sync_all()?)
        });
    if saved.is_err() {
        // Half an archive is none.
        std::fs::remove_file(path).with_context(|| format!("{path:?} is left half written"))?;
    }
    interruption.judge(saved, "no archive was written")
}
