//! The kernel: what Strata asks of it beyond rustix, and all that is unsafe outside the FUSE wire.
//!
//! Reading order: [`beneath`] (open below a root and never outside it), [`copy`] (data from one
//! file to another by the cheapest means that the file system has), [`cut`] (the power, for tests), [`memory`], [`signal`] (being asked to
//! end), [`counters`] (that others read), [`namespace`], [`detached`] (mounts that nobody else sees), [`project`] (limits of disk space), [`seccomp`], [`error`].

pub mod beneath;
pub mod control;
pub mod copy;
pub mod counters;
pub mod cut;
pub mod detached;
pub mod error;
pub mod handle;
pub mod inherited;
pub mod memory;
pub mod mounts;
pub mod namespace;
pub mod privilege;
pub mod project;
pub mod seccomp;
pub mod signal;
pub mod sync;

pub use error::{Error, Result};
