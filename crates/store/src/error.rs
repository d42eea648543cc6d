//! What can go wrong in the store, one clear sentence each.

use std::io;
use std::path::{Path, PathBuf};

use crate::id::Digest;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a digest.
    #[error("{text:?} is no digest: it must be sha256: and 64 lower-case hex digits")]
    BadDigest {
        /// What was given.
        text: String,
    },
    /// Not a reference.
    #[error("{text:?} is no image reference: {why}")]
    BadReference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A rule of snapshots that the operation would break.
    #[error("snapshot {name:?}: {fault}")]
    Snapshot {
        /// The snapshot.
        name: String,
        /// The rule.
        fault: crate::snapshots::Fault,
    },
    /// A tree of which files are changed in part, with the rest in the layers below.
    #[error(
        "files in {path:?} have a part of their data in the layers below: strata materialize on \
         its mount completes them, and so does its unmount"
    )]
    Unfinished {
        /// The tree.
        path: PathBuf,
    },
    /// No such image.
    #[error("there is no image {name:?} here{}", suggestion(.near))]
    NoImage {
        /// What was asked for.
        name: String,
        /// Names that are like it.
        near: Vec<String>,
    },
    /// A manifest, index or configuration that can't be used.
    #[error("the {what} of this image is not usable: {why}")]
    BadManifest {
        /// Which document.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// Content that is not what its descriptor says.
    #[error("{what} {expected} has other content: {found}; it was not kept")]
    Mismatch {
        /// What was verified.
        what: &'static str,
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: String,
    },
    /// A layer's tar that can't be unpacked.
    #[error("layer {layer}: {path:?}: {why}")]
    BadLayer {
        /// The layer's diff ID.
        layer: Digest,
        /// The entry.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file system refused.
    #[error("{path:?}: {step} failed: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database refused.
    #[error("the store's database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// The store was written by a newer version.
    #[error(
        "{root:?} has format {found}, this version knows {known}: use the version that wrote it"
    )]
    Format {
        /// The store.
        root: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// Where blobs come from failed.
    #[error("{0}")]
    Source(#[from] Box<dyn std::error::Error + Send + Sync>),
    /// A name that has no earlier image.
    #[error(
        "{name} has led to no other image that is still here: strata history --tags lists them"
    )]
    NoPast {
        /// The name.
        name: String,
    },
    /// A container's name is taken.
    #[error("there is a container {name:?} already: remove it, or choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// No such container.
    #[error("there is no container {name:?}{}", suggestion(.near))]
    NoContainer {
        /// What was asked for.
        name: String,
        /// Names that differ by little.
        near: Vec<String>,
    },
    /// Work that nobody wants any more, by a [`crate::Stopper`], or since other work for the same failed.
    #[error("stopped")]
    Stopped,
    /// An image that containers use.
    #[error("image {name:?} is used by container {container:?}: remove that first")]
    InUse {
        /// The image.
        name: String,
        /// One that uses it.
        container: String,
    },
}

fn suggestion(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(" or ")) }
}

/// What the store's functions give.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds where and what to an I/O error.
pub(crate) trait At<T> {
    fn at(self, path: &Path, step: &'static str) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, path: &Path, step: &'static str) -> Result<T> {
        self.map_err(|e| Error::Io { path: path.to_owned(), step, source: e.into() })
    }
}
