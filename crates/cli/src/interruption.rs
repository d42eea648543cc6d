//! Ctrl-C: long work ends with nothing left behind, and says so in one line.

use std::io::{self, Read};
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use registry::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use store::{Stopper, Store};

use crate::context::note;

/// Looks out for who asks this process to end.
pub struct Interruption {
    stopper: Stopper,
    clients: Arc<Mutex<Vec<Client>>>,
    signal: Arc<AtomicI32>,
}

/// The work was ended by a signal.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: {left}")]
pub struct Interrupted {
    signal: i32,
    left: &'static str,
}

impl Interrupted {
    /// What a shell says of a process that a signal ended.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(code(self.signal))
    }
}

fn code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(1)
}

impl Interruption {
    /// Looks out from now on. To be called before there is a second thread. A second signal ends the process at once;
    /// whoever opens the store next then clears away what it leaves.
    pub fn watch(store: &Store) -> io::Result<Self> {
        let ends = sys::signal::Ends::hold_unless_ignored()?;
        let watching = Self {
            stopper: store.stopper(),
            clients: Arc::default(),
            signal: Arc::new(AtomicI32::new(0)),
        };
        let (stopper, clients) = (watching.stopper.clone(), Arc::clone(&watching.clients));
        let signal = Arc::clone(&watching.signal);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let Ok(number) = ends.number() else { return };
            signal.store(number, Ordering::SeqCst);
            stopper.stop();
            clients.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Client::stop);
            if let Ok(number) = ends.number() {
                note("strata: interrupted again: what is left is cleared away by the next command");
                std::process::exit(code(number).into());
            }
        })?;
        Ok(watching)
    }

    /// Ends requests of this client too.
    pub fn also(&self, client: &Client) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).push(client.clone());
        if self.stopper.is_stopped() {
            client.stop();
        }
    }

    /// What came of the work: where it failed since it was to end, that, and what is left of it.
    pub fn judge<T>(&self, done: anyhow::Result<T>, left: &'static str) -> anyhow::Result<T> {
        match (done, self.signal.load(Ordering::SeqCst)) {
            (Err(error), signal) if signal != 0 => {
                tracing::debug!(%error, "what was going on");
                Err(Interrupted { signal, left }.into())
            }
            (done, _) => done,
        }
    }

    /// Standard input, until it or the work ends.
    pub fn input(&self) -> Input<'_> {
        Input { stopper: &self.stopper }
    }
}

/// Standard input, with an end to the waiting.
pub struct Input<'i> {
    stopper: &'i Stopper,
}

impl Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let a_while = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        loop {
            if self.stopper.is_stopped() {
                return Err(io::Error::other("stopped"));
            }
            // Not by the standard library, whose buffer poll(2) knows nothing of.
            let stdin = rustix::stdio::stdin();
            if poll(&mut [PollFd::from_borrowed_fd(stdin, PollFlags::IN)], Some(&a_while))? > 0 {
                return Ok(rustix::io::read(stdin, into)?);
            }
        }
    }
}
