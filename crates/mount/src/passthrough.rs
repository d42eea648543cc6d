//! Which files the kernel reads and writes itself.
//!
//! Decided per node when it goes from not open to open, for as long as it is open: the kernel takes one backing file per
//! node at a time, and none beside opens that go through its cache. Only files of the upper layer qualify, for they stay
//! what they are, and any file of a mount that is read-only. A file of a lower layer never does where it could be copied
//! up: its descriptors would go on reading, and new ones would write, what is below. Nor does one with set-user-ID or
//! set-group-ID, which go when a program without privileges writes: the kernel tells us who does when it asks us to write.
//!
//! What qualifies once does so until the kernel forgets the node. So the registration outlives the last close, for the
//! next open; the longest unused go.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse::Connection;
use parking_lot::Mutex;

/// Registers a file. The kernel writes to it with what this thread may do: were that all that root may, a program without
/// privileges would leave set-user-ID where it writes.
fn register(connection: &Connection, file: impl AsFd) -> std::io::Result<i32> {
    let registered = sys::privilege::without_fsetid(|| connection.backing_open(file));
    registered.map_err(std::io::Error::other)?
}

/// Registrations that wait for the next open, at most.
const IDLE: usize = 8192;

#[derive(Debug)]
struct Open {
    count: u64,
    /// Set while the kernel does it itself.
    backing: Option<i32>,
    /// It waits for the next open after the last close.
    stays: bool,
    /// When it was last closed, as the clock has it.
    closed: u64,
}

/// The nodes that are open, or were.
#[derive(Debug, Default)]
pub(crate) struct Passthrough {
    nodes: Mutex<Nodes>,
    connection: Mutex<Option<Connection>>,
    on: AtomicBool,
}

#[derive(Debug, Default)]
struct Nodes {
    open: HashMap<u64, Open>,
    idle: usize,
    clock: u64,
}

impl Nodes {
    /// One more open of a node that is known, and what its opens are answered with; with `only`, where that is an id.
    fn again(&mut self, node: u64, only: bool) -> Option<Option<i32>> {
        let open = self.open.get_mut(&node)?;
        if only && open.backing.is_none() {
            return None;
        }
        open.count += 1;
        self.idle -= usize::from(open.count == 1);
        Some(open.backing)
    }
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

    /// A node whose file the kernel still has is opened once more: the backing id to answer with.
    pub fn again(&self, node: u64) -> Option<i32> {
        self.nodes.lock().again(node, true)?
    }

    /// A node was opened: the backing id to answer with. `backing` is asked where the node was not open, and gives its
    /// file where that qualifies.
    pub fn opened<F: AsFd>(&self, node: u64, backing: impl FnOnce() -> Option<F>) -> Option<i32> {
        if !self.is_on() {
            return None;
        }
        let mut nodes = self.nodes.lock();
        if let Some(backing) = nodes.again(node, false) {
            return backing;
        }
        let connection = self.connection.lock().clone()?;
        let backing = backing().and_then(|file| match register(&connection, file) {
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
        nodes.open.insert(node, Open { count: 1, backing, stays: true, closed: 0 });
        backing
    }

    /// One open of a node ended.
    pub fn closed(&self, node: u64) {
        let mut nodes = self.nodes.lock();
        let nodes = &mut *nodes;
        let Some(entry) = nodes.open.get_mut(&node) else { return };
        entry.count -= 1;
        if entry.count > 0 {
            return;
        }
        if entry.backing.is_none() || !entry.stays {
            let backing = entry.backing;
            nodes.open.remove(&node);
            self.end(node, backing);
            return;
        }
        nodes.clock += 1;
        entry.closed = nodes.clock;
        nodes.idle += 1;
        if nodes.idle > IDLE {
            self.trim(nodes);
        }
    }

    /// Whether the kernel reads and writes a node itself at this moment.
    pub fn is_open(&self, node: u64) -> bool {
        self.is_on()
            && self.nodes.lock().open.get(&node).is_some_and(|o| o.count > 0 && o.backing.is_some())
    }

    /// A node does not qualify any more: while it is open, the kernel goes on.
    pub fn unfit(&self, node: u64) {
        let mut nodes = self.nodes.lock();
        let Some(entry) = nodes.open.get_mut(&node) else { return };
        entry.stays = false;
        if entry.count > 0 {
            return;
        }
        let backing = entry.backing;
        nodes.open.remove(&node);
        nodes.idle -= 1;
        self.end(node, backing);
    }

    /// The kernel knows a node no more.
    pub fn forgotten(&self, node: u64) {
        if !self.is_on() {
            return;
        }
        let mut nodes = self.nodes.lock();
        if let Some(entry) = nodes.open.remove(&node) {
            nodes.idle -= usize::from(entry.count == 0);
            self.end(node, entry.backing);
        }
    }

    /// Ends the half of the idle registrations that was closed first.
    fn trim(&self, nodes: &mut Nodes) {
        let idle = nodes.open.values().filter(|entry| entry.count == 0);
        let mut ages: Vec<u64> = idle.map(|entry| entry.closed).collect();
        let middle = ages.len() / 2;
        let (_, middle, _) = ages.select_nth_unstable(middle);
        let middle = *middle;
        nodes.open.retain(|node, entry| {
            let stays = entry.count > 0 || entry.closed > middle;
            if !stays {
                self.end(*node, entry.backing);
            }
            stays
        });
        nodes.idle = nodes.open.values().filter(|entry| entry.count == 0).count();
    }

    fn end(&self, node: u64, backing: Option<i32>) {
        if let Some(id) = backing
            && let Some(connection) = &*self.connection.lock()
            && let Err(error) = connection.backing_close(id)
        {
            tracing::debug!(node, %error, "a backing file stays registered");
        }
    }
}
