//! What the unions of snapshots count: each has a server of its own, whose counters are in the snapshot's directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use union::Counted;

/// The counters of all unions since the snapshotter started, and of those that it found.
#[derive(Debug, Default)]
pub(crate) struct Unions(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Files of counters, with what was read of them last.
    live: BTreeMap<PathBuf, Counted>,
    /// The sums of those that went.
    gone: Counted,
}

impl Unions {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what is counted in the file too, which need not be there yet.
    pub fn watch(&self, counters: PathBuf) {
        self.inner().live.entry(counters).or_default();
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.inner().live.is_empty()
    }

    /// Reads a file before its snapshot goes.
    pub fn look(&self, counters: &Path) {
        if let Some(known) = self.inner().live.get_mut(counters) {
            refresh(counters, known);
        }
    }

    /// The file has gone, or nobody writes to it any more.
    pub fn forget(&self, counters: &Path) {
        let inner = &mut *self.inner();
        if let Some(last) = inner.live.remove(counters) {
            add(&mut inner.gone, &last);
        }
    }

    /// The sums, and how many unions there are.
    pub fn sum(&self) -> (Counted, usize) {
        let inner = &mut *self.inner();
        let mut sum = inner.gone;
        for (counters, known) in &mut inner.live {
            refresh(counters, known);
            add(&mut sum, known);
        }
        (sum, inner.live.len())
    }
}

fn refresh(counters: &Path, known: &mut Counted) {
    match Counted::read(counters) {
        Ok(Some(now)) => *known = now,
        // It was never mounted, or went just now: what was read last stays.
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, ?counters, "counters can't be read"),
    }
}

fn add(sum: &mut Counted, more: &Counted) {
    sum.copy_ups += more.copy_ups;
    sum.copied_bytes += more.copied_bytes;
    sum.refused += more.refused;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a union writes them.
    fn write(path: &Path, words: [u64; 6]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn sums_never_fall_when_a_union_goes() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        let unions = Unions::default();
        for name in ["a", "b"] {
            unions.watch(at(name));
        }
        assert_eq!(unions.sum(), (Counted::default(), 2));
        write(&at("a"), [1, 10, 0, 1, 4096, 3]);
        write(&at("b"), [2, 20, 5, 0, 0, 0]);
        let sum = Counted { copy_ups: 3, copied_bytes: 30, refused: 5, used: None };
        assert_eq!(unions.sum(), (sum, 2));
        write(&at("a"), [4, 10, 0, 1, 4096, 3]);
        unions.look(&at("a"));
        std::fs::remove_file(at("a")).unwrap();
        let sum = Counted { copy_ups: 6, ..sum };
        assert_eq!(unions.sum(), (sum, 2));
        unions.forget(&at("a"));
        unions.forget(&at("never watched"));
        assert_eq!(unions.sum(), (sum, 1));
        assert!(!unions.is_empty());
    }
}
