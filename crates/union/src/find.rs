//! How a name is found: each layer of its directory is asked, uppermost first, until one hides the rest.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use layer::{Kind, Layer, Probe, mark};
use rustix::fs::Statx;
use rustix::io::Errno;

use crate::dirs::LayerDir;
use crate::error::{Error, Result, Step, call};
use crate::node::{Body, Node, NodeId};
use crate::place::Part;
use crate::resolve::{Found, LayerIndex, resolve};
use crate::stack::{Union, device};

/// A directory of a lower layer to look in.
pub(crate) enum Within {
    /// One that the parent merges.
    Part(Part),
    /// One that a redirect names.
    Path(LayerIndex, Arc<Path>),
}

/// What the layers have under a name.
pub(crate) struct Name {
    pub stat: Statx,
    pub layer: LayerIndex,
    pub body: Body,
    /// The inode number that is shown, where it is not that of `stat`.
    pub ino: Option<u64>,
}

impl Union {
    /// Resolves `name` over the layers of `parent`, whose `names` is held.
    pub(crate) fn find(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Option<Name>> {
        let (in_upper, lower) = {
            let body = parent.body.read();
            if !body.upper && body.lower.is_empty() {
                return Ok(None);
            }
            (body.upper, body.lower.clone())
        };
        let mut below: VecDeque<(Within, OsString)> =
            lower.iter().map(|part| (Within::Part(part.clone()), name.to_owned())).collect();
        let mut upper = in_upper.then_some(());
        let mut stats: Vec<(LayerIndex, Statx, Option<Part>)> = Vec::new();
        let probes = std::iter::from_fn(|| {
            let probed = if upper.take().is_some() {
                self.upper_dir(parent).and_then(|dir| {
                    let layer = &self.layers[0];
                    Ok((LayerIndex(0), None, layer.probe(&*dir, Path::new(""), name)?))
                })
            } else {
                let (within, name) = below.pop_front()?;
                self.probe_within(parent.id, within, &name).map_err(Error::from)
            };
            Some(probed.and_then(|(index, part, probe)| {
                if let Some(stat) = probe.stat {
                    stats.push((index, stat, part));
                }
                if let (Some(dir), true, Kind::Dir { opaque: false }) =
                    (&probe.dir, probe.marked, probe.kind)
                {
                    let target = mark::redirect(dir, self.namespace).map_err(|e| {
                        call(&self.path_in(parent, name), Step::Read, "fgetxattr", e)
                    })?;
                    if let Some(target) = target {
                        below = self.redirected(index, &target, &below);
                    }
                }
                Ok((index, probe.kind))
            }))
        });
        let found = resolve(probes)?;
        let is_dir = matches!(found, Some(Found::Dir(_)));
        let shown = match &found {
            None => return Ok(None),
            Some(Found::Leaf(index)) => vec![*index],
            Some(Found::Dir(indices)) => indices.clone(),
        };
        stats.retain(|(index, ..)| shown.contains(index));
        let Some((layer, stat, shown_by)) = stats.first().cloned() else {
            return Ok(None);
        };
        let upper = self.upper.is_some() && layer.0 == 0;
        let ino = match stats.get(1) {
            // What is shown of a merged directory does not depend on whether it was copied up.
            Some((_, lower, _)) if upper => Some(self.shown_ino(device(lower), lower.stx_ino)),
            None if upper && !is_dir => self.origin_ino(parent, name)?,
            _ => None,
        };
        let lower = stats.into_iter().filter_map(|(.., part)| part).collect();
        let rest = self.find_rest(parent, name, (layer, shown_by.as_ref()), &stat, below)?;
        let body = Body { upper, lower, rest, ..Body::default() };
        let found = Name { stat, layer, body, ino };
        Ok(Some(if is_dir { found } else { self.look_in_index(parent, name, found)? }))
    }

    /// What a lower layer says about a name, with its place where it has it.
    pub(crate) fn probe_within(
        &self,
        parent: NodeId,
        within: Within,
        name: &OsStr,
    ) -> layer::Result<(LayerIndex, Option<Part>, Probe)> {
        let (index, dir, probe) = match within {
            Within::Part(part) => {
                let dir = self.lower_dir(parent, &part)?;
                let layer = &self.layers[usize::from(part.layer.0)];
                let probe = self.probe_lower(layer, &dir, name)?;
                (part.layer, dir.path, probe)
            }
            Within::Path(index, path) => {
                let layer = &self.layers[usize::from(index.0)];
                let probe = match layer.open_dir(&path) {
                    Ok(fd) => layer.probe(fd, &path, name)?,
                    // The way that a redirect names is not in every layer.
                    Err(e)
                        if matches!(
                            e.source.source,
                            Errno::NOENT | Errno::NOTDIR | Errno::LOOP
                        ) =>
                    {
                        Probe::absent()
                    }
                    Err(e) => return Err(e),
                };
                (index, path, probe)
            }
        };
        let part = probe.stat.map(|_| Part { layer: index, dir, name: Arc::from(name) });
        Ok((index, part, probe))
    }

    /// Where the layers below `index` are searched for a directory that says `target`.
    pub(crate) fn redirected(
        &self,
        index: LayerIndex,
        target: &Path,
        below: &VecDeque<(Within, OsString)>,
    ) -> VecDeque<(Within, OsString)> {
        if let Ok(path) = target.strip_prefix("/") {
            let Some(name) = path.file_name() else { return VecDeque::new() };
            let parent: Arc<Path> = Arc::from(path.parent().unwrap_or(Path::new("")));
            let layers = (0..).map(LayerIndex).take(self.layers.len()).filter(|i| *i > index);
            layers
                .map(|layer| (Within::Path(layer, Arc::clone(&parent)), name.to_owned()))
                .collect()
        } else {
            let below = below.iter().map(|(within, _)| {
                let (layer, path) = match within {
                    Within::Part(part) => (part.layer, Arc::from(part.path())),
                    Within::Path(layer, path) => (*layer, Arc::clone(path)),
                };
                (Within::Path(layer, path), target.as_os_str().to_owned())
            });
            below.collect()
        }
    }

    /// The directory of a node in a lower layer.
    pub(crate) fn lower_dir(&self, node: NodeId, part: &Part) -> layer::Result<LayerDir> {
        let layer = &self.layers[usize::from(part.layer.0)];
        self.dirs.get(node, part.layer, || part.path(), |path| layer.open_dir(path))
    }

    /// What a lower layer says about a name; where it is known to say nothing, it is not asked.
    fn probe_lower(&self, layer: &Layer, dir: &LayerDir, name: &OsStr) -> layer::Result<Probe> {
        if self.dirs.is_absent(dir, name) {
            return Ok(Probe::absent());
        }
        let probe = layer.probe(&*dir.fd, &dir.path, name)?;
        if probe.kind == Kind::Absent {
            self.dirs.missed(dir);
        }
        Ok(probe)
    }

    /// Whether a layer below the upper would show `name` in `parent`, whose `names` is held.
    pub(crate) fn is_below(&self, parent: &Arc<Node>, name: &OsStr) -> Result<bool> {
        let lower = parent.body.read().lower.clone();
        for part in lower.iter() {
            let layer = &self.layers[usize::from(part.layer.0)];
            let dir = self.lower_dir(parent.id, part)?;
            match self.probe_lower(layer, &dir, name)?.kind {
                Kind::Absent => {}
                Kind::Whiteout => return Ok(false),
                Kind::Leaf | Kind::Dir { .. } => return Ok(true),
            }
        }
        Ok(false)
    }
}
