//! Writable layers over images: create, mount, diff, commit, roll back.
//!
//! Reading order: [`changes`] (what an upper layer says), [`tree`] (copies of what is in one), [`view`] (layers shown
//! as one directory, by the kernel or by FUSE), [`container`] (what one is), [`snapshots`] (its writable layer frozen,
//! taken back, and mended after a crash), `freeze` (the same while it runs), [`project`] (its limit, kept by the file system), [`watch`] (the process that starts one and sees it end), [`control`] (what is
//! done to one from outside), [`volumes`] (what outlives it), [`transfer`] and [`shown`] (its files from outside), [`attempt`] (`strata try`: a command over this
//! machine, caught in a layer) with [`apply`] and [`others`].

pub mod apply;
pub mod attempt;
pub mod changes;
pub mod container;
pub mod control;
pub mod error;
mod freeze;
pub mod others;
pub mod project;
pub mod sample;
pub mod shown;
pub mod snapshots;
pub mod transfer;
pub mod tree;
pub mod view;
pub mod volumes;
pub mod watch;

pub use container::Container;
pub use error::{Error, Result};
