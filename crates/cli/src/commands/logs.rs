//! `strata logs`: what a container wrote while nobody was attached.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use containers::Container;
use containers::container::Status;

use super::place::Place;

/// Print what a detached container wrote to its standard output and error
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata logs web")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines of what is there
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// Name or id
    container: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let container = Container::find(&store, &args.container)?;
    let path = container.dir.join("log");
    let mut log = match File::open(&path) {
        Ok(log) => log,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            eprintln!("strata: {} was never started detached", container.name);
            return Ok(ExitCode::SUCCESS);
        }
        Err(e) => return Err(e).with_context(|| format!("cannot read {path:?}")),
    };
    if let Some(lines) = args.tail {
        skip(&mut log, lines).with_context(|| format!("cannot read {path:?}"))?;
    }
    let mut out = io::stdout().lock();
    loop {
        // Asked before the rest is read: what comes after is the end.
        let running = args.follow && container.status()? == Status::Running;
        io::copy(&mut log, &mut out)?;
        out.flush()?;
        if !running {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Goes to where the last `lines` lines begin.
fn skip(log: &mut File, lines: usize) -> io::Result<()> {
    let mut starts = std::collections::VecDeque::from([0]);
    let (mut reader, mut at, mut line) = (BufReader::new(&*log), 0, Vec::new());
    loop {
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        at += read as u64;
        line.clear();
        starts.push_back(at);
        if starts.len() > lines + 1 {
            starts.pop_front();
        }
    }
    // The last start is the end, unless nothing at all is wanted.
    log.seek(SeekFrom::Start(starts.front().copied().unwrap_or(0)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_last_lines_are_found() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"one\ntwo\nthree").expect("written");
        for (lines, want) in [(0, ""), (1, "three"), (2, "two\nthree"), (9, "one\ntwo\nthree")] {
            file.rewind().expect("rewound");
            skip(&mut file, lines).expect("found");
            let mut text = String::new();
            file.read_to_string(&mut text).expect("read");
            assert_eq!(text, want, "{lines}");
        }
    }
}
