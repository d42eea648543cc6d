//! `strata doctor`: what is wrong here, and what to do about it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};

use serde::Serialize;

use super::info;
use crate::context::{Context, out};

/// Find what is wrong: with this machine, the store, and the engines that use Strata
///
/// Ends with 1 where something that Strata can't do without is missing, or where what was set up does not work.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata doctor\n  strata doctor --json")]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The socket of the snapshotter
    #[arg(long, default_value = "/run/strata/snapshotter.sock")]
    address: std::path::PathBuf,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// As it should be.
    Fine,
    /// Something is slower or missing, and all else works.
    Less,
    /// It does not work.
    Broken,
}

#[derive(Debug, Serialize)]
struct Finding {
    grade: Grade,
    about: String,
    what: String,
    advice: Option<String>,
}

/// What nothing works without.
const NEEDED: [&str; 3] = ["kernel", "fuse", "openat2"];

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut findings = Vec::new();
    for fact in info::facts() {
        let grade = match fact.works {
            true => Grade::Fine,
            false if NEEDED.contains(&fact.name) => Grade::Broken,
            false => Grade::Less,
        };
        let advice = fact.advice.filter(|_| !fact.works).map(str::to_owned);
        findings.push(Finding { grade, about: fact.name.to_owned(), what: fact.detail, advice });
    }
    findings.push(store(&args.context));
    findings.extend(engine(
        "containerd",
        "/etc/containerd/config.toml",
        "proxy_plugins.strata",
        Some(&args.address),
    ));
    findings.extend(engine("dockerd", "/etc/docker/daemon.json", "\"strata\"", None));
    findings.extend(engine("podman", "/etc/containers/storage.conf", "strata", None));
    let broken = findings.iter().any(|finding| finding.grade == Grade::Broken);
    if args.context.json {
        out((serde_json::to_string_pretty(&findings)? + "\n").as_bytes())?;
    } else {
        let mut text = String::new();
        for finding in &findings {
            let sign = match finding.grade {
                Grade::Fine => "ok    ",
                Grade::Less => "less  ",
                Grade::Broken => "BROKEN",
            };
            text += &format!("{sign} {}: {}\n", finding.about, finding.what);
            if let Some(advice) = &finding.advice {
                text += &format!("       {advice}\n");
            }
        }
        out(text.as_bytes())?;
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn store(context: &Context) -> Finding {
    let about = "store".to_owned();
    let asked = context.store().and_then(|store| {
        let usage = store.usage()?;
        let shares = if store.shares_files() { "equal files are kept once" } else { "no reflinks" };
        Ok(format!(
            "{}: {} images, {} layers, {shares}",
            store.root().display(),
            usage.images,
            usage.layers
        ))
    });
    match asked {
        Ok(what) => Finding { grade: Grade::Fine, about, what, advice: None },
        Err(error) => Finding {
            grade: Grade::Broken,
            about,
            what: format!("{error:#}"),
            advice: Some("Give another --root, or make this one readable and writable.".to_owned()),
        },
    }
}

/// An engine that is installed, and whether it uses Strata; none where it is not installed.
fn engine(program: &str, config: &str, sign: &str, socket: Option<&Path>) -> Option<Finding> {
    let asked = Command::new(program).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    let about = program.to_owned();
    let name = if program == "dockerd" { "docker" } else { program };
    let used = fs::read_to_string(config).is_ok_and(|text| text.contains(sign));
    if !used {
        let advice = Some(format!("To have it: strata install {name}"));
        let what = format!("{version}; does not use Strata");
        return Some(Finding { grade: Grade::Fine, about, what, advice });
    }
    if let Some(socket) = socket
        && let Err(error) = UnixStream::connect(socket)
    {
        return Some(Finding {
            grade: Grade::Broken,
            about,
            what: format!(
                "{version}; uses Strata, which does not answer on {}: {error}",
                socket.display()
            ),
            advice: Some("systemctl enable --now strata-snapshotter.socket".to_owned()),
        });
    }
    Some(Finding {
        grade: Grade::Fine,
        about,
        what: format!("{version}; uses Strata"),
        advice: None,
    })
}
