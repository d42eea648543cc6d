//! A system call that failed: which one, on what, and why.

use rustix::io::Errno;

/// A failed system call with what it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}({args}): {source}")]
pub struct Error {
    /// Name of the system call, as its manual page has it.
    pub call: &'static str,
    /// The arguments that tell one call from another, readable.
    pub args: String,
    /// The kernel's answer.
    #[source]
    pub source: Errno,
}

/// What the calls of this crate give.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `call` on `args`.
    pub fn new(call: &'static str, args: impl std::fmt::Debug, source: Errno) -> Self {
        Self { call, args: format!("{args:?}"), source }
    }

    /// Whether the kernel said that there is no such name.
    pub fn is_absent(&self) -> bool {
        self.source == Errno::NOENT
    }
}
