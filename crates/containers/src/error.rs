//! What goes wrong with containers, in sentences that say what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a container or an attempt can't have what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory failed at a step.
    #[error("cannot {step} {path:?}: {source}")]
    Io {
        /// What was being done: a verb, and its object where that is not the path.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A layer can't be read.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The process does not run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// No name for a container or a snapshot.
    #[error(
        "{0:?} is no name: two or more letters, digits, '_', '.' and '-', the first a letter or a digit"
    )]
    BadName(String),
    /// A file of ours does not say what it must.
    #[error("{path:?} is damaged ({why}); what it describes has to be removed")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The layers can't be shown.
    #[error("the layers can't be mounted at {at:?}: {why}")]
    View {
        /// Where.
        at: PathBuf,
        /// By which means what failed.
        why: String,
    },
    /// Nothing of this name.
    #[error("no {kind} {name:?}{near}")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// As it was asked for.
        name: String,
        /// Names that it may have meant, or what lists them.
        near: String,
    },
    /// The base of an attempt has changed since.
    #[error(
        "nothing was applied: {} changed since the command started: {}; \
         run the command again over what is there now",
        paths.len(), listed(paths)
    )]
    Changed {
        /// What changed.
        paths: Vec<PathBuf>,
    },
    /// A volume that containers have.
    #[error("the volume {name:?} is that of {by}: remove that first")]
    InUse {
        /// The volume.
        name: String,
        /// The containers.
        by: String,
    },
    /// It is in no state for that.
    #[error("{name} {state}; {advice}")]
    State {
        /// Which.
        name: String,
        /// What it is.
        state: &'static str,
        /// What to do.
        advice: &'static str,
    },
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(
        step: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io { step, path: path.as_ref().to_owned(), source: source.into() }
    }
}

fn listed(paths: &[PathBuf]) -> String {
    let mut first: Vec<String> =
        paths.iter().take(5).map(|path| path.display().to_string()).collect();
    if paths.len() > first.len() {
        first.push("…".to_owned());
    }
    first.join(", ")
}
