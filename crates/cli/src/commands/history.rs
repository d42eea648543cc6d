//! `strata history`: how an image was made, or where a name led before.

use crate::context::{Context, short, size, table};

/// Show how an image was made
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata history nginx:1\n  strata history --tags nginx:1")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The image
    image: String,
    /// Show which images the name has led to instead; `rollback` goes back
    #[arg(long)]
    tags: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    if args.tags {
        let past = store.tag_history(&args.image)?;
        let told: Vec<_> =
            past.iter().map(|c| serde_json::json!({ "image": c.image, "at": c.at })).collect();
        return context.print(&told, |_| {
            let rows: Vec<Vec<String>> = past
                .iter()
                .rev()
                .map(|c| {
                    let there = store.image(&c.image.to_string()).is_ok();
                    vec![
                        short(&c.image),
                        c.at.to_string(),
                        if there { "yes" } else { "no" }.to_owned(),
                    ]
                })
                .collect();
            table(&["IMAGE", "SINCE", "THERE"], &rows)
        });
    }
    let image = store.image(&args.image)?;
    let history = image.parsed()?.history;
    context.print(&history, |history| {
        let mut layers = image.layers.iter();
        let mut rows = Vec::new();
        for step in history {
            let layer = if step.empty_layer { None } else { layers.next() };
            rows.push(vec![
                layer.map_or("-".to_owned(), |layer| short(&layer.diff_id)),
                step.created.as_deref().map_or("-", |at| at.get(..10).unwrap_or(at)).to_owned(),
                layer.map_or("0 B".to_owned(), |layer| size(layer.bytes)),
                step.created_by.clone().unwrap_or_default().chars().take(80).collect(),
                step.comment.clone().unwrap_or_default(),
            ]);
        }
        rows.reverse();
        table(&["LAYER", "CREATED", "SIZE", "BY", "COMMENT"], &rows)
    })
}
