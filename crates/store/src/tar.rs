//! Layers as tars: read strictly, applied to a directory, made of one, and made again bit by bit.

pub mod apply;
mod behind;
pub(crate) mod content;
pub mod diff;
mod field;
pub(crate) mod finish;
mod pax;
pub mod read;
pub mod recipe;
