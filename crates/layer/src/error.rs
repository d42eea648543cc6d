//! What can go wrong in one layer.

use std::path::PathBuf;

/// What was being done in the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Opening the layer's root directory.
    OpenRoot,
    /// Looking a name up.
    Lookup,
    /// Reading a mark of the union.
    ReadMark,
    /// Writing a mark of the union.
    WriteMark,
}

/// A layer that could not be read or marked.
#[derive(Debug, thiserror::Error)]
#[error("layer {layer:?}: {path:?} failed at {step:?}: {source}")]
pub struct Error {
    /// The layer's directory, as it was given.
    pub layer: PathBuf,
    /// The path below it.
    pub path: PathBuf,
    /// What was being done.
    pub step: Step,
    /// The call that failed.
    #[source]
    pub source: sys::Error,
}

/// What this crate's functions give.
pub type Result<T> = std::result::Result<T, Error>;
