//! A stack of layers, name by name: what each layer adds, changes and deletes, what it hides of those below, and what
//! of its own is hidden by those above and so takes room for nothing.
//!
//! Sizes are lengths of regular files. A file with several names in a layer counts once, under the first of them that is
//! not hidden. Redirects and files without data of their own (overlayfs.rst, "redirect_dir", "metacopy") are not looked
//! for: no layer of an image has any, and containers are mounted without.
//!
//! Source: overlayfs.rst, "Whiteouts and opaque directories"; [`crate::probe`] for the marks.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::tree::{Attributes, Tree, What};
use crate::{Layer, Result};

/// What a layer does to a name, seen from the layers below it; in [`Account::merged`], what became of the name in all
/// layers above the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing: a directory that is there for what is in it, and has only that changed. In the merged tree what the lowest
    /// layer has and nobody changed.
    Kept,
    /// It was not there.
    Added,
    /// It takes the place of what was there; a directory has other attributes, or something in it changed.
    Changed,
    /// It was there and is no longer.
    Deleted,
    /// It is deleted, and was not there.
    DeletedNothing,
}

/// A name, and the sums of all that is in it.
#[derive(Debug, Clone)]
pub struct Item {
    /// In its directory; empty for the root.
    pub name: OsString,
    /// The directory that it is in; the root is in itself.
    pub parent: usize,
    /// What is in it, sorted by name.
    pub children: Vec<usize>,
    /// What stands there. In the merged tree, what stood there last.
    pub what: What,
    /// What happened to it.
    pub change: Change,
    /// The layer that it is of, the lowest being 0; in the merged tree the uppermost that has it.
    pub layer: usize,
    /// The lowest layer above that hides it; in the merged tree the layer that deleted it.
    pub hidden_by: Option<usize>,
    /// One more name of a file of the same layer, which has its bytes under another.
    pub linked: bool,
    /// Of what stands there.
    pub attributes: Attributes,
    /// Bytes of files, its own and in it: all of the layer's; in the merged tree those that show.
    pub bytes: u64,
    /// Names, itself and those in it, other than whiteouts; in the merged tree those that show.
    pub names: u64,
    /// Bytes of layers below that it hides, by taking their place, by a whiteout or as opaque directory; none in the
    /// merged tree.
    pub hides: u64,
    /// Bytes that layers above hide; in the merged tree those of all layers under this name.
    pub wasted: u64,
}

/// How many names, and the bytes of the files among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Names.
    pub names: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.names += 1;
        self.bytes += bytes;
    }
}

/// A layer in its stack.
#[derive(Debug, Clone)]
pub struct LayerAccount {
    /// Its names, whiteouts too. The first is the root; each directory comes before what is in it.
    pub items: Vec<Item>,
    /// What it adds.
    pub added: Count,
    /// What it changes, directories among them; bytes of the new files.
    pub changed: Count,
    /// Names that it deletes by a whiteout, and the bytes that this and opaque directories hide.
    pub deleted: Count,
    /// Whiteouts that hide nothing.
    pub deleted_nothing: u64,
    /// Files of layers below that it hides, and their bytes.
    pub hides: Count,
    /// Files of its own that layers above hide, and their bytes.
    pub wasted: Count,
}

impl LayerAccount {
    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.items[0].bytes
    }
}

/// A stack of layers.
#[derive(Debug, Clone)]
pub struct Account {
    /// The lowest first.
    pub layers: Vec<LayerAccount>,
    /// Every name that any layer has, also those that are hidden. The first is the root; each directory comes before what
    /// is in it.
    pub merged: Vec<Item>,
}

/// The path of an item, relative to the root.
pub fn path(items: &[Item], mut item: usize) -> PathBuf {
    let mut names = Vec::new();
    while item != 0 {
        names.push(&items[item].name);
        item = items[item].parent;
    }
    names.into_iter().rev().collect()
}

impl Account {
    /// Reads `layers`, the lowest first, each in whole.
    ///
    /// Cost: that of [`Layer::tree`] for each, on as many threads as there are processors, and some 200 bytes of memory
    /// a name.
    ///
    /// # Errors
    /// Those of [`Layer::tree`].
    pub fn of(layers: &[Layer]) -> Result<Self> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut read = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(layer) = layers.get(index) else { return read };
                read.push((index, layer.tree()));
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(layers.len()));
        let mut read: Vec<(usize, Result<Tree>)> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut read = work();
            for other in others {
                match other.join() {
                    Ok(more) => read.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            read
        });
        read.sort_by_key(|(index, _)| *index);
        let trees = read.into_iter().map(|(_, tree)| tree).collect::<Result<Vec<_>>>()?;
        Ok(Self::of_trees(&trees))
    }

    /// The same for layers that have been read.
    pub fn of_trees(trees: &[Tree]) -> Self {
        if trees.is_empty() {
            return Self { layers: Vec::new(), merged: vec![empty_root()] };
        }
        let mut stack = Stack { trees, facts: Vec::new(), places: vec![Place::default()] };
        for tree in trees {
            stack.facts.push(vec![Fact::default(); tree.nodes.len()]);
            stack.apply(stack.facts.len() - 1);
        }
        stack.count();
        let layers = (0..trees.len()).map(|layer| stack.layer(layer)).collect();
        Self { layers, merged: stack.merged() }
    }
}

