//! `strata ps`: what containers there are, and whether they really run.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use containers::Container;
use containers::container::Status;
use serde::Serialize;
use serde_json::{Value, json};
use store::Store;

use super::place::Place;
use super::template::Template;
use crate::context::{out, table};

/// List running containers
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  strata ps
  strata ps -a --filter status=exited --filter label=team=web
  strata ps --format '{{.Names}} {{.Pid}}'")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Also those that don't run
    #[arg(short, long)]
    all: bool,
    /// Only those of which this holds: name, id, status, label, ancestor (the image), volume, exited (with this status)
    #[arg(short, long, value_name = "WHAT=VALUE")]
    filter: Vec<String>,
    /// Only so many, the newest, running or not
    #[arg(short = 'n', long, value_name = "COUNT")]
    last: Option<usize>,
    /// Only the newest, running or not
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Machine-readable
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// A line of each as this, as {{.ID}} {{.Names}}; json; or a table, as 'table {{.ID}}\t{{.Image}}'
    #[arg(long, value_name = "TEMPLATE", conflicts_with_all = ["quiet", "json"])]
    format: Option<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    id: String,
    name: String,
    image: String,
    command: Vec<String>,
    created: i64,
    status: Status,
    exit_code: Option<u8>,
    pid: Option<u32>,
}

/// What containers are listed by.
#[derive(Debug, Default)]
struct Filter {
    names: Vec<String>,
    ids: Vec<String>,
    statuses: Vec<String>,
    /// All of these, unlike the others.
    labels: Vec<(String, Option<String>)>,
    images: Vec<store::Digest>,
    volumes: Vec<String>,
    exited: Vec<u8>,
}

impl Filter {
    fn read(store: &Store, given: &[String]) -> anyhow::Result<Self> {
        let mut filter = Self::default();
        for text in given {
            let (what, value) = text
                .split_once('=')
                .with_context(|| format!("--filter {text:?} is not WHAT=VALUE"))?;
            let value = value.to_owned();
            match what {
                "name" => filter.names.push(value.trim_start_matches('/').to_owned()),
                "id" => filter.ids.push(value),
                "status" => match value.as_str() {
                    "created" | "running" | "mounted" | "exited" => filter.statuses.push(value),
                    // Docker has more; nothing here is ever paused or restarting.
                    _ => bail!("--filter {text:?}: there are created, running, mounted and exited"),
                },
                "label" => {
                    let (name, value) =
                        value.split_once('=').map_or((value.as_str(), None), |(n, v)| (n, Some(v)));
                    filter.labels.push((name.to_owned(), value.map(str::to_owned)));
                }
                "ancestor" => filter.images.push(store.image(&value)?.id),
                "volume" => filter.volumes.push(value),
                "exited" => {
                    let wrong = || format!("--filter {text:?}: an exit status is 0 to 255");
                    filter.exited.push(value.parse().with_context(wrong)?);
                }
                _ => bail!(
                    "--filter {text:?}: there are name, id, status, label, ancestor, volume and exited"
                ),
            }
        }
        Ok(filter)
    }

    /// Whether those that don't run may be meant.
    fn is_about_all(&self) -> bool {
        !self.statuses.is_empty() || !self.exited.is_empty()
    }

    fn takes(&self, container: &Container) -> bool {
        let any = |wanted: &[String], holds: &dyn Fn(&str) -> bool| {
            wanted.is_empty() || wanted.iter().any(|wanted| holds(wanted))
        };
        let config = &container.config;
        let labelled = |(name, value): &(String, Option<String>)| {
            config.labels.get(name).is_some_and(|held| value.as_ref().is_none_or(|v| v == held))
        };
        any(&self.names, &|name| container.name.contains(name))
            && any(&self.ids, &|id| container.id.starts_with(id))
            && any(&self.volumes, &|wanted| {
                config.volumes.iter().any(|volume| {
                    volume.name.as_deref() == Some(wanted)
                        || volume.destination.to_str() == Some(wanted)
                        || volume.source.to_str() == Some(wanted)
                })
            })
            && self.labels.iter().all(labelled)
            && (self.images.is_empty() || self.images.contains(&container.image))
    }

