//! The union itself: its layers, the nodes of names, and where a node really is.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use layer::{Layer, Namespace, WANTED, mark};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Statx, statx};
use rustix::io::Errno;

use crate::attr::Attr;
use crate::complete;
use crate::counts::Counts;
use crate::dirs::{DirCache, LayerDir};
use crate::error::{Error, Result, Step, call, refused};
use crate::find::Name;
use crate::listings::Listings;
use crate::node::{Body, Candidate, Inode, Node, NodeId, Table};
use crate::partial::{ATTRIBUTE, Partials};
use crate::place::{Part, Place};
use crate::resolve::LayerIndex;
use crate::space::{Limits, Space};
use crate::unsynced::Unsynced;
use crate::upper::Upper;

/// The directories of a union.
#[derive(Debug, Clone)]
pub struct Config {
    /// Lower layers, uppermost first; at least one.
    pub lowers: Vec<PathBuf>,
    /// The upper layer and its work directory, on one file system; without them nothing changes.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Where the union's marks live. `Trusted` becomes `User` where this process may not write
    /// `trusted.` attributes, as in a user namespace.
    pub namespace: Namespace,
    /// Whether a copy-up skips its fsync: faster, and a power cut may lose what was written.
    pub volatile: bool,
    /// How much the upper layer may hold.
    pub limits: Limits,
    /// Whether all names of a file of a lower layer follow a change through one of them, those too that nobody has
    /// looked up: the kernel's `index=on`. Without it, those that are known follow.
    pub index: bool,
    /// Whether a write to a big file of a lower layer leaves the rest of its data there, until
    /// [`Union::complete`]. Not with a limit, which has room for all of a file or none.
    pub partial: bool,
}

/// A union of layers.
#[derive(Debug)]
pub struct Union {
    /// The upper layer first, where there is one.
    pub(crate) layers: Vec<Layer>,
    pub(crate) upper: Option<Upper>,
    /// Where there is an upper layer.
    pub(crate) partials: Option<Partials>,
    /// Where copies of small files need not be waited for.
    pub(crate) unsynced: Option<Unsynced>,
    /// A layer has owners in an attribute.
    pub(crate) has_owners: bool,
    pub(crate) namespace: Namespace,
    /// Where there is a limit.
    pub(crate) space: Option<Space>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) table: Table,
    /// Held by the one rename of a directory that is under way.
    pub(crate) moving: Mutex<()>,
    /// Grows by one before a directory gets another path and by one after it.
    pub(crate) moves: AtomicU64,
    pub(crate) dirs: DirCache,
    pub(crate) listings: Listings,
    /// The file systems of the layers; an inode number is unique on one.
    devices: Vec<u64>,
    /// The same with their UUIDs; none where the kernel does not tell.
    pub(crate) file_systems: Vec<(u64, Option<[u8; 16]>)>,
}

/// What a name or a node shows.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The node, looked up once more.
    pub node: NodeId,
    /// What `stat` shows.
    pub attr: Attr,
}

/// Where a node's present inode is.
pub(crate) enum Real {
    /// Under a name; the directory is open.
    At(Arc<OwnedFd>, OsString),
    /// Behind a descriptor, whatever its name.
    Anchor(Arc<OwnedFd>),
}

