//! `strata completions`: for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::context::out;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata completions bash > /etc/bash_completion.d/strata")]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Strata::command(), "strata", &mut text);
    out(&text)
}
