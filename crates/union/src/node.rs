//! Nodes: what the union knows of a file or directory that somebody holds.
//!
//! A node lives from its first lookup until it is forgotten. It is found by its number, by its
//! directory and name, and, where an inode has several names, by that inode.
//!
//! Lock order, outermost first: `moving` (renames of directories), a node's `change` (two by their
//! numbers), its directory's `names`, its `body`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::fs::FileType;

use crate::index::Indexed;
use crate::partial::Partial;
use crate::place::{Part, Parts, Place, Places};
use crate::resolve::LayerIndex;

/// The number of a node, never used again in a union's life; 1 is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The merged root.
    pub const ROOT: Self = Self(1);
}

/// What may change about a node while it lives.
#[derive(Debug, Default)]
pub(crate) struct Body {
    /// The upper layer has it, under the node's place.
    pub upper: bool,
    /// The lower layers that show it.
    pub lower: Parts,
    /// The present inode, while it is open or after its last name is gone.
    pub anchor: Option<Arc<OwnedFd>>,
    /// Set where its data is not, or not all, in its inode.
    pub rest: Option<Box<Rest>>,
    /// Set where its inode is in the index, whatever its names.
    pub index: Option<Box<Indexed>>,
    /// Grows when reads must go to another inode: open files look again.
    pub version: u32,
}

/// Where the data of a file is that its own inode has not.
#[derive(Debug)]
pub(crate) enum Rest {
    /// A part of it is in the upper layer.
    Partial(Arc<Partial>),
    /// All of it is in a layer below, which a file without data stands for.
    Below(Part),
}

#[derive(Debug)]
pub(crate) struct Node {
    pub id: NodeId,
    /// The inode number that is shown, which no copy-up changes.
    pub ino: u64,
    pub kind: FileType,
    pub lookups: AtomicU64,
    pub opens: AtomicU32,
    /// Names of living nodes in this directory: it lives as long as they, who find their path by it.
    pub children: AtomicU32,
    /// Every known name; empty for the root, and for what was removed while it was in use.
    pub places: RwLock<Places>,
    pub body: RwLock<Body>,
    /// Held across a copy-up and across a change of attributes.
    pub change: Mutex<()>,
    /// Of a directory: held for reading by lookups in it, for writing where names change.
    pub names: RwLock<()>,
}

impl Node {
    /// The path in the union, which is also the one in the upper layer; none without a name.
    pub fn path(&self) -> Option<PathBuf> {
        let mut names = Vec::new();
        let mut place = self.places.read().first().cloned();
        if place.is_none() && self.id != NodeId::ROOT {
            return None;
        }
        while let Some(Place { parent, name }) = place {
            names.push(name);
            place = parent.places.read().first().cloned();
            if place.is_none() && parent.id != NodeId::ROOT {
                return None;
            }
        }
        Some(names.iter().rev().map(|name| &**name).collect())
    }

    pub fn place(&self) -> Option<Place> {
        self.places.read().first().cloned()
    }

    /// What reads and writes it, while the upper layer has only a part of its data.
    pub fn partial(&self) -> Option<Arc<Partial>> {
        match self.body.read().rest.as_deref() {
            Some(Rest::Partial(partial)) if !partial.is_complete() => Some(Arc::clone(partial)),
            _ => None,
        }
    }

    /// The file that has its data, where its inode has none.
    pub fn below(&self) -> Option<Part> {
        match self.body.read().rest.as_deref() {
            Some(Rest::Below(part)) => Some(part.clone()),
            _ => None,
        }
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }
}

/// Identity of an inode that has several names: its layer and number there.
pub(crate) type Inode = (LayerIndex, u64, u64);

/// The hash of what was hashed already, or is as good as a hash: numbers given in order.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        // The table takes its place from the low bits and a tag from the high ones.
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[derive(Debug, Default)]
struct Maps {
    by_id: HashMap<NodeId, Arc<Node>, BuildHasherDefault<AsIs>>,
    names: Names,
    by_inode: HashMap<Inode, Arc<Node>>,
    inode_of: HashMap<NodeId, Inode>,
}

/// Nodes by directory and name. The name is in the node, so that here its hash is enough: a node that is found is asked
/// whether it has the name.
#[derive(Debug, Default)]
struct Names {
    hasher: RandomState,
    by_hash: HashMap<u64, Arc<Node>, BuildHasherDefault<AsIs>>,
    /// Names whose hash another name has: none, in all likelihood.
    others: HashMap<(NodeId, OsString), Arc<Node>>,
}

impl Names {
    fn get(&self, parent: NodeId, name: &OsStr) -> Option<&Arc<Node>> {
        let node = self.by_hash.get(&self.hasher.hash_one((parent, name)));
        let node = node.filter(|node| node.places.read().has(parent, name));
        if node.is_some() || self.others.is_empty() {
            return node;
        }
        self.others.get(&(parent, name.to_owned()))
    }