/// A node of a layer's tree.
type Source = (usize, usize);

#[derive(Debug, Clone, Copy)]
struct Fact {
    change: Change,
    hidden_by: Option<Source>,
    /// Its own, where no other name has them.
    bytes: u64,
    linked: bool,
}

impl Default for Fact {
    fn default() -> Self {
        Self { change: Change::Kept, hidden_by: None, bytes: 0, linked: false }
    }
}

/// A name as the layers that have been applied show it.
#[derive(Debug, Default)]
struct Place {
    parent: usize,
    children: BTreeMap<OsString, usize>,
    /// What shows; nothing where it is hidden.
    top: Option<Source>,
    /// All that stood there, the latest last.
    past: Vec<Source>,
    deleted_by: Option<usize>,
}

struct Stack<'t> {
    trees: &'t [Tree],
    facts: Vec<Vec<Fact>>,
    places: Vec<Place>,
}

impl Stack<'_> {
    fn what(&self, (layer, node): Source) -> What {
        self.trees[layer].nodes[node].what
    }

    /// Lays the layer over those below it.
    fn apply(&mut self, layer: usize) {
        let tree = &self.trees[layer];
        // The place of each directory, which comes before what is in it.
        let mut places = vec![0; tree.nodes.len()];
        for (id, node) in tree.nodes.iter().enumerate() {
            let source = (layer, id);
            let above = places[node.parent];
            let there = match id {
                0 => Some(0),
                _ => self.places[above].children.get(&node.name).copied(),
            };
            let old = there.and_then(|place| self.places[place].top);
            let change = match (node.what, old, there) {
                (What::Whiteout, Some(_), Some(place)) => {
                    self.hide(place, source, true);
                    Change::Deleted
                }
                (What::Whiteout, ..) => Change::DeletedNothing,
                (What::Dir { opaque }, Some(old), Some(place)) if self.what(old).is_dir() => {
                    if opaque {
                        self.hide(place, source, false);
                    }
                    let before = self.trees[old.0].nodes[old.1].attributes;
                    if before == node.attributes { Change::Kept } else { Change::Changed }
                }
                (_, Some(_), Some(place)) => {
                    self.hide(place, source, true);
                    Change::Changed
                }
                _ => Change::Added,
            };
            self.facts[layer][id].change = change;
            if node.what == What::Whiteout {
                continue;
            }
            let place = there.unwrap_or_else(|| self.make(above, &node.name));
            places[id] = place;
            let place = &mut self.places[place];
            (place.top, place.deleted_by) = (Some(source), None);
            place.past.push(source);
        }
        // A directory has changed where something in it has.
        for id in (1..tree.nodes.len()).rev() {
            let changed =
                !matches!(self.facts[layer][id].change, Change::Kept | Change::DeletedNothing);
            let above = &mut self.facts[layer][tree.nodes[id].parent].change;
            if changed && *above == Change::Kept {
                *above = Change::Changed;
            }
        }
    }

    fn make(&mut self, parent: usize, name: &OsStr) -> usize {
        let place = self.places.len();
        self.places.push(Place { parent, ..Place::default() });
        self.places[parent].children.insert(name.to_owned(), place);
        place
    }

    /// Nothing shows any more of what is in `place`, nor where `itself` of the place, because of `by`.
    fn hide(&mut self, place: usize, by: Source, itself: bool) {
        let mut waiting = Vec::new();
        if itself {
            waiting.push(place);
        } else {
            waiting.extend(self.places[place].children.values());
        }
        while let Some(place) = waiting.pop() {
            let place = &mut self.places[place];
            // What is in a place that shows nothing does not show either.
            let Some(top) = place.top.take() else { continue };
            place.deleted_by = Some(by.0);
            waiting.extend(place.children.values());
            if self.trees[top.0].nodes[top.1].what.is_dir() {
                // A directory shows what several layers have.
                for &(layer, node) in place.past.iter().rev() {
                    let fact = &mut self.facts[layer][node];
                    if fact.hidden_by.is_some() || !self.trees[layer].nodes[node].what.is_dir() {
                        break;
                    }
                    fact.hidden_by = Some(by);
                }
            } else {
                self.facts[top.0][top.1].hidden_by = Some(by);
            }
        }
    }

    /// Gives each file its bytes, under one name.
    fn count(&mut self) {
        for (tree, facts) in self.trees.iter().zip(&mut self.facts) {
            let mut first: HashMap<(u32, u32, u64), usize> = HashMap::new();
            for (id, node) in tree.nodes.iter().enumerate() {
                facts[id].bytes = node.bytes;
                let Some(inode) = node.inode else { continue };
                let holder = *first.entry(inode).or_insert(id);
                if holder == id {
                    continue;
                }
                let better = facts[holder].hidden_by.is_some() && facts[id].hidden_by.is_none();
                let other = if better { holder } else { id };
                if better {
                    first.insert(inode, id);
                }
                (facts[other].bytes, facts[other].linked) = (0, true);
            }
        }
    }

    fn layer(&self, layer: usize) -> LayerAccount {
        let (tree, facts) = (&self.trees[layer], &self.facts[layer]);
        let each = tree.nodes.iter().zip(facts);
        let mut items: Vec<Item> = each
            .map(|(node, fact)| Item {
                name: node.name.clone(),
                parent: node.parent,
                children: node.children.clone().collect(),
                what: node.what,
                change: fact.change,
                layer,
                hidden_by: fact.hidden_by.map(|(by, _)| by),
                linked: fact.linked,
                attributes: node.attributes,
                bytes: fact.bytes,
                names: u64::from(node.what != What::Whiteout),
                hides: 0,
                wasted: if fact.hidden_by.is_some() { fact.bytes } else { 0 },
            })
            .collect();
        let mut sums = [Count::default(); 5];
        let [added, changed, deleted, hides, wasted] = &mut sums;
        let mut deleted_nothing = 0;
        for (below, facts) in self.facts[..layer].iter().enumerate() {
            for (node, fact) in facts.iter().enumerate() {
                let Some((by, at)) = fact.hidden_by else { continue };
                if by != layer || self.what((below, node)).is_dir() {
                    continue;
                }
                items[at].hides += fact.bytes;
                hides.add(fact.bytes);
                if matches!(items[at].what, What::Whiteout | What::Dir { opaque: true }) {
                    deleted.bytes += fact.bytes;
                }
            }
        }
        for (id, item) in items.iter().enumerate().skip(1) {
            match item.change {
                Change::Added => added.add(item.bytes),
                Change::Changed => changed.add(item.bytes),
                Change::Deleted => deleted.names += 1,
                Change::DeletedNothing => deleted_nothing += 1,
                Change::Kept => {}
            }
            if facts[id].hidden_by.is_some() && !item.what.is_dir() {
                wasted.add(item.bytes);
            }
        }
        let [added, changed, deleted, hides, wasted] = sums;
        sum(&mut items);
        LayerAccount { items, added, changed, deleted, deleted_nothing, hides, wasted }
    }

    fn merged(&self) -> Vec<Item> {
        let mut items = Vec::with_capacity(self.places.len());
        // Each directory before what is in it, as places are made.
        for (id, place) in self.places.iter().enumerate() {
            let shown = place.top.or(place.past.last().copied());
            // What has no past was never made.
            let Some((layer, node)) = shown else { continue };
            let node = &self.trees[layer].nodes[node];
            let fact = |&(layer, node): &Source| &self.facts[layer][node];
            let replaced = place.past.iter().any(|source| fact(source).hidden_by.is_some());
            let change = match (place.top, place.past.first()) {
                (None, _) => Change::Deleted,
                (Some(_), _) if replaced => Change::Changed,
                (Some(_), Some((0, _))) => Change::Kept,
                (Some(_), _) => Change::Added,
            };
            items.push(Item {
                name: node.name.clone(),
                parent: place.parent,
                children: place.children.values().copied().collect(),
                what: node.what,
                change: if id == 0 { Change::Kept } else { change },
                layer,
                hidden_by: place.deleted_by,
                linked: place.top.as_ref().is_some_and(|top| fact(top).linked),
                attributes: node.attributes,
                bytes: place.top.as_ref().map_or(0, |top| fact(top).bytes),
                names: u64::from(place.top.is_some()),
                hides: 0,
                wasted: place
                    .past
                    .iter()
                    .map(fact)
                    .filter(|f| f.hidden_by.is_some())
                    .map(|f| f.bytes)
                    .sum(),
            });
        }
        sum(&mut items);
        items
    }
}

/// That of an image without layers.
fn empty_root() -> Item {
    Item {
        name: OsString::new(),
        parent: 0,
        children: Vec::new(),
        what: What::Dir { opaque: false },
        change: Change::Kept,
        layer: 0,
        hidden_by: None,
        linked: false,
        attributes: Attributes::default(),
        bytes: 0,
        names: 1,
        hides: 0,
        wasted: 0,
    }
}

/// Adds what is in each directory to it.
fn sum(items: &mut [Item]) {
    for id in (1..items.len()).rev() {
        let item = &items[id];
        let (bytes, names, hides, wasted) = (item.bytes, item.names, item.hides, item.wasted);
        let above = &mut items[item.parent];
        above.bytes += bytes;
        above.names += names;
        above.hides += hides;
        above.wasted += wasted;
    }
}

#[cfg(test)]
mod tests;
