//! The FUSE protocol of the kernel and its transports: the classic device and io_uring.
//!
//! A [`FileSystem`] answers one method per operation. A [`Session`] owns the connection: it negotiates
//! with the kernel, reads requests on one cloned device per thread and writes each answer from the buffer
//! in which it was built. [`mount`] makes the connection.

mod dispatch;
mod filesystem;
pub mod mount;
mod notify;
mod request;
mod session;
mod uring;
pub mod wire;

pub use dispatch::DirSink;
pub use filesystem::{Errno, FileSystem, Result};
pub use notify::Connection;
pub use request::{Groups, Request};
pub use session::{Negotiated, Session, SessionConfig};
pub use uring::enabled as uring_enabled;