impl Union {
    /// Opens the layers, and takes the upper and work directories for this union alone.
    ///
    /// # Errors
    /// A layer that can't be opened; [`Error::UpperInUse`]; [`Error::WorkElsewhere`];
    /// [`Error::UnknownFeature`]; [`Error::WasVolatile`].
    pub fn open(config: &Config) -> Result<Self> {
        let namespace = usable_namespace(config)?;
        let mut layers = Vec::new();
        let mut upper = None;
        if let Some((upper_path, work_path)) = &config.upper {
            let layer = Layer::open(upper_path, namespace)?.as_upper();
            upper = Some(Upper::claim(&layer, work_path, config)?);
            layers.push(layer);
        }
        let lowers = config.lowers.iter().map(|lower| Layer::open(lower, namespace));
        layers.extend(Layer::as_lowers(lowers.collect::<layer::Result<_>>()?));
        let unsynced = match (&upper, &config.upper) {
            (Some(upper), Some((_, work))) => {
                Unsynced::open(&upper.work, &layers, work, !config.volatile)?
            }
            _ => None,
        };
        let root = Path::new("");
        let mut devices = Vec::new();
        let mut file_systems = Vec::new();
        let mut first = None;
        for layer in &layers {
            let fd = layer.open_dir(root)?;
            let stat = statx(&fd, "", AtFlags::EMPTY_PATH, WANTED)
                .map_err(|e| call(layer.path(), Step::Read, "statx", e))?;
            let device = device(&stat);
            if !devices.contains(&device) {
                devices.push(device);
                file_systems.push((device, sys::handle::uuid(&fd)));
            }
            first.get_or_insert(stat);
        }
        let Some(stat) = first else { return Err(refused(root, Errno::INVAL)) };
        let limited = upper.is_some() && config.limits != Limits::default();
        let partials = upper.as_ref().map(|upper| {
            let attribute = namespace.attribute(ATTRIBUTE);
            let on = config.partial && !limited;
            let partials = Partials::open(&upper.work, attribute, on, config.volatile)
                .map_err(|e| call(layers[0].path(), Step::Claim, "openat", e))?;
            if !on {
                complete::all(&partials, &layers)?;
            }
            Ok::<_, Error>(partials)
        });
        let partials = partials.transpose()?;
        let has_owners = layers.iter().any(|layer| layer.owners().is_some());
        let counts = Arc::new(Counts::default());
        let space = limited.then(|| {
            let fd = layers[0].open_dir(root)?;
            let index = upper.as_ref().and_then(|upper| upper.index.as_ref());
            Space::count(config.limits, &fd, index.map(|index| &*index.dir), Arc::clone(&counts))
                .map_err(|e| call(layers[0].path(), Step::Claim, "statx", e))
        });
        let space = space.transpose()?;
        let has_upper = upper.is_some();
        let lower = (0..).zip(&layers).skip(usize::from(has_upper));
        let lower = lower.map(|(i, _)| Part::root(LayerIndex(i)));
        let body = Body { upper: has_upper, lower: lower.collect(), ..Body::default() };
        let dirs = DirCache::default();
        let table = Table::new(number(&devices, device(&stat), stat.stx_ino), body);
        Ok(Self {
            layers,
            upper,
            partials,
            unsynced,
            has_owners,
            namespace,
            space,
            counts,
            table,
            moving: Mutex::default(),
            moves: AtomicU64::new(0),
            dirs,
            listings: Listings::default(),
            devices,
            file_systems,
        })
    }

    /// Marks the upper layer of a volatile union, so that nobody takes it for whole later: for once the union is to be
    /// used. Nothing where it is not volatile.
    ///
    /// # Errors
    /// The work directory can't be written.
    pub fn mark_volatile(&self) -> Result<()> {
        let Some(upper) = self.upper.as_ref().filter(|upper| upper.volatile) else { return Ok(()) };
        upper.mark_volatile().map_err(|e| call(self.layers[0].path(), Step::Claim, "mkdirat", e))
    }

