//! Layers as tars: read strictly, applied to a directory, made of one, and made again bit by bit.

pub mod apply;
mod behind;
pub(crate) mod content;
pub mod diff;
pub(crate) mod finish;
pub mod read;
pub mod recipe;
