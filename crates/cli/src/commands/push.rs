//! `strata push`: an image to a registry.

use anyhow::Context as _;
use store::Reference;

use crate::context::{Context, note, out};
use crate::interruption::Interruption;

/// Push an image to a registry
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata push localhost/app:1 registry.example/team/app:1")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The image
    image: String,
    /// Where to, if not where its name says
    #[arg(value_name = "HOST/NAME:TAG")]
    to: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    let interruption = Interruption::watch(&store)?;
    let image = store.image(&args.image)?;
    let to = args.to.as_deref().unwrap_or(&args.image);
    let to: Reference = to.strip_prefix("docker://").unwrap_or(to).parse()?;
    let scratch = store.root().join("staging");
    let client = context.client()?;
    interruption.also(&client);
    let pushed = registry::push::push(&client, &store, &image, &to, &scratch)
        .with_context(|| format!("{} can't be pushed to {to}", args.image));
    // The image may have been removed meanwhile: its layers were kept until now.
    if store.is_untidy()? {
        context.tidy()?;
    }
    let pushed = interruption.judge(pushed, "the same push sends what the registry has not")?;
    if context.json {
        let told = serde_json::json!({ "digest": pushed.manifest, "sent": pushed.sent, "known": pushed.known });
        return context.print(&told, |_| String::new());
    }
    note(&format!("{} layers sent, {} there already", pushed.sent, pushed.known));
    out(format!("{}\n", pushed.manifest).as_bytes())
}
