//! `strata ps`: what containers there are, and whether they really run.

use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use containers::Container;
use containers::container::Status;
use serde::Serialize;

use super::place::Place;

/// List running containers
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata ps")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Also those that don't run
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Machine-readable
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
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

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let mut lines = Vec::new();
    for container in Container::list(&store)? {
        let status = container.status()?;
        let state = container.state();
        let running = status == Status::Running;
        if running || args.all {
            lines.push(Line {
                id: container.id,
                name: container.name,
                image: container.config.image,
                command: container.config.args,
                created: container.created,
                status,
                exit_code: state.exit_code.filter(|_| !running),
                pid: Some(state.pid).filter(|_| running),
            });
        }
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &lines)?;
        writeln!(out)?;
    } else if args.quiet {
        for line in &lines {
            writeln!(out, "{}", &line.id[..12])?;
        }
    } else {
        table(&mut out, &lines)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(out: &mut impl Write, lines: &[Line]) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let rows: Vec<[String; 6]> = lines
        .iter()
        .map(|line| {
            let status = match (line.status, line.exit_code) {
                (Status::Created, _) => "created".to_owned(),
                (Status::Running, _) => "running".to_owned(),
                (Status::Mounted, _) => "mounted".to_owned(),
                (Status::Exited, Some(code)) => format!("exited {code}"),
                (Status::Exited, None) => "was cut off".to_owned(),
            };
            let mut command = line.command.join(" ");
            if command.chars().count() > 30 {
                command = command.chars().take(29).chain(['…']).collect();
            }
            let since = ago(now.cast_signed() - line.created);
            [
                line.id[..12].to_owned(),
                line.image.clone(),
                command,
                since,
                status,
                line.name.clone(),
            ]
        })
        .collect();
    let head = ["ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAME"].map(str::to_owned);
    let all: Vec<&[String; 6]> = std::iter::once(&head).chain(&rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..5).map(|column| width(column).unwrap_or(0)).collect();
    for row in all {
        for (text, width) in row.iter().zip(&widths) {
            write!(out, "{text:<width$}  ")?;
        }
        writeln!(out, "{}", row[5])?;
    }
    Ok(())
}

/// About how long that is.
fn ago(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{} s ago", seconds.max(0)),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
