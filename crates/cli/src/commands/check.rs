//! `strata check`: every layer against its digest and its tar.

use anyhow::bail;

use crate::context::Context;

/// Verify every layer: its data against its digest, its names, owners, modes, times and attributes against its tar
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata check\n  strata check --repair")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// Unpack layers anew where their data is whole; remove images with a layer that lacks data, to be pulled again
    #[arg(long)]
    repair: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let report = context.store()?.check(args.repair)?;
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|f| serde_json::json!({ "layer": f.layer, "what": f.what, "images": f.images, "whole": f.whole }))
        .collect();
    let told = serde_json::json!({ "layers": report.layers, "findings": findings, "rebuilt": report.rebuilt, "removed": report.removed });
    context.print(&told, |_| {
        let mut text =
            format!("{} layers verified, {} damaged\n", report.layers, report.findings.len());
        for finding in &report.findings {
            text += &format!(
                "{}: {} (in {})\n",
                finding.layer,
                finding.what,
                finding.images.join(", ")
            );
        }
        for layer in &report.rebuilt {
            text += &format!("unpacked {layer} anew\n");
        }
        for name in &report.removed {
            text += &format!("removed {name}: pull it again\n");
        }
        text
    })?;
    if !report.findings.is_empty() && !args.repair {
        bail!(
            "the store is damaged: strata check --repair unpacks layers anew where their data is whole, and removes images where it is not"
        );
    }
    Ok(())
}
