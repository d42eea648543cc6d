//! What directories had when they were last read from the start, for whoever reads on.
//!
//! A name keeps its place while listings of its directory are remembered, so that those who are in the middle of one,
//! however many, get every name once that is there all the time: as telldir(3) and seekdir(3) want. What is new comes last.
//! Where none is remembered, the places are counted anew, in the order of the layers; a directory that did not change has
//! the same ones again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::dir::DirEntry;
use crate::node::NodeId;

/// Names that are remembered, of all directories: half a MiB of them where they have been read to the end, and 50 where
/// somebody may be in the middle.
const READ: usize = 4 << 10;
const UNREAD: usize = 512 << 10;

/// A directory of more names is always taken for one that somebody is in the middle of: rm(1) and find(1) take 100,000 names at
/// a time, from what the kernel keeps of an earlier listing, and come to us for the rest when the first are gone.
const LARGE: usize = 16 << 10;

/// From which number on places are counted anew, long before they end.
const LAST: u32 = 1 << 30;

/// The names of a directory as they were at one time, by their places.
#[derive(Debug, Default)]
pub struct Listing {
    entries: Vec<DirEntry>,
    /// No place was given that is greater.
    last: u32,
}

impl Listing {
    /// All of them.
    pub fn entries(&self) -> &[DirEntry] {
        &self.entries
    }

    /// Those behind a place, be it still somebody's or not; 0 is before the first.
    pub fn after(&self, place: u32) -> &[DirEntry] {
        &self.entries[self.entries.partition_point(|entry| entry.place <= place)..]
    }

    fn first(mut entries: Vec<DirEntry>) -> Self {
        for (entry, place) in entries.iter_mut().zip(1..) {
            entry.place = place;
        }
        let last = entries.last().map_or(0, |entry| entry.place);
        Self { entries, last }
    }

    /// The listing that follows this one.
    fn next(&self, mut entries: Vec<DirEntry>) -> Self {
        if self.last > LAST {
            return Self::first(entries);
        }
        let mut last = self.last;
        let places: HashMap<&OsStr, u32> =
            self.entries.iter().map(|old| (&*old.name, old.place)).collect();
        for entry in &mut entries {
            entry.place = places.get(&*entry.name).copied().unwrap_or_else(|| {
                last += 1;
                last
            });
        }
        entries.sort_unstable_by_key(|entry| entry.place);
        Self { entries, last }
    }
}

#[derive(Debug)]
struct Known {
    listing: Arc<Listing>,
    /// Somebody has read it to the end.
    read: bool,
    /// The time of the last use, as the clock has it.
    used: u64,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<NodeId, Known>,
    /// How many names they have, those that were read to the end and the others.
    names: [usize; 2],
    clock: u64,
}

/// Bounded: the longest unused go.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    state: Mutex<State>,
}

impl Listings {
    /// The last listing of a directory.
    pub fn get(&self, dir: NodeId) -> Option<Arc<Listing>> {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        let known = state.known.get_mut(&dir)?;
        known.used = now;
        Some(Arc::clone(&known.listing))
    }

    /// What a directory has now.
    pub fn put(&self, dir: NodeId, entries: Vec<DirEntry>) -> Arc<Listing> {
        let mut state = self.state.lock();
        state.clock += 1;
        let used = state.clock;
        let listing = Arc::new(match state.forget(dir) {
            Some(before) => before.next(entries),
            None => Listing::first(entries),
        });
        state.names[0] += listing.entries.len();
        state.known.insert(dir, Known { listing: Arc::clone(&listing), read: false, used });
        state.shrink(0, UNREAD);
        listing
    }

    /// Somebody has read a directory to the end.
    pub fn read(&self, dir: NodeId) {
        let mut state = self.state.lock();
        let Some(known) = state.known.get_mut(&dir).filter(|known| !known.read) else { return };
        let names = known.listing.entries.len();
        if names > LARGE {
            return;
        }
        known.read = true;
        state.names[0] -= names;
        state.names[1] += names;
        state.shrink(1, READ);
    }

