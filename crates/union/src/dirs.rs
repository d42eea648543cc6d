//! Directories of layers that stay open, so that a lookup walks no path, and what lower ones are known not to have.
//!
//! Of many layers most have nothing under a name. A lower layer never changes, so a directory of it that was asked in
//! vain a few times is listed once, and answers from memory from then on.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use layer::mark;
use parking_lot::Mutex;
use rustix::fs::Dir;

use crate::node::NodeId;
use crate::resolve::LayerIndex;

/// A fifth of the 20,000 descriptors that a process may have where nobody raised the limit less.
const OPEN_DIRS: usize = 4000;

/// How often a directory is asked in vain before it is listed.
const MISSES: u32 = 8;

/// Names of one directory that are remembered, and of all: 8 bytes each.
const NAMES: usize = 16 << 10;
const ALL_NAMES: usize = 8 << 20;

/// An open directory of a layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerDir {
    pub fd: Arc<OwnedFd>,
    /// Its path in the layer, which the nodes in it share.
    pub path: Arc<Path>,
    known: Arc<Known>,
}

impl LayerDir {
    /// Whether the directory has an ACL for what is made in it; `ask` is asked once.
    pub fn has_default_acl<E>(&self, ask: impl FnOnce() -> Result<bool, E>) -> Result<bool, E> {
        let mut known = self.known.default_acl.lock();
        match *known {
            Some(known) => Ok(known),
            None => Ok(*known.insert(ask()?)),
        }
    }

    /// It may have another from now on.
    pub fn default_acl_changed(&self) {
        *self.known.default_acl.lock() = None;
    }
}