    /// Whether the union has no upper layer.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Where the union's marks live.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Finds `name` in the directory `parent`, and counts one lookup of its node.
    ///
    /// Cost of a name not known yet: one probe a layer of the directory until it is found.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ESTALE for a node that was forgotten, or a layer's own.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let parent = self.node(parent)?;
        let (node, stat) = self.child_and_stat(&parent, name)?;
        let attr = match stat {
            Some(stat) => Ok(self.attr_of(&node, &stat)),
            None => self.attr(&node),
        };
        match attr {
            Ok(attr) => Ok(Entry { node: node.id, attr }),
            Err(e) => {
                self.forget(node.id, 1);
                Err(e)
            }
        }
    }

    /// Looks `node` itself up once more, as a name `.` of it would.
    ///
    /// # Errors
    /// ESTALE.
    pub fn lookup_self(&self, node: NodeId) -> Result<Entry> {
        let node = self.node(node)?;
        let attr = self.attr(&node)?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(Entry { node: node.id, attr })
    }

    /// Looks up the directory that `node` is in; the root is in itself.
    ///
    /// # Errors
    /// ESTALE; ENOENT where `node` was removed.
    pub fn lookup_parent(&self, node: NodeId) -> Result<Entry> {
        if node == NodeId::ROOT {
            return self.lookup_self(node);
        }
        let place = self.node(node)?.place();
        let place = place.ok_or_else(|| refused(Path::new(".."), Errno::NOENT))?;
        self.lookup_self(place.parent.id)
    }

    /// The inode number that `stat` shows of a node; 0 for one that was forgotten.
    pub fn shown_ino_of(&self, node: NodeId) -> u64 {
        self.table.get(node).map_or(0, |node| node.ino)
    }

    /// The inode number of the directory that a node is in.
    pub fn shown_ino_of_parent(&self, node: NodeId) -> u64 {
        let place = self.table.get(node).and_then(|node| node.place());
        place.map_or_else(|| self.shown_ino_of(node), |place| place.parent.ino)
    }

    /// Gives back `count` lookups of a node; what nobody holds takes no memory.
    pub fn forget(&self, node: NodeId, count: u64) {
        self.forget_all(node, count);
    }

    /// As [`Union::forget`]; whether that were all of its lookups.
    pub fn forget_all(&self, node: NodeId, count: u64) -> bool {
        let (unknown, dropped) = self.table.forget(node, count);
        for dropped in dropped {
            self.drop_dirs(dropped);
            self.listings.forget(dropped);
        }
        unknown
    }

    pub(crate) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.table.get(id).ok_or_else(|| refused(Path::new(""), Errno::STALE))
    }

    /// The node of `name` in `parent`, with one lookup more, which the caller gives back.
    pub(crate) fn child(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Arc<Node>> {
        Ok(self.child_and_stat(parent, name)?.0)
    }

    /// As [`Union::child`], with the attributes where the node is new, since they had to be read.
    fn child_and_stat(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Result<(Arc<Node>, Option<Statx>)> {
        if name.len() > 255 {
            return Err(refused(Path::new(name), Errno::NAMETOOLONG));
        }
        if !parent.is_dir() {
            return Err(refused(Path::new(name), Errno::NOTDIR));
        }
        let _names = parent.names.read();
        self.stat_locked(parent, name)
    }

    /// As [`Union::child`], where `parent.names` is held.
    pub(crate) fn child_locked(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Arc<Node>> {
        Ok(self.stat_locked(parent, name)?.0)
    }

    fn stat_locked(&self, parent: &Arc<Node>, name: &OsStr) -> Result<(Arc<Node>, Option<Statx>)> {
        loop {
            if let Some(node) = self.table.find(parent.id, name) {
                return Ok((node, None));
            }
            let generation = self.index_generation();
            let absent = || refused(&self.path_in(parent, name), Errno::NOENT);
            let found = self.find(parent, name)?.ok_or_else(absent)?;
            // Below, it mostly has the same name: one string for both.
            let shared =
                found.body.lower.first().map(|part| &part.name).filter(|known| ***known == *name);
            let shared = shared.map_or_else(|| Arc::from(name), Arc::clone);
            let place = Place { parent: Arc::clone(parent), name: shared };
            let stat = found.stat;
            let found = self.candidate(found);
            // A copy-up under another name meanwhile has made this one's inode another.
            let may_move = found.inode.is_some() && !found.body.upper;
            let holds = || !may_move || self.index_generation() == generation;
            let Some((node, is_new)) = self.table.enter(Some(place), found, holds) else {
                continue;
            };
            // An owner that is in an attribute is not in there.
            let whole = is_new && !self.has_owners;
            return Ok((node, whole.then_some(stat)));
        }
    }

    pub(crate) fn candidate(&self, found: Name) -> Candidate {
        let kind = FileType::from_raw_mode(found.stat.stx_mode.into());
        let several =
            found.stat.stx_nlink > 1 && kind != FileType::Directory || found.body.index.is_some();
        Candidate {
            ino: found
                .ino
                .unwrap_or_else(|| self.shown_ino(device(&found.stat), found.stat.stx_ino)),
            kind,
            inode: several.then(|| inode(found.layer, &found.stat)),
            body: found.body,
        }
    }

    /// The directory of `node` in the upper layer, which has it.
    ///
    /// It is found by its path where it is not open yet, which a rename may change meanwhile: then
    /// once more.
    pub(crate) fn upper_dir(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(dir) = self.dirs.peek(node.id, LayerIndex(0)) {
            return Ok(dir.fd);
        }
        loop {
            let before = self.moves.load(Ordering::Acquire);
            let path = node.path().ok_or_else(|| refused(Path::new(""), Errno::NOENT))?;
            let opened = self.layers[0].open_dir(&path);
            if before.is_multiple_of(2) && self.moves.load(Ordering::Acquire) == before {
                return Ok(self.dirs.put(node.id, LayerIndex(0), opened?, path).fd);
            }
            std::thread::yield_now();
        }
    }

    /// The directories of `node`, uppermost first, each with its layer and opened anew.
    pub(crate) fn open_parts(&self, node: &Arc<Node>) -> Result<Vec<(LayerIndex, OwnedFd)>> {
        let (upper, lower) = {
            let body = node.body.read();
            (body.upper, body.lower.clone())
        };
        let mut parts = Vec::new();
        if upper {
            let dir = self.upper_dir(node)?;
            let fresh = sys::beneath::open(&*dir, Path::new(""), crate::upper::DIRECTORY);
            parts.push((
                LayerIndex(0),
                fresh.map_err(|source| self.error(node, Step::Read, source))?,
            ));
        }
        for part in lower.iter() {
            let layer = &self.layers[usize::from(part.layer.0)];
            parts.push((part.layer, layer.open_dir(&part.path())?));
        }
        Ok(parts)
    }

    /// Where the node's present inode is.
    pub(crate) fn real(&self, node: &Arc<Node>) -> Result<Real> {
        let body = node.body.read();
        if let Some(anchor) = &body.anchor {
            return Ok(Real::Anchor(Arc::clone(anchor)));
        }
        if let Some(real) = body.index.as_ref().and_then(|indexed| self.in_index(indexed)) {
            return Ok(real);
        }
        if node.id == NodeId::ROOT {
            let layer = &self.layers[0];
            let root =
                self.dirs.get(node.id, LayerIndex(0), PathBuf::new, |path| layer.open_dir(path))?;
            return Ok(Real::Anchor(root.fd));
        }
        if body.upper {
            drop(body);
            let place = node.place().ok_or_else(|| refused(Path::new(""), Errno::NOENT))?;
            return Ok(Real::At(self.upper_dir(&place.parent)?, place.name.to_os_string()));
        }
        let part = body.lower.first().ok_or_else(|| refused(Path::new(""), Errno::NOENT))?;
        let layer = &self.layers[usize::from(part.layer.0)];
        if part.name.is_empty() {
            return Ok(Real::Anchor(Arc::new(layer.open_dir(Path::new(""))?)));
        }
        let near = node.place().filter(|place| place.name == part.name).and_then(|place| {
            let body = place.parent.body.read();
            let mut parts = body.lower.iter();
            let above = parts.find(|p| p.layer == part.layer && p.is_at(&part.dir)).cloned()?;
            Some((place.parent.id, above))
        });
        let dir = match near {
            Some((parent, above)) => self.lower_dir(parent, &above)?.fd,
            None => Arc::new(layer.open_dir(&part.dir)?),
        };
        Ok(Real::At(dir, part.name.to_os_string()))
    }

    /// The directory that a part is in, which `parent` mostly has open.
    pub(crate) fn dir_of_part(&self, parent: &Arc<Node>, part: &Part) -> Result<Arc<OwnedFd>> {
        match self.dirs.peek(parent.id, part.layer) {
            Some(dir) if dir.path == part.dir => Ok(dir.fd),
            _ => Ok(Arc::new(self.layers[usize::from(part.layer.0)].open_dir(&part.dir)?)),
        }
    }

    /// Whether files of a directory of a layer may have their data, or their first inode, elsewhere.
    pub(crate) fn is_impure(
        &self,
        node: &Node,
        layer: LayerIndex,
        path: Option<&Path>,
        dir: &OwnedFd,
    ) -> std::result::Result<bool, Errno> {
        let ask = |dir: &OwnedFd| mark::is_impure(dir, self.namespace);
        match self.dirs.peek(node.id, layer) {
            Some(known) if path.is_none_or(|path| *path == *known.path) => {
                self.dirs.is_impure(&known, ask)
            }
            _ => ask(dir),
        }
    }

    /// What is known of a directory of the upper layer, where it is open.
    pub(crate) fn known_dir(&self, node: &Node) -> Option<LayerDir> {
        self.dirs.peek(node.id, LayerIndex(0))
    }

    /// A directory of the upper layer was marked as impure.
    pub(crate) fn now_impure(&self, node: &Node) {
        if let Some(dir) = self.dirs.peek(node.id, LayerIndex(0)) {
            self.dirs.set_impure(&dir);
        }
    }

    /// The path of a name, for messages.
    pub(crate) fn path_in(&self, parent: &Node, name: &OsStr) -> PathBuf {
        parent.path().unwrap_or_default().join(name)
    }

    pub(crate) fn error(&self, node: &Node, step: Step, source: sys::Error) -> Error {
        Error::Call { path: node.path().unwrap_or_default(), step, source }
    }

    pub(crate) fn fail(&self, node: &Node, step: Step, name: &'static str, e: Errno) -> Error {
        call(&node.path().unwrap_or_default(), step, name, e)
    }

    /// The inode number that is shown for one of a layer.
    pub(crate) fn shown_ino(&self, device: u64, ino: u64) -> u64 {
        number(&self.devices, device, ino)
    }

    /// Forgets the open directories of a node that has gone.
    pub(crate) fn drop_dirs(&self, node: NodeId) {
        self.dirs.drop_node(node, self.layers.len());
    }
}

/// The namespace that was asked for, or the one that this process may use.
fn usable_namespace(config: &Config) -> Result<Namespace> {
    if config.namespace == Namespace::User {
        return Ok(Namespace::User);
    }
    let Some((_, work)) = &config.upper else {
        // `trusted.` attributes read as absent where they may not be read.
        let privileged = sys::privilege::is_initial_root();
        return Ok(if privileged { Namespace::Trusted } else { Namespace::User });
    };
    let name = Namespace::Trusted.attribute("probe");
    match rustix::fs::setxattr(work, name.as_str(), b"y", rustix::fs::XattrFlags::empty()) {
        Ok(()) => {
            rustix::fs::removexattr(work, name.as_str())
                .map_err(|e| call(work, Step::Claim, "removexattr", e))?;
            Ok(Namespace::Trusted)
        }
        Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(Namespace::User),
        Err(e) => Err(call(work, Step::Claim, "setxattr", e)),
    }
}

pub(crate) fn device(stat: &Statx) -> u64 {
    rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

pub(crate) fn inode(layer: LayerIndex, stat: &Statx) -> Inode {
    (layer, device(stat), stat.stx_ino)
}

/// An inode number that is unique over the layers' file systems: the file system's place among
/// them goes into bits that inode numbers leave free.
fn number(devices: &[u64], device: u64, ino: u64) -> u64 {
    let place = devices.iter().position(|known| *known == device).unwrap_or(devices.len());
    ino | (u64::try_from(place).unwrap_or(0) << 48)
}
