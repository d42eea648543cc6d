//! What the union does when nobody asks: partial files are completed while nobody writes to them, and copies of small
//! files synced, many at once.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use union::Union;

/// How long a file must have been left alone.
const REST: Duration = Duration::from_secs(5);
/// How much of the time may go to it.
const SHARE: u32 = 2;

/// Runs until the other end of `stopped` is dropped.
pub(crate) fn complete(union: &Union, stopped: &Receiver<()>) {
    let mut seen = Vec::new();
    let mut pause = REST;
    loop {
        match stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        let begun = Instant::now();
        pause = match union.complete_idle(&mut seen) {
            // Others get the disk in between.
            Ok(true) => begun.elapsed() * (SHARE - 1),
            Ok(false) => REST,
            Err(error) => {
                tracing::warn!(%error, "a file stays partial");
                REST
            }
        };
    }
}

/// How long a copy of a small file may wait for others, to be synced with them.
const TOGETHER: Duration = Duration::from_millis(200);

/// Runs until [`Union::end_sync`].
pub(crate) fn sync(union: &Union) {
    while union.wait_for_copies() {
        if let Err(error) = union.sync_copies(TOGETHER) {
            tracing::warn!(%error, "copies could not be synced");
            std::thread::sleep(REST);
        }
    }
}