    fn takes_status(&self, status: Status, exit_code: Option<u8>) -> bool {
        let by_status = |name: &String| json!(status) == json!(name);
        (self.statuses.is_empty() || self.statuses.iter().any(by_status))
            && (self.exited.is_empty()
                || status == Status::Exited
                    && exit_code.is_some_and(|code| self.exited.contains(&code)))
    }
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let filter = Filter::read(&store, &args.filter)?;
    let most = if args.latest { Some(1) } else { args.last };
    let all = args.all || most.is_some() || filter.is_about_all();
    let mut lines = Vec::new();
    for container in Container::list(&store)?.into_iter().filter(|c| filter.takes(c)) {
        // Who runs holds the lock: of the others nothing more need be read.
        if most.is_some_and(|most| lines.len() >= most) {
            break;
        }
        if !all && matches!(container.lock(), Ok(Some(_))) {
            continue;
        }
        let status = match container.status() {
            // It was to go at its end, and has just done so.
            Err(_) if !container.dir.exists() => continue,
            status => status?,
        };
        let state = container.state();
        let running = status == Status::Running;
        let exit_code = state.exit_code.filter(|_| !running);
        if (running || all) && filter.takes_status(status, exit_code) {
            let line = Line {
                id: container.id.clone(),
                name: container.name.clone(),
                image: container.config.image.clone(),
                command: container.config.args.clone(),
                created: container.created,
                status,
                exit_code,
                pid: Some(state.pid).filter(|_| running),
            };
            lines.push((line, container));
        }
    }
    let mut text = String::new();
    match args.format.as_deref() {
        _ if args.json => {
            let lines: Vec<&Line> = lines.iter().map(|(line, _)| line).collect();
            text = serde_json::to_string_pretty(&lines)? + "\n";
        }
        _ if args.quiet => {
            lines.iter().for_each(|(line, _)| text += &format!("{}\n", args.id(&line.id)));
        }
        Some("json") => {
            for (line, container) in &lines {
                text += &format!("{}\n", args.fields(line, container));
            }
        }
        Some(format) => {
            let columns = format.strip_prefix("table ");
            let template = Template::parse(columns.unwrap_or(format))?;
            let shown = lines.iter().map(|(line, c)| template.show(&args.fields(line, c)));
            let shown = shown.collect::<anyhow::Result<Vec<_>>>()?;
            if columns.is_some() {
                let cells = |row: &str| row.split('\t').map(str::to_owned).collect::<Vec<_>>();
                let rows: Vec<Vec<String>> = shown.iter().map(|row| cells(row)).collect();
                let head = template.head();
                text = table(&head.split('\t').collect::<Vec<_>>(), &rows);
            } else {
                shown.iter().for_each(|row| text += &format!("{row}\n"));
            }
        }
        None => {
            let head = ["ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAME"];
            let rows: Vec<Vec<String>> = lines
                .iter()
                .map(|(line, _)| {
                    vec![
                        args.id(&line.id),
                        line.image.clone(),
                        args.command(&line.command),
                        ago(line.created),
                        status(line),
                        line.name.clone(),
                    ]
                })
                .collect();
            text = table(&head, &rows);
        }
    }
    out(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn id(&self, id: &str) -> String {
        if self.no_trunc { id.to_owned() } else { id[..12].to_owned() }
    }

    fn command(&self, command: &[String]) -> String {
        let command = command.join(" ");
        if self.no_trunc || command.chars().count() <= 30 {
            return command;
        }
        command.chars().take(29).chain(['…']).collect()
    }

    /// What a template may name: Docker's fields, and ours.
    fn fields(&self, line: &Line, container: &Container) -> Value {
        let config = &container.config;
        let labels = config.labels.iter().map(|(name, value)| format!("{name}={value}"));
        let mounts = config.volumes.iter().map(|v| match &v.name {
            Some(name) => name.clone(),
            None => v.source.display().to_string(),
        });
        json!({
            "id": self.id(&line.id),
            "names": line.name,
            "name": line.name,
            "image": line.image,
            "image_id": container.image,
            "command": self.command(&line.command),
            "created": line.created,
            "running_for": ago(line.created),
            "state": line.status,
            "status": status(line),
            "exit_code": line.exit_code,
            "pid": line.pid,
            "labels": labels.collect::<Vec<_>>().join(","),
            "mounts": mounts.collect::<Vec<_>>().join(","),
            "networks": if config.host_network { "host" } else { "none" },
            "ports": "",
        })
    }
}

fn status(line: &Line) -> String {
    match (line.status, line.exit_code) {
        (Status::Created, _) => "created".to_owned(),
        (Status::Running, _) => "running".to_owned(),
        (Status::Mounted, _) => "mounted".to_owned(),
        (Status::Exited, Some(code)) => format!("exited {code}"),
        (Status::Exited, None) => "was cut off".to_owned(),
    }
}

/// About how long that is since.
fn ago(created: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    match now.cast_signed() - created {
        seconds @ ..120 => format!("{} s ago", seconds.max(0)),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}
