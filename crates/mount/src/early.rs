//! Small files go into the kernel's page cache as they are opened, so that reading one asks nothing more: of the three
//! round trips that finding, opening and reading a file take, that saves one.
//!
//! Only at a node's first open, for then the kernel has no page of it: a page that somebody waits for is locked, and
//! filling it would wait for an answer of ours. Whoever opens the node meanwhile, or cuts it, waits until the pages are
//! there, so that none of them is older than what a writer puts beside it.

use std::collections::HashSet;

use parking_lot::Mutex;

/// Bytes of the largest file that is sent at once: as much as costs about what the round trip costs.
pub(crate) const LARGEST: u64 = 64 << 10;

const SHARDS: usize = 64;

/// The nodes that were open since the kernel knows them.
#[derive(Debug)]
pub(crate) struct Early {
    opened: [Mutex<HashSet<u64>>; SHARDS],
}

impl Early {
    pub fn new() -> Self {
        Self { opened: std::array::from_fn(|_| Mutex::default()) }
    }

    fn shard(&self, node: u64) -> &Mutex<HashSet<u64>> {
        &self.opened[node as usize % SHARDS]
    }

    /// Before an open of a node is answered, or a cut: does `fill` if it is the first, and waits for the first to be done
    /// with it otherwise. `fill` must not wait for the kernel to ask for anything.
    pub fn touch(&self, node: u64, fill: impl FnOnce()) {
        let mut opened = self.shard(node).lock();
        if opened.insert(node) {
            fill();
        }
    }

    /// Whether a node was open since the kernel knows it.
    pub fn knows(&self, node: u64) -> bool {
        self.shard(node).lock().contains(&node)
    }

    /// The kernel knows a node no more, nor its pages.
    pub fn forgotten(&self, node: u64) {
        self.shard(node).lock().remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_fills_and_the_others_wait_for_it() {
        let early = Early::new();
        let filled = AtomicBool::new(false);
        let begun = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                early.touch(7, || {
                    begun.wait();
                    std::thread::sleep(Duration::from_millis(20));
                    filled.store(true, Ordering::SeqCst);
                });
            });
            begun.wait();
            early.touch(7, || panic!("it is not the first"));
            assert!(filled.load(Ordering::SeqCst));
        });
        assert!(early.knows(7));
        early.forgotten(7);
        assert!(!early.knows(7));
        let mut again = false;
        early.touch(7, || again = true);
        assert!(again);
    }
}
