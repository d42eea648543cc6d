//! Runs a container's process: the bundle of the OCI runtime specification, and what starts one.
//!
//! Reading order: [`spec`] (config.json), [`standard`] (the one that containers get), [`user`] (who a name is in a
//! root), [`cgroup`] (what its processes may use together), [`seccomp`] (which system calls they may make), [`subids`] (who there is without privileges), [`launch`] (from a bundle to a process, by our own launcher or by another runtime), `inside` and `mounts`
//! (our launcher in the new namespaces), [`enter`] (a second process in a container).
//!
//! Our launcher is the caller's own program executed anew, with one thread, so that no code runs between a fork and an
//! exec.

pub mod capability;
pub mod cgroup;
pub mod enter;
pub mod error;
mod inside;
pub mod launch;
pub mod limits;
mod mounts;
pub mod seccomp;
pub mod spec;
pub mod standard;
pub mod subids;
pub mod user;

pub use error::{Error, Result};
