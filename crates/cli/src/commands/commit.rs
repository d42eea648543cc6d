//! `strata commit`: a container's changes become an image.

use std::io::Write;
use std::process::ExitCode;

use containers::Container;
use store::CommitOptions;

use super::change;
use super::place::{Place, become_root};
use crate::interruption::Interruption;

/// Make an image of a container: its image's layers, and one of what it changed
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  strata commit -m 'with the new configuration' web web:2
  strata commit -c 'CMD [\"nginx\"]' -c 'ENV MODE=fast' web web:3")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// What changed
    #[arg(short, long)]
    message: Option<String>,
    /// Change how the image runs, in the words of a Dockerfile
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Name or id
    container: String,
    /// A name for the image
    image: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // First: a store opened by root among the users of containers gives files of layers to them.
    become_root()?;
    let store = args.place.open()?;
    let interruption = Interruption::watch(&store)?;
    let container = Container::find(&store, &args.container)?;
    let name = args.image.as_deref().map(str::parse::<store::Reference>).transpose()?;
    let image = store.image(&container.image.to_string())?;
    let known: serde_json::Value = serde_json::from_slice(&image.config)?;
    let now = known.get("config").and_then(|config| config.as_object().cloned());
    let changed = change::apply(&now.unwrap_or_default(), &args.change)?;
    let options = CommitOptions {
        config: Some(changed.into()).filter(|_| !args.change.is_empty()),
        name: name.map(|name| name.to_string()),
        author: args.author.clone(),
        message: args.message.clone(),
        created_by: Some(container.config.args.join(" ")),
        ..CommitOptions::default()
    };
    let committed = container.commit(&store, &options).map_err(anyhow::Error::from);
    let id = interruption.judge(committed, "no image was made")?;
    writeln!(std::io::stdout(), "{id}")?;
    Ok(ExitCode::SUCCESS)
}