    /// For a node that has the name, or gets it before anybody looks.
    fn insert(&mut self, parent: NodeId, name: &OsStr, node: Arc<Node>) {
        let hash = self.hasher.hash_one((parent, name));
        match self.by_hash.get(&hash) {
            Some(other) if !Arc::ptr_eq(other, &node) && !other.places.read().has(parent, name) => {
                self.others.insert((parent, name.to_owned()), node);
            }
            _ => {
                self.by_hash.insert(hash, node);
            }
        }
    }

    /// Removes the name of `node`, which may have lost it already.
    fn remove(&mut self, parent: NodeId, name: &OsStr, node: &Arc<Node>) {
        let hash = self.hasher.hash_one((parent, name));
        if self.by_hash.get(&hash).is_some_and(|known| Arc::ptr_eq(known, node)) {
            self.by_hash.remove(&hash);
        } else {
            self.others.remove(&(parent, name.to_owned()));
        }
    }
}

/// All nodes that live.
#[derive(Debug)]
pub(crate) struct Table {
    maps: RwLock<Maps>,
    next: AtomicU64,
}

/// What a lookup found, before it is known whether there is a node of it already.
pub(crate) struct Candidate {
    pub ino: u64,
    pub kind: FileType,
    pub body: Body,
    /// Set where the inode may have other names.
    pub inode: Option<Inode>,
}

impl Table {
    pub fn new(root_ino: u64, body: Body) -> Self {
        let root = Node {
            id: NodeId::ROOT,
            ino: root_ino,
            kind: FileType::Directory,
            lookups: AtomicU64::new(1),
            opens: AtomicU32::new(0),
            children: AtomicU32::new(0),
            places: RwLock::default(),
            body: RwLock::new(body),
            change: Mutex::default(),
            names: RwLock::default(),
        };
        let mut maps = Maps::default();
        maps.by_id.insert(NodeId::ROOT, Arc::new(root));
        Self { maps: RwLock::new(maps), next: AtomicU64::new(NodeId::ROOT.0 + 1) }
    }

    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.maps.read().by_id.get(&id).cloned()
    }

    /// The node of a name, with one lookup more.
    pub fn find(&self, parent: NodeId, name: &OsStr) -> Option<Arc<Node>> {
        let maps = self.maps.read();
        let node = maps.names.get(parent, name)?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(node))
    }

    /// The inode number of a name that is known.
    pub fn ino(&self, parent: NodeId, name: &OsStr) -> Option<u64> {
        self.maps.read().names.get(parent, name).map(|node| node.ino)
    }

    /// The node of what was found under a name, with one lookup more, and whether it is a new one.
    ///
    /// None where `holds` says, while nobody else changes the table, that what was found holds no more.
    pub fn enter(
        &self,
        place: Option<Place>,
        found: Candidate,
        holds: impl FnOnce() -> bool,
    ) -> Option<(Arc<Node>, bool)> {
        let mut maps = self.maps.write();
        let known = place.as_ref().and_then(|place| maps.names.get(place.parent.id, &place.name));
        if let Some(node) = known {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            return Some((Arc::clone(node), false));
        }
        let known = found.inode.and_then(|inode| maps.by_inode.get(&inode).cloned());
        let is_new = known.is_none();
        if is_new && !holds() {
            return None;
        }
        let node = known.unwrap_or_else(|| {
            let id = NodeId(self.next.fetch_add(1, Ordering::Relaxed));
            let node = Arc::new(Node {
                id,
                ino: found.ino,
                kind: found.kind,
                lookups: AtomicU64::new(0),
                opens: AtomicU32::new(0),
                children: AtomicU32::new(0),
                places: RwLock::default(),
                body: RwLock::new(found.body),
                change: Mutex::default(),
                names: RwLock::default(),
            });
            maps.by_id.insert(id, Arc::clone(&node));
            if let Some(inode) = found.inode {
                maps.by_inode.insert(inode, Arc::clone(&node));
                maps.inode_of.insert(id, inode);
            }
            node
        });
        node.lookups.fetch_add(1, Ordering::Relaxed);
        if let Some(place) = place {
            maps.add(&node, place);
        }
        Some((node, is_new))
    }

    /// The node is of another inode from now on: it was copied up, or has got a second name.
    pub fn identify(&self, node: &Arc<Node>, inode: Inode) {
        let mut maps = self.maps.write();
        if let Some(old) = maps.inode_of.insert(node.id, inode) {
            maps.by_inode.remove(&old);
        }
        maps.by_inode.insert(inode, Arc::clone(node));
    }

    /// Whether a node is of an inode that may have other names.
    pub fn has_names(&self, id: NodeId) -> bool {
        self.maps.read().inode_of.contains_key(&id)
    }

    /// Gives back lookups; a node that nothing needs any more is dropped, and the directories above
    /// it that lived for its sake. The directories among them are told, and whether no lookup is left.
    pub fn forget(&self, id: NodeId, count: u64) -> (bool, Vec<NodeId>) {
        let mut maps = self.maps.write();
        let Some(node) = maps.by_id.get(&id).cloned() else { return (true, Vec::new()) };
        let before = node.lookups.load(Ordering::Relaxed);
        let left = before.saturating_sub(count);
        node.lookups.store(left, Ordering::Relaxed);
        (left == 0, maps.drop_unused(&node))
    }

    /// An open file or directory of the node was closed.
    pub fn closed(&self, node: &Arc<Node>) {
        let mut maps = self.maps.write();
        if node.opens.fetch_sub(1, Ordering::AcqRel) == 1 && node.place().is_some() {
            node.body.write().anchor = None;
        }
        maps.drop_unused(node);
    }

    /// After a name went: a node that has another needs no anchor but while it is open.
    pub fn settle(&self, node: &Arc<Node>) {
        let mut body = node.body.write();
        if node.place().is_some() && node.opens.load(Ordering::Acquire) == 0 {
            body.anchor = None;
        }
    }

    /// What had the name `from` has the name `to`, which nothing has; or both change places.
    pub fn rename(&self, from: &Place, to: &Place, exchange: bool) {
        let mut maps = self.maps.write();
        let moved = maps.take(from.parent.id, &from.name);
        let other = maps.take(to.parent.id, &to.name);
        let replace = |node: &Arc<Node>, old: &Place, new: &Place| {
            for place in node.places.write().iter_mut() {
                if place.is(old.parent.id, &old.name) {
                    old.parent.children.fetch_sub(1, Ordering::Relaxed);
                    new.parent.children.fetch_add(1, Ordering::Relaxed);
                    *place = new.clone();
                }
            }
        };
        if let Some(node) = moved {
            replace(&node, from, to);
            maps.names.insert(to.parent.id, &to.name, node);
        }
        if let Some(node) = other.filter(|_| exchange) {
            replace(&node, to, from);
            maps.names.insert(from.parent.id, &from.name, node);
        }
    }

    /// `node` gets the name too.
    pub fn add_place(&self, node: &Arc<Node>, place: Place) {
        self.maps.write().add(node, place);
    }

    /// Whatever has the name has it no more; `last` where its inode has no other.
    pub fn remove_place(&self, parent: NodeId, name: &OsStr, last: bool) -> Option<Arc<Node>> {
        let mut maps = self.maps.write();
        let node = maps.take(parent, name)?;
        if let Some(place) = node.places.write().remove(parent, name) {
            place.parent.children.fetch_sub(1, Ordering::Relaxed);
        }
        if last
            && node.places.read().first().is_none()
            && let Some(inode) = maps.inode_of.remove(&node.id)
        {
            maps.by_inode.remove(&inode);
        }
        Some(node)
    }
}