    /// A directory is no more.
    pub fn forget(&self, dir: NodeId) {
        self.state.lock().forget(dir);
    }
}

impl State {
    fn forget(&mut self, dir: NodeId) -> Option<Arc<Listing>> {
        let known = self.known.remove(&dir)?;
        self.names[usize::from(known.read)] -= known.listing.entries.len();
        Some(known.listing)
    }

    /// Lets go of those unused for longest until there are three quarters of `most` names; the last one used stays, if need
    /// be.
    fn shrink(&mut self, read: usize, most: usize) {
        if self.names[read] <= most {
            return;
        }
        let of = self.known.iter().filter(|(_, known)| usize::from(known.read) == read);
        let mut ages: Vec<(u64, NodeId)> = of.map(|(dir, known)| (known.used, *dir)).collect();
        ages.sort_unstable();
        ages.pop();
        for (_, dir) in ages {
            if self.names[read] <= most / 4 * 3 {
                break;
            }
            self.forget(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;

    const DIR: NodeId = NodeId(7);

    fn names(names: &[&str]) -> Vec<DirEntry> {
        let entry = |name: &&str| DirEntry {
            name: name.into(),
            ino: 1,
            kind: FileType::RegularFile,
            place: 0,
        };
        names.iter().map(entry).collect()
    }

    fn shown(entries: &[DirEntry]) -> Vec<(&str, u32)> {
        entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.place)).collect()
    }

    #[test]
    fn names_keep_their_places_and_new_ones_come_last() {
        let listings = Listings::default();
        let first = listings.put(DIR, names(&["a", "b", "c"]));
        assert_eq!(shown(first.entries()), [("a", 1), ("b", 2), ("c", 3)]);
        let second = listings.put(DIR, names(&["new", "c", "a"]));
        assert_eq!(shown(second.entries()), [("a", 1), ("c", 3), ("new", 4)]);
        assert_eq!(shown(second.after(2)), [("c", 3), ("new", 4)]);
        // A place that was somebody's is not given again.
        listings.put(DIR, names(&["a"]));
        let fourth = listings.put(DIR, names(&["a", "d"]));
        assert_eq!(shown(fourth.entries()), [("a", 1), ("d", 5)]);
        assert!(fourth.after(5).is_empty());
    }

    #[test]
    fn the_same_names_have_the_same_places() {
        let listings = Listings::default();
        let first = listings.put(DIR, names(&["b", "a"]));
        assert_eq!(first.entries(), listings.put(DIR, names(&["b", "a"])).entries());
        listings.forget(DIR);
        assert!(listings.get(DIR).is_none());
        assert_eq!(first.entries(), listings.put(DIR, names(&["b", "a"])).entries());
    }

    #[test]
    fn only_so_many_are_remembered() {
        let listings = Listings::default();
        let many: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(|name| &**name).collect();
        for dir in 0..2000 {
            listings.put(NodeId(dir), names(&many));
            if dir % 2 == 0 {
                listings.read(NodeId(dir));
            }
        }
        let [unread, read] = listings.state.lock().names;
        assert!(unread <= UNREAD && unread > UNREAD / 2 && read <= READ && read > READ / 2);
        assert!(listings.get(NodeId(1999)).is_some() && listings.get(NodeId(1)).is_none());
        let large = many.repeat(17);
        listings.put(DIR, names(&large));
        listings.read(DIR);
        for dir in 2000..2010 {
            listings.put(NodeId(dir), names(&many));
            listings.read(NodeId(dir));
        }
        assert!(listings.get(DIR).is_some(), "a large one goes no sooner than those in use");
        listings.forget(DIR);
        for dir in 0..2010 {
            listings.forget(NodeId(dir));
        }
        assert_eq!(listings.state.lock().names, [0, 0]);
    }
}
