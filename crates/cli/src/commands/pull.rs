//! `strata pull`: brings images into the store.

use std::collections::HashMap;
use std::sync::Mutex;

use anyhow::Context as _;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use store::manifest::Platform;
use store::{Digest, Progress, PullOptions, Store};

use crate::context::{Context, note, on_terminal, out, short};
use crate::interruption::Interruption;
use crate::transport::Place;

/// Pull images into the store
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata pull nginx:1.27\n  strata pull oci:layout:latest docker-archive:image.tar\n\nA pull that was ended goes on where it stopped."
)]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// NAME, docker://HOST/NAME, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME]
    #[arg(required = true, value_name = "REF")]
    images: Vec<String>,
    /// For another machine than this one, such as linux/arm64 or linux/arm/v7
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Print only the ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Pulled {
    name: Option<String>,
    id: Digest,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let store = context.store()?;
    let interruption = Interruption::watch(&store)?;
    let mut all = Vec::new();
    for text in &args.images {
        let options = match &args.platform {
            Some(platform) => PullOptions { platform: platform.clone() },
            None => PullOptions::default(),
        };
        let from = From { store: &store, context, quiet: args.quiet, options };
        let pulled = from.pull(text, &interruption);
        all.extend(interruption.judge(pulled, "the same pull goes on where this one stopped")?);
    }
    if store.is_untidy()? {
        context.tidy()?;
    }
    if context.json {
        return context.print(&all, |_| String::new());
    }
    for pulled in &all {
        out(format!("{}\n", pulled.id).as_bytes())?;
    }
    Ok(())
}

/// How images are pulled.
struct From<'c> {
    store: &'c Store,
    context: &'c Context,
    quiet: bool,
    options: PullOptions,
}

impl From<'_> {
    fn pull(&self, text: &str, interruption: &Interruption) -> anyhow::Result<Vec<Pulled>> {
        let mut all = Vec::new();
        let client = || {
            let client = self.context.client()?;
            interruption.also(&client);
            Ok(client)
        };
        for (source, name) in Place::parse(text)?.images(client)? {
            let name = name.map(|name| name.to_string());
            let bars = Bars::new(self.quiet || self.context.json);
            let id = self.store.pull(&*source, name.as_deref(), &bars, &self.options);
            bars.clear();
            let id = id.with_context(|| format!("{text} can't be pulled"))?;
            all.push(Pulled { name, id });
        }
        Ok(all)
    }
}

/// Loads what a file has, as `strata load` does.
pub fn load(
    store: &Store,
    text: &str,
    context: &Context,
    interruption: &Interruption,
) -> anyhow::Result<Vec<(Option<String>, Digest)>> {
    let from = From { store, context, quiet: true, options: PullOptions::default() };
    Ok(from.pull(text, interruption)?.into_iter().map(|p| (p.name, p.id)).collect())
}

/// A bar a layer on a terminal, a line a layer elsewhere.
struct Bars {
    bars: Option<MultiProgress>,
    lines: bool,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    fn new(quiet: bool) -> Self {
        let terminal = on_terminal();
        let bars = (terminal && !quiet).then(MultiProgress::new);
        Self { bars, lines: !terminal && !quiet, layers: Mutex::default() }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars
            && let Err(error) = bars.clear()
        {
            tracing::debug!(%error, "the bars stay on the terminal");
        }
    }
}

impl Progress for Bars {
    fn layer(&self, digest: &Digest, size: u64) {
        let (Some(bars), Ok(mut layers)) = (&self.bars, self.layers.lock()) else { return };
        let style = "{prefix} {bar:30} {bytes:>10} of {total_bytes} {bytes_per_sec}";
        let style =
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = bars.add(ProgressBar::new(size).with_style(style).with_prefix(short(digest)));
        layers.insert(*digest, bar);
    }

    fn bytes(&self, digest: &Digest, count: u64) {
        if let Ok(layers) = self.layers.lock()
            && let Some(bar) = layers.get(digest)
        {
            bar.inc(count);
        }
    }

    fn done(&self, digest: &Digest, known: bool) {
        if self.lines {
            let state = if known { "is there already" } else { "done" };
            note(&format!("{} {state}", short(digest)));
        }
        if let Ok(layers) = self.layers.lock()
            && let Some(bar) = layers.get(digest)
        {
            bar.finish();
        }
    }
}
