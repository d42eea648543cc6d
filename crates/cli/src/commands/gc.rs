//! `strata gc`: what nothing needs goes.

use crate::context::{Context, size};

/// Remove images without a name, and layers that no image has
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    context: Context,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let freed = context.store()?.collect()?;
    let told =
        serde_json::json!({ "images": freed.images, "layers": freed.layers, "bytes": freed.bytes });
    context.print(&told, |_| {
        format!(
            "{} images and {} layers removed, {} freed\n",
            freed.images,
            freed.layers,
            size(freed.bytes)
        )
    })
}
