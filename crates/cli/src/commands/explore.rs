//! `strata explore`: a full-screen browser of layers, and the same figures as JSON.

mod browser;
mod draw;
mod names;
mod report;
mod screen;
mod stack;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::context::Context;

const EXAMPLES: &str = "Examples:
  strata explore nginx:1
  strata explore web
  strata explore --json nginx:1 | jq '.layers[] | {command, bytes, wasted}'

Keys: arrows or h j k l move, Enter opens and closes a directory, Tab goes from layers to files, / searches,
c shows only what changed, w only what is wasted, ? says the rest, q ends.";

/// Browse the layers of an image or a container: what each adds, changes, hides and wastes
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// Name or id; a container comes before an image of the same name
    #[arg(value_name = "CONTAINER|IMAGE")]
    name: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let seen = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !args.context.json && !seen {
        anyhow::bail!(
            "this needs a terminal to draw on: --json prints the same figures for scripts"
        );
    }
    let store = args.context.store()?;
    let stack = stack::Stack::of(&store, &args.name)?;
    if args.context.json {
        args.context.print(&report::Report::of(&stack), |_| String::new())?;
        return Ok(ExitCode::SUCCESS);
    }
    screen::show(&stack).context("the terminal fails")
}
