//! Images and layers on disk: kept once, verified, collected.
//!
//! Reading order: [`id`], [`reference`] and [`manifest`] (names and documents), [`source`] (where
//! images come from), [`tar`] (layers as they travel), `store` (the directory, its locks, what a
//! crash leaves), `meta` (the database), `pull`, `pipeline` and `objects`, `commit`, [`images`], [`collect`] and `verify`,
//! [`save`], [`containers`], [`snapshots`], `applied` (layers as snapshots).

mod applied;
pub mod collect;
mod commit;
pub mod containers;
pub mod error;
mod hashed;
pub mod id;
pub mod images;
mod lease;
pub mod manifest;
mod meta;
mod objects;
mod pipeline;
mod pull;
pub mod reference;
pub mod save;
mod seam;
pub mod snapshots;
pub mod source;
mod store;
pub mod tar;
mod tree;
mod unpack;
mod verify;
mod writeback;

pub use applied::AppliedLayer;
pub use commit::CommitOptions;
pub use error::{Error, Result};
pub use hashed::Hashed;
pub use id::{Digest, chain_id};
pub use images::Image;
pub use lease::Lease;
pub use meta::LayerRow;
pub use objects::Content;
pub use pull::PullOptions;
pub use reference::Reference;
pub use seam::Seam;
pub use source::{BlobSource, Progress};
pub use store::{Stopper, Store};
