//! Which files the kernel reads and writes itself.
//!
//! Decided per node when it goes from not open to open, for as long as it is open: the kernel takes one backing file per
//! node at a time, and none beside opens that go through its cache. Only files of the upper layer qualify, for they stay
//! what they are, and any file of a mount that is read-only. A file of a lower layer never does where it could be copied
//! up: its descriptors would go on reading, and new ones would write, what is below.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse::Connection;
use parking_lot::Mutex;

#[derive(Debug)]
struct Open {
    count: u64,
    /// Set while the kernel does it itself.
    backing: Option<i32>,
}

/// The nodes that are open.
#[derive(Debug, Default)]
pub(crate) struct Passthrough {
    open: Mutex<HashMap<u64, Open>>,
    connection: Mutex<Option<Connection>>,
    on: AtomicBool,
}

impl Passthrough {
    /// From now on, over this connection, which has it negotiated.
    pub fn enable(&self, connection: Connection) {
        *self.connection.lock() = Some(connection);
        self.on.store(true, Ordering::Release);
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// A node was opened: the backing id to answer with. `backing` is asked where the node was not open, and gives its
    /// file where that qualifies.
    pub fn opened<F: AsFd>(&self, node: u64, backing: impl FnOnce() -> Option<F>) -> Option<i32> {
        if !self.is_on() {
            return None;
        }
        let mut open = self.open.lock();
        if let Some(open) = open.get_mut(&node) {
            open.count += 1;
            return open.backing;
        }
        let connection = self.connection.lock().clone()?;
        let backing = backing().and_then(|file| match connection.backing_open(file) {
            Ok(id) => Some(id),
            Err(error) => {
                if error.kind() == std::io::ErrorKind::PermissionDenied {
                    // It will not be different next time.
                    self.on.store(false, Ordering::Release);
                }
                tracing::debug!(node, %error, "no passthrough");
                None
            }
        });
        open.insert(node, Open { count: 1, backing });
        backing
    }

    /// One open of a node ended.
    pub fn closed(&self, node: u64) {
        let mut open = self.open.lock();
        let Some(entry) = open.get_mut(&node) else { return };
        entry.count -= 1;
        if entry.count > 0 {
            return;
        }
        let backing = open.remove(&node).and_then(|entry| entry.backing);
        if let Some(id) = backing
            && let Some(connection) = &*self.connection.lock()
            && let Err(error) = connection.backing_close(id)
        {
            tracing::debug!(node, %error, "a backing file stays registered");
        }
    }
}
