//! `strata rmi`: removes names, and images with their last one.

use crate::context::Context;

/// Remove images
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  strata rmi nginx:1\n\nA name goes; with its last name, or by its id, the image goes, and the layers that no other has."
)]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    let mut told = Vec::new();
    for name in &args.images {
        let gone = store.forget(name)?;
        told.push(serde_json::json!({ "name": name, "removed": gone }));
    }
    context.print(&told, |_| {
        let line = |(name, told): (&String, &serde_json::Value)| {
            let gone = told["removed"] == true;
            format!("{} {name}\n", if gone { "Removed" } else { "Untagged" })
        };
        args.images.iter().zip(&told).map(line).collect()
    })?;
    // The answer is out; the files go while nobody waits for it.
    context.tidy()
}
