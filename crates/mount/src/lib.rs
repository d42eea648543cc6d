//! Serves a union through FUSE: options, adapter, cache and passthrough policy, the drop-in's conventions.
//!
//! Reading order: [`Options`] (what was asked for), [`serve`] (from options to a mount that ends),
//! the adapter between the kernel's node ids and the union's paths.

mod adapter;
mod attributes;
mod early;
mod handles;
mod idle;
mod ids;
mod ioctl;
mod options;
mod passthrough;
mod readahead;
mod remount;
mod serve;

pub use ioctl::MATERIALIZE;
pub use options::{Mapping, Options, Parsed, Partial};
pub use remount::Remount;
pub use serve::{Error, Mounted, mount};