/// What is known of the names of a directory.
#[derive(Debug)]
struct Known {
    misses: AtomicU32,
    /// Hashes of all names, sorted; none where they are too many, or can't be read.
    names: OnceLock<Option<Box<[u64]>>>,
    /// Whether files in it may have their data, or their first inode, elsewhere.
    impure: Mutex<Option<bool>>,
    /// Whether it has an ACL for what is made in it.
    default_acl: Mutex<Option<bool>>,
    all: Arc<AtomicUsize>,
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Some(Some(names)) = self.names.get() {
            self.all.fetch_sub(names.len(), Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Open {
    dir: LayerDir,
    /// The time of the last use, as the clock has it.
    used: u64,
}

/// Bounded: the longest unused go.
#[derive(Debug, Default)]
pub(crate) struct DirCache {
    open: Mutex<HashMap<(NodeId, LayerIndex), Open>>,
    clock: AtomicU64,
    hasher: RandomState,
    all_names: Arc<AtomicUsize>,
}

impl DirCache {
    /// The directory of a node in a layer, opened where it is not open.
    pub fn get<E>(
        &self,
        node: NodeId,
        layer: LayerIndex,
        path: impl FnOnce() -> PathBuf,
        open: impl FnOnce(&Path) -> Result<OwnedFd, E>,
    ) -> Result<LayerDir, E> {
        match self.peek(node, layer) {
            Some(dir) => Ok(dir),
            None => {
                let path = path();
                Ok(self.put(node, layer, open(&path)?, path))
            }
        }
    }

    /// The directory of a node in a layer, where it is open.
    pub fn peek(&self, node: NodeId, layer: LayerIndex) -> Option<LayerDir> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock();
        let open = open.get_mut(&(node, layer))?;
        open.used = now;
        Some(open.dir.clone())
    }

    /// Keeps a directory open.
    pub fn put(&self, node: NodeId, layer: LayerIndex, fd: OwnedFd, path: PathBuf) -> LayerDir {
        let used = self.clock.load(Ordering::Relaxed);
        let all = Arc::clone(&self.all_names);
        let known = Known {
            misses: AtomicU32::new(0),
            names: OnceLock::new(),
            impure: Mutex::default(),
            default_acl: Mutex::default(),
            all,
        };
        let dir = LayerDir { fd: Arc::new(fd), path: Arc::from(path), known: Arc::new(known) };
        let mut map = self.open.lock();
        if map.len() >= OPEN_DIRS {
            let mut ages: Vec<u64> = map.values().map(|open| open.used).collect();
            let (_, median, _) = ages.select_nth_unstable(OPEN_DIRS / 2);
            let median = *median;
            map.retain(|_, open| open.used > median);
        }
        map.insert((node, layer), Open { dir: dir.clone(), used });
        dir
    }

    /// Lets go of the directories of a node.
    pub fn drop_node(&self, node: NodeId, layers: usize) {
        let mut open = self.open.lock();
        for layer in (0..).map(LayerIndex).take(layers) {
            open.remove(&(node, layer));
        }
    }

    /// Whether files of a directory may have their data, or their first inode, elsewhere; `ask` is asked once.
    pub fn is_impure<E>(
        &self,
        dir: &LayerDir,
        ask: impl FnOnce(&OwnedFd) -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut known = dir.known.impure.lock();
        match *known {
            Some(known) => Ok(known),
            None => Ok(*known.insert(ask(&dir.fd)?)),
        }
    }

    /// They may from now on.
    pub fn set_impure(&self, dir: &LayerDir) {
        *dir.known.impure.lock() = Some(true);
    }

    /// Whether a directory of a lower layer is known to say nothing about `name`.
    pub fn is_absent(&self, dir: &LayerDir, name: &OsStr) -> bool {
        let names = dir.known.names.get().and_then(Option::as_deref);
        names.is_some_and(|names| names.binary_search(&self.hasher.hash_one(name)).is_err())
    }

    /// A directory of a lower layer said nothing about a name.
    pub fn missed(&self, dir: &LayerDir) {
        if dir.known.misses.fetch_add(1, Ordering::Relaxed) == MISSES {
            dir.known.names.get_or_init(|| self.names(&*dir.fd));
        }
    }

    fn names(&self, fd: impl AsFd) -> Option<Box<[u64]>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(fd).ok()? {
            let entry = entry.ok()?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            // A whiteout in the AUFS form says something about the name that it hides.
            names.push(self.hasher.hash_one(mark::aufs_hidden(name).unwrap_or(name)));
            if names.len() > NAMES {
                return None;
            }
        }
        if self.all_names.fetch_add(names.len(), Ordering::Relaxed) + names.len() > ALL_NAMES {
            self.all_names.fetch_sub(names.len(), Ordering::Relaxed);
            return None;
        }
        names.sort_unstable();
        Some(names.into_boxed_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_directory_asked_in_vain_answers_from_memory() {
        let temp = tempfile::tempdir().expect("a directory");
        for name in ["here", ".wh.hidden"] {
            fs::write(temp.path().join(name), "").expect("a file");
        }
        let cache = DirCache::default();
        let fd = OwnedFd::from(fs::File::open(temp.path()).expect("the directory"));
        let dir = cache.put(NodeId::ROOT, LayerIndex(1), fd, PathBuf::new());
        for _ in 0..=MISSES {
            assert!(!cache.is_absent(&dir, OsStr::new("absent")));
            cache.missed(&dir);
        }
        assert!(cache.is_absent(&dir, OsStr::new("absent")));
        assert!(!cache.is_absent(&dir, OsStr::new("here")));
        assert!(!cache.is_absent(&dir, OsStr::new("hidden")));
        assert_ne!(cache.all_names.load(Ordering::Relaxed), 0);
        drop(dir);
        cache.drop_node(NodeId::ROOT, 2);
        assert_eq!(cache.all_names.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_so_many_stay_open() {
        let cache = DirCache::default();
        let root = fs::File::open("/").expect("the root");
        for number in 0..OPEN_DIRS as u64 + 10 {
            let fd = OwnedFd::from(root.try_clone().expect("a descriptor"));
            cache.put(NodeId(number), LayerIndex(0), fd, PathBuf::new());
            cache.peek(NodeId(number), LayerIndex(0)).expect("the newest");
        }
        assert!(cache.open.lock().len() < OPEN_DIRS);
    }
}
