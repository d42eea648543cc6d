//! `strata check`: every layer against its digest.

use anyhow::bail;

use crate::context::Context;

/// Verify every layer against its digest
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// Remove images with a damaged layer; they can be pulled again
    #[arg(long)]
    repair: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let context = &args.context;
    let report = context.store()?.check(args.repair)?;
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|f| serde_json::json!({ "layer": f.layer, "what": f.what, "images": f.images }))
        .collect();
    let told = serde_json::json!({ "layers": report.layers, "findings": findings, "removed": report.removed });
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
        for name in &report.removed {
            text += &format!("removed {name}: pull it again\n");
        }
        text
    })?;
    if !report.findings.is_empty() && !args.repair {
        bail!("the store is damaged: strata check --repair removes the images that are");
    }
    Ok(())
}
