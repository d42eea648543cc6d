//! What a registry, or the way there, can fail with.

/// Why it did not work, a sentence with what to do where that is known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke more often than it was tried.
    #[error("{url}: {why}; check the name and the network, and try again")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened.
        why: String,
    },
    /// The registry wants to know who asks.
    #[error(
        "{registry} refuses {repository:?}: log in (podman login or docker login), or check the name"
    )]
    Denied {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
    },
    /// It is not there.
    #[error("{registry} has no {what}")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Any other refusal.
    #[error("{url}: the registry answered {status}: {body}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The start of what it said.
        body: String,
    },
    /// An answer that makes no sense.
    #[error("{url}: {why}")]
    Nonsense {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// A file of configuration that can't be read.
    #[error("{path:?}: {why}")]
    Config {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The store failed meanwhile.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// [`crate::Client::stop`] was called.
    #[error("stopped")]
    Stopped,
    /// This machine failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, Error>;
