//! The union of layers: what is shown, and how it changes. It knows nothing of FUSE.
//!
//! Reading order: [`resolve`] (pure: what layers say, folded), `place` and `node` (what is known of what
//! somebody holds), `dirs`, `stack` and `find` (find names and inodes), `attr`, `dir`, `listings` and `file` (what is shown),
//! `upper`, `copy_up`, `disk`, `unsynced`, `partial`, `complete`, `below`, `origin`, `index` and `owners` (how the upper layer gets it), `create`, `in_place`, `remove`, `rename`, `xattr`, `flags`, `counts`.

mod attr;
mod below;
mod complete;
mod copy_up;
mod counts;
mod create;
mod dir;
mod dirs;
mod disk;
pub mod error;
mod file;
mod find;
mod flags;
mod in_place;
mod index;
mod listings;
mod node;
mod origin;
mod owners;
mod partial;
mod place;
mod remove;
mod rename;
pub mod resolve;
mod space;
mod stack;
mod transfer;
mod unsynced;
mod upper;
mod xattr;

pub use attr::{Attr, NewTime, SetAttr, Time};
pub use counts::Counted;
pub use create::Caller;
pub use dir::DirEntry;
pub use error::{Error, Result, Step};
pub use file::OpenFile;
pub use listings::Listing;
pub use node::NodeId;
pub use space::Limits;
pub use stack::{Config, Entry, Union};
