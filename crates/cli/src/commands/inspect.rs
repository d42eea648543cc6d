//! `strata inspect`: all that is known of a container or an image.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use containers::Container;
use containers::container::Status;
use serde_json::{Value, json};
use store::{Image, Store};

use super::place::Place;
use super::template::Template;

/// Show all that is known of a container or an image, as JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  strata inspect web
  strata inspect --format '{{.State.Pid}}' web")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Only this of it, as {{.State.Status}}
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Name or id; a container comes before an image of the same name
    #[arg(value_name = "CONTAINER|IMAGE")]
    name: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let container = match Container::find(&store, &args.name) {
        Ok(container) => container,
        Err(_) => {
            let image = store.image(&args.name);
            let image = image.with_context(|| format!("there is no container {:?}", args.name))?;
            return show(args, &of_image(&store, &image)?);
        }
    };
    let layers = container.layers(&store)?;
    let status = container.status()?;
    let mut state = serde_json::to_value(container.state())?;
    if let Some(state) = state.as_object_mut() {
        state.insert("status".to_owned(), json!(status));
        state.insert("running".to_owned(), json!(status == Status::Running));
    }
    let known = json!({
        "id": container.id,
        "name": container.name,
        "image": container.image,
        "created": container.created,
        "status": status,
        "state": state,
        "config": container.config,
        "upper": container.upper(),
        "lowers": layers.lowers,
    });
    show(args, &known)
}

fn of_image(store: &Store, image: &Image) -> anyhow::Result<Value> {
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| {
            let path = store.layer_tree(&layer.diff_id);
            json!({ "diff_id": layer.diff_id, "bytes": layer.bytes, "entries": layer.entries, "path": path })
        })
        .collect();
    Ok(json!({
        "id": image.id,
        "names": image.tags,
        "chain_id": image.chain_id(),
        "bytes": image.bytes(),
        "layers": layers,
        "config": serde_json::from_slice::<Value>(&image.config)?,
        "manifest": serde_json::from_slice::<Value>(&image.manifest)?,
    }))
}

fn show(args: &Args, known: &Value) -> anyhow::Result<ExitCode> {
    if let Some(format) = &args.format {
        let text = Template::parse(format)?.show(known)?;
        writeln!(std::io::stdout(), "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, known)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}
