//! Where tests come between the store and the disk.

use std::io;
use std::sync::Arc;

/// Asked before each step that a crash may come before; an error is that step's.
#[derive(Clone, Default)]
pub struct Seam(Option<Arc<Ask>>);

type Ask = dyn Fn(&'static str) -> io::Result<()> + Send + Sync;

impl Seam {
    /// A seam that asks `ask`, which is given the step's name.
    pub fn new(ask: impl Fn(&'static str) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    /// Asks.
    pub(crate) fn before(&self, step: &'static str) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |ask| ask(step))
    }
}

impl std::fmt::Debug for Seam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seam")
    }
}
