//! What is unpacked goes to the disk while more of it is unpacked, so that the one sync that makes it durable finds
//! little left to do.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use parking_lot::{Condvar, Mutex};

use crate::error::{At, Result};
use crate::store::{Store, open_dir};

/// Bytes that are unpacked before a sync of what there is: small layers are left to the last one.
const ENOUGH: u64 = 64 << 20;

/// Writes what is unpacked to the disk, in a thread of its own.
pub(crate) struct Writeback {
    path: PathBuf,
    dir: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: u64,
    ended: bool,
}

impl Writeback {
    /// Says that so many bytes more were unpacked.
    pub fn unpacked(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.waiting += bytes;
        if state.waiting >= ENOUGH {
            self.changed.notify_one();
        }
    }

    fn run(&self, store: &Store) -> Result<()> {
        let step = "writing back";
        loop {
            let mut state = self.state.lock();
            while !state.ended && state.waiting < ENOUGH {
                self.changed.wait(&mut state);
            }
            if state.ended {
                return Ok(());
            }
            state.waiting = 0;
            drop(state);
            store.before(step, &self.path)?;
            rustix::fs::syncfs(&self.dir).at(&self.path, step)?;
        }
    }
}

/// Ends the thread, also where what unpacks panics.
struct Ending<'w>(&'w Writeback);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.changed.notify_one();
    }
}

impl Store {
    /// Lets `unpack` tell how far it is, and writes to the disk meanwhile. Gives what comes of both: nothing is durable by
    /// this, but what the kernel can't write it tells of once, so that the last sync would not see it.
    pub(crate) fn writing_back<T>(
        &self,
        unpack: impl FnOnce(&Writeback) -> Result<T>,
    ) -> (Result<T>, Result<()>) {
        let path = self.root.join("staging");
        let dir = match open_dir(&path) {
            Ok(dir) => dir,
            Err(e) => return (Err(e), Ok(())),
        };
        let writeback =
            Writeback { path, dir, state: Mutex::default(), changed: Condvar::default() };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| writeback.run(self));
            let ending = Ending(&writeback);
            let done = unpack(&writeback);
            drop(ending);
            let written = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (done, written)
        })
    }
}
