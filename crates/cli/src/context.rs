//! What every command shares: where the store is, how results are printed, who is asked.

use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use registry::{Client, Config};
use serde::Serialize;
use store::Store;

use crate::commands::place::{Place, become_root};
pub use crate::commands::report::bytes as size;

/// Options of every command about images.
#[derive(Debug, Clone, clap::Args)]
pub struct Context {
    #[command(flatten)]
    place: Place,
    /// Print results as JSON
    #[arg(long)]
    pub json: bool,
}

/// How long people wait without a thought.
const NOTICED: Duration = Duration::from_millis(200);

impl Context {
    /// The store. Of a user who has others to map, by root among them: files of layers are theirs too. To be called
    /// before there is a second thread.
    pub fn store(&self) -> anyhow::Result<Store> {
        let uid = rustix::process::geteuid();
        if !uid.is_root()
            && runtime::subids::of(uid.as_raw()).is_some()
            && let Err(error) = become_root()
        {
            tracing::debug!(%error, "files of layers are all ours");
        }
        self.place.open()
    }

    /// Removes layers that no image has, and their files. What takes longer than anybody notices goes on in a process of
    /// its own: nothing needs what it removes, so that it may end at any point, and whoever is next goes on.
    pub fn tidy(&self) -> anyhow::Result<()> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["gc", "--layers", "--root"])
            .arg(self.place.root()?)
            // Not ended with this one by the terminal, nor waited for by whoever reads what this one says.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let begun = Instant::now();
        while begun.elapsed() < NOTICED {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => anyhow::bail!("layers stay ({status}): strata gc says why"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Ok(())
    }

    /// A client with the logins and registries of this user and machine.
    pub fn client(&self) -> anyhow::Result<Client> {
        let home = variable("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let auth_files = [
            variable("REGISTRY_AUTH_FILE"),
            variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
            Some("/run/containers/0/auth.json".into())
                .filter(|_| rustix::process::geteuid().is_root()),
            variable("XDG_CONFIG_HOME").map(|dir| dir.join("containers/auth.json")),
            in_home(".config/containers/auth.json"),
            variable("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
            in_home(".docker/config.json"),
        ];
        let registries = [
            variable("CONTAINERS_REGISTRIES_CONF"),
            in_home(".config/containers/registries.conf"),
            Some("/etc/containers/registries.conf".into()),
        ];
        let config = Config {
            auth_files: auth_files.into_iter().flatten().collect(),
            registries: registries.into_iter().flatten().collect(),
        };
        Ok(Client::new(config)?)
    }

    /// Prints a result: as JSON where that was asked for, otherwise as lines.
    pub fn print<T: Serialize>(
        &self,
        result: &T,
        lines: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text =
            if self.json { serde_json::to_string_pretty(result)? + "\n" } else { lines(result) };
        out(text.as_bytes())
    }
}

/// Writes to standard output. A reader that has gone wants no more, which is no error.
pub fn out(bytes: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => Ok(done?),
    }
}

/// Says something beside the result. Nobody to hear it is no error.
pub fn note(text: &str) {
    if let Err(error) = writeln!(io::stderr(), "{text}") {
        tracing::debug!(%error, "nobody reads standard error");
    }
}

/// Whether people look on while something goes on.
pub fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Rows under a head, in columns that are as wide as they must be.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<0$}", *width)).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// The first letters of a digest, as lists show it.
pub fn short(digest: &store::Digest) -> String {
    digest.hex()[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\na     b\nlong  c\n");
    }
}
