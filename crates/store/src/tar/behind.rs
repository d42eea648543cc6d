//! Files that are filled behind the one that reads the archive and makes names, in a thread of its own: making a file and
//! filling it take about as long as each other. They go there in batches, since handing over costs too.

use std::collections::VecDeque;
use std::io::BufRead;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};

use parking_lot::{Condvar, Mutex};

use crate::tar::apply::{Done, Refusal};
use crate::tar::content::{self, Files, New};
use crate::tar::read::Reader;

/// Files up to this length are filled behind, the others at once.
const SMALL: u64 = 256 << 10;
/// Files of a batch at most: each is open.
const FILES: usize = 16;
/// Bytes with which a batch is full.
const BYTES: usize = 256 << 10;
/// Files at most that wait until the one whose data they share is on the disk.
const WAITING: usize = 32;
/// Batches on their way at most.
pub(crate) const QUEUE: usize = 4;

/// Files, and their data one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    files: Vec<(New, Range<usize>)>,
    data: Vec<u8>,
    /// Whether somebody waits for all files.
    awaited: bool,
}

/// How far the thread is.
#[derive(Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    done: u64,
    ended: bool,
    /// Batches to be used again.
    spare: Vec<Batch>,
}

/// Where files go to be filled.
pub(crate) struct Behind<'p> {
    to: SyncSender<Batch>,
    progress: &'p Progress,
    batch: Batch,
    sent: u64,
}

impl<'p> Behind<'p> {
    pub fn new(to: SyncSender<Batch>, progress: &'p Progress) -> Self {
        Self { to, progress, batch: Batch::default(), sent: 0 }
    }

    /// Has a file filled, now or soon.
    pub fn fill<R: BufRead>(
        &mut self,
        files: &Files<'_>,
        new: New,
        reader: &mut Reader<R>,
    ) -> Done<()> {
        if new.entry.size > SMALL || new.entry.parts.is_some() {
            return files.stream(&new, reader);
        }
        let from = self.batch.data.len();
        content::read(reader, new.entry.size, &mut self.batch.data)?;
        self.batch.files.push((new, from..self.batch.data.len()));
        if self.batch.files.len() == FILES || self.batch.data.len() >= BYTES {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Done<()> {
        let spare = self.progress.state.lock().spare.pop().unwrap_or_default();
        self.sent += 1;
        self.to.send(std::mem::replace(&mut self.batch, spare)).map_err(|_| ended())
    }

    /// Waits until every file has what it gets.
    pub fn wait(&mut self) -> Done<()> {
        self.batch.awaited = true;
        self.send()?;
        let mut state = self.progress.state.lock();
        while state.done < self.sent && !state.ended {
            self.progress.changed.wait(&mut state);
        }
        if state.done < self.sent { Err(ended()) } else { Ok(()) }
    }
}

/// Why nobody fills files any more is told by whoever filled them.
fn ended() -> String {
    "a file before it can't be written".to_owned()
}

/// Lets whoever waits go on, also after a failure or a panic.
struct Ending<'p>(&'p Progress);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.changed.notify_one();
    }
}

/// Fills files until no more come.
pub(crate) fn run(
    files: &Files<'_>,
    from: Receiver<Batch>,
    progress: &Progress,
) -> Result<(), Refusal> {
    let _ending = Ending(progress);
    let refuse = |new: &New| {
        let path = new.path.clone();
        move |why| Refusal { path, why }
    };
    let mut waiting = VecDeque::new();
    while let Ok(mut batch) = from.recv() {
        for (new, range) in batch.files.drain(..) {
            if let Some(same) = files.fill(&new, &batch.data[range]).map_err(refuse(&new))? {
                // Whether it gets there is for the clone to say.
                if let Err(error) = sys::sync::start(&same) {
                    tracing::debug!(%error, "not written ahead");
                }
                waiting.push_back((new, same));
            }
            if waiting.len() > WAITING
                && let Some((new, same)) = waiting.pop_front()
            {
                files.share(&new, &same).map_err(refuse(&new))?;
            }
        }
        if batch.awaited {
            for (new, same) in waiting.drain(..) {
                files.share(&new, &same).map_err(refuse(&new))?;
            }
        }
        batch.data.clear();
        batch.awaited = false;
        let mut state = progress.state.lock();
        state.done += 1;
        state.spare.push(batch);
        progress.changed.notify_one();
    }
    Ok(())
}
