//! `strata df`: what the store holds.

use crate::context::{Context, size, table};

/// Show what the store holds, shares, and could free
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata df")]
pub struct Args {
    #[command(flatten)]
    context: Context,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    let usage = store.usage()?;
    let told = serde_json::json!({
        "images": usage.images, "layers": usage.layers, "containers": usage.containers, "bytes": usage.bytes,
        "shared_layers": usage.shared_layers, "shared_files": usage.shared_files, "reclaimable": usage.reclaimable
    });
    context.print(&told, |_| {
        let row = |what: &str, value: String| vec![what.to_owned(), value];
        let files = if store.shares_files() {
            size(usage.shared_files)
        } else {
            "- (this file system shares no files)".to_owned()
        };
        let rows = [
            row("images", usage.images.to_string()),
            row("layers", usage.layers.to_string()),
            row("containers", usage.containers.to_string()),
            row("data in layers", size(usage.bytes)),
            row("  more, were layers not shared", size(usage.shared_layers)),
            row("  less, as equal files are kept once", files),
            row("can be freed by gc", size(usage.reclaimable)),
        ];
        table(&["", ""], &rows).trim_start().to_owned()
    })
}
