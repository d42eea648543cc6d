//! `strata tag`: one name more.

use crate::context::Context;

/// Give an image another name
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata tag nginx:1 localhost/web:2")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The image
    image: String,
    /// The name; it leads there from now on
    name: String,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let name = context.store()?.tag(&args.image, &args.name)?;
    context.print(&name.to_string(), |name| format!("{name}\n"))
}
