//! `strata layers`: the stack of an image, or every layer, and who shares it.

use serde::Serialize;
use store::Digest;

use crate::context::{Context, short, size, table};

/// Show layers: an image's, uppermost first, or all
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata layers nginx:1")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The image
    image: Option<String>,
}

#[derive(Serialize)]
struct Row {
    diff_id: Digest,
    bytes: u64,
    shared: u64,
    entries: u64,
    images: Vec<String>,
    path: std::path::PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    let images = store.images()?;
    let mut all = store.layers()?;
    if let Some(name) = &args.image {
        let image = store.image(name)?;
        let place =
            |digest: &Digest| image.layers.iter().rposition(|layer| layer.diff_id == *digest);
        all.retain(|used| place(&used.layer.diff_id).is_some());
        all.sort_by_key(|used| std::cmp::Reverse(place(&used.layer.diff_id)));
    }
    let name = |id: &Digest| {
        let image = images.iter().find(|image| image.id == *id);
        image.and_then(|image| image.tags.first().cloned()).unwrap_or_else(|| short(id))
    };
    let rows: Vec<Row> = all
        .iter()
        .map(|used| Row {
            diff_id: used.layer.diff_id,
            bytes: used.layer.bytes,
            shared: used.layer.shared,
            entries: used.layer.entries,
            images: used.images.iter().map(name).collect(),
            path: store.layer_tree(&used.layer.diff_id),
        })
        .collect();
    context.print(&rows, |rows| {
        let lines: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                let shared = size(row.shared);
                vec![
                    short(&row.diff_id),
                    size(row.bytes),
                    shared,
                    row.entries.to_string(),
                    row.images.join(" "),
                ]
            })
            .collect();
        table(&["LAYER", "SIZE", "IN OTHERS TOO", "ENTRIES", "IMAGES"], &lines)
    })
}
