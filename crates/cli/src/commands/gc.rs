//! `strata gc`: what nothing needs goes.

use crate::context::{Context, size};

/// Remove images without a name, layers that no image has, and what a crash has left
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata gc")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// Only layers that no image has, and files that were removed before; says nothing
    #[arg(long)]
    layers: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    if args.layers {
        store.tidy()?;
        return Ok(());
    }
    let containers = containers::Container::remove_left(&store)?;
    let freed = store.collect()?;
    let told = serde_json::json!({
        "containers": containers, "images": freed.images, "layers": freed.layers, "bytes": freed.bytes
    });
    context.print(&told, |_| {
        let left = match containers {
            0 => String::new(),
            count => format!("{count} containers that a crash has left, "),
        };
        format!(
            "{left}{} images and {} layers removed, {} freed\n",
            freed.images,
            freed.layers,
            size(freed.bytes)
        )
    })
}
