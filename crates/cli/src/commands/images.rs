//! `strata images`: what images there are.

use serde::Serialize;
use store::Digest;

use crate::context::{Context, short, size, table};

/// List images
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata images\n  strata images --json")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// Print only the ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Row {
    id: Digest,
    names: Vec<String>,
    layers: usize,
    bytes: u64,
    created: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let mut rows = Vec::new();
    for image in context.store()?.images()? {
        let created = image.parsed()?.created;
        let (layers, bytes) = (image.layers.len(), image.bytes());
        rows.push(Row { id: image.id, names: image.tags, layers, bytes, created });
    }
    context.print(&rows, |rows| {
        if args.quiet {
            return rows.iter().map(|row| format!("{}\n", row.id)).collect();
        }
        let mut lines = Vec::new();
        for row in rows {
            let names = if row.names.is_empty() { vec!["-".to_owned()] } else { row.names.clone() };
            for name in names {
                let created = row.created.as_deref().map_or("-", |at| at.get(..10).unwrap_or(at));
                lines.push(vec![
                    name,
                    short(&row.id),
                    row.layers.to_string(),
                    size(row.bytes),
                    created.to_owned(),
                ]);
            }
        }
        table(&["NAME", "ID", "LAYERS", "SIZE", "CREATED"], &lines)
    })
}
