//! Tars that are no layers.

use std::io::{self, BufRead};
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::{At, Error, Result};
use crate::store::{Store, open_dir};
use crate::tar::{apply, recipe};

/// No files that are there already.
struct Nothing;

impl apply::Objects for Nothing {
    fn find(&self, _content: &crate::Content, _size: u64) -> Option<OwnedFd> {
        None
    }
}

impl Store {
    /// Unpacks a tar into `fs`, a directory in `into`, and nowhere else. Names by which layers delete are taken as such.
    ///
    /// # Errors
    /// [`Error::Io`] with the entry; what was unpacked until then stays.
    pub fn unpack(&self, tar: impl BufRead, into: &Path) -> Result<()> {
        let options = apply::Options { share: false, ..self.options().clone() };
        let recipe = recipe::Writer::new(io::sink()).at(into, "unpacking")?;
        let applied = apply::apply(tar, open_dir(into)?, &options, &Nothing, recipe);
        applied.map(drop).map_err(|refusal| Error::Io {
            path: refusal.path,
            step: "unpacking",
            source: io::Error::other(refusal.why),
        })
    }
}