impl Maps {
    fn add(&mut self, node: &Arc<Node>, place: Place) {
        self.names.insert(place.parent.id, &place.name, Arc::clone(node));
        place.parent.children.fetch_add(1, Ordering::Relaxed);
        node.places.write().push(place);
    }

    /// The node of a name, which the table does not know by it any more.
    fn take(&mut self, parent: NodeId, name: &OsStr) -> Option<Arc<Node>> {
        let node = Arc::clone(self.names.get(parent, name)?);
        self.names.remove(parent, name, &node);
        Some(node)
    }

    fn drop_unused(&mut self, node: &Arc<Node>) -> Vec<NodeId> {
        let mut dropped = Vec::new();
        let mut unused = vec![Arc::clone(node)];
        while let Some(node) = unused.pop() {
            let used = node.lookups.load(Ordering::Relaxed) > 0
                || node.opens.load(Ordering::Acquire) > 0
                || node.children.load(Ordering::Relaxed) > 0;
            if used || node.id == NodeId::ROOT {
                continue;
            }
            self.by_id.remove(&node.id);
            self.shrink();
            if let Some(inode) = self.inode_of.remove(&node.id) {
                self.by_inode.remove(&inode);
            }
            if node.is_dir() {
                dropped.push(node.id);
            }
            let places = node.places.write().take();
            for place in places {
                self.names.remove(place.parent.id, &place.name, &node);
                place.parent.children.fetch_sub(1, Ordering::Relaxed);
                unused.push(place.parent);
            }
        }
        dropped
    }

    /// Gives back the room of tables that have become far too large.
    fn shrink(&mut self) {
        let len = self.by_id.len();
        if self.by_id.capacity() > 4096 && self.by_id.capacity() / 8 > len {
            self.by_id.shrink_to(2 * len);
            self.names.by_hash.shrink_to(2 * len);
        }
    }
}
