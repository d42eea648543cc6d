//! Where a node is: its names in the union, and its places in lower layers. There is one of each for almost every node,
//! and a million nodes: so the first is kept in the node itself, and names and directories are shared.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::node::{Node, NodeId};
use crate::resolve::LayerIndex;

/// A directory and a name in it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub parent: Arc<Node>,
    pub name: Arc<OsStr>,
}

impl Place {
    pub fn new(parent: &Arc<Node>, name: &OsStr) -> Self {
        Self { parent: Arc::clone(parent), name: Arc::from(name) }
    }

    pub fn is(&self, parent: NodeId, name: &OsStr) -> bool {
        self.parent.id == parent && *self.name == *name
    }
}

/// Every name of a node, in the order in which they became known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    first: Option<Place>,
    #[expect(clippy::box_collection, reason = "8 bytes in every node, and none beside")]
    others: Option<Box<Vec<Place>>>,
}

impl Places {
    pub fn first(&self) -> Option<&Place> {
        self.first.as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Place> {
        self.first.iter().chain(self.others.iter().flat_map(|others| others.iter()))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.first.iter_mut().chain(self.others.iter_mut().flat_map(|others| others.iter_mut()))
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }

    pub fn has(&self, parent: NodeId, name: &OsStr) -> bool {
        self.iter().any(|place| place.is(parent, name))
    }

    pub fn push(&mut self, place: Place) {
        match self.first {
            None => self.first = Some(place),
            Some(_) => self.others.get_or_insert_default().push(place),
        }
    }

    /// Takes a name away; none where it is not one of the node's.
    pub fn remove(&mut self, parent: NodeId, name: &OsStr) -> Option<Place> {
        if let Some(others) = &mut self.others
            && let Some(at) = others.iter().position(|place| place.is(parent, name))
        {
            return Some(others.remove(at));
        }
        let removed = self.first.take_if(|place| place.is(parent, name))?;
        if let Some(others) = self.others.as_mut().filter(|others| !others.is_empty()) {
            self.first = Some(others.remove(0));
        }
        Some(removed)
    }

    pub fn take(&mut self) -> Vec<Place> {
        let first = self.first.take();
        first.into_iter().chain(self.others.take().into_iter().flat_map(|others| *others)).collect()
    }
}

/// Where a lower layer has a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub layer: LayerIndex,
    /// The path of the directory that it is in.
    pub dir: Arc<Path>,
    /// Its name there; empty for the layer's root.
    pub name: Arc<OsStr>,
}

impl Part {
    pub fn root(layer: LayerIndex) -> Self {
        Self { layer, dir: Arc::from(Path::new("")), name: Arc::from(OsStr::new("")) }
    }

    pub fn path(&self) -> PathBuf {
        if self.name.is_empty() { PathBuf::new() } else { self.dir.join(&*self.name) }
    }

    /// Whether [`Part::path`] is `path`.
    pub fn is_at(&self, path: &Path) -> bool {
        match path.file_name() {
            None => self.name.is_empty(),
            Some(name) => *name == *self.name && path.parent() == Some(&*self.dir),
        }
    }
}

/// The lower layers that show a node: all that merge for a directory, one at most for a leaf.
#[derive(Debug, Clone, Default)]
pub(crate) enum Parts {
    #[default]
    None,
    One(Part),
    Many(Box<[Part]>),
}

impl std::ops::Deref for Parts {
    type Target = [Part];

    fn deref(&self) -> &[Part] {
        match self {
            Self::None => &[],
            Self::One(part) => std::slice::from_ref(part),
            Self::Many(parts) => parts,
        }
    }
}

impl FromIterator<Part> for Parts {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Self {
        let mut parts: Vec<Part> = parts.into_iter().collect();
        match parts.len() {
            0 => Self::None,
            1 => parts.pop().map_or(Self::None, Self::One),
            _ => Self::Many(parts.into_boxed_slice()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_knows_its_path() {
        let root = Part::root(LayerIndex(0));
        assert_eq!(root.path(), PathBuf::new());
        assert!(root.is_at(Path::new("")) && !root.is_at(Path::new("a")));
        let part =
            Part { name: Arc::from(OsStr::new("b")), dir: Arc::from(Path::new("a")), ..root };
        assert_eq!(part.path(), PathBuf::from("a/b"));
        assert!(part.is_at(Path::new("a/b")) && !part.is_at(Path::new("b")));
    }

    #[test]
    fn parts_of_one_take_no_room_beside() {
        let parts = |count| (0..count).map(|i| Part::root(LayerIndex(i))).collect::<Parts>();
        assert!(matches!((parts(0), parts(1)), (Parts::None, Parts::One(_))));
        assert_eq!((parts(0).len(), parts(1).len(), parts(3).len()), (0, 1, 3));
    }
}
