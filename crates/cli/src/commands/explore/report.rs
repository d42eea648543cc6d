//! The figures of the browser for scripts.

use layer::account::{self, Count, LayerAccount};
use serde::Serialize;
use store::Digest;

use super::names::shown_path;
use super::stack::{Known, Origin, Stack};

#[derive(Serialize)]
pub struct Report {
    image: Digest,
    container: Option<String>,
    /// Of all layers.
    bytes: u64,
    /// Of the merged view.
    shown: Figures,
    wasted: u64,
    /// The lowest first.
    layers: Vec<Row>,
    /// Paths under which layers have bytes that are hidden, the most wasteful first.
    wasted_paths: Vec<Wasted>,
}

#[derive(Serialize)]
struct Figures {
    names: u64,
    bytes: u64,
}

impl From<Count> for Figures {
    fn from(Count { names, bytes }: Count) -> Self {
        Self { names, bytes }
    }
}

#[derive(Serialize)]
struct Row {
    origin: Origin,
    digest: Option<Digest>,
    command: String,
    created: Option<String>,
    shared_with: Vec<String>,
    names: u64,
    bytes: u64,
    added: Figures,
    changed: Figures,
    deleted: Figures,
    deleted_nothing: u64,
    hides: Figures,
    wasted: Figures,
}

#[derive(Serialize)]
struct Wasted {
    path: String,
    bytes: u64,
    /// Whether something is shown there.
    shown: bool,
}

impl Report {
    pub fn of(stack: &Stack) -> Self {
        let merged = &stack.account.merged;
        let mut wasted_paths: Vec<Wasted> = merged
            .iter()
            .enumerate()
            .filter_map(|(id, item)| {
                let inside: u64 = item.children.iter().map(|child| merged[*child].wasted).sum();
                let bytes = item.wasted - inside;
                let shown = item.change != account::Change::Deleted;
                (bytes > 0).then(|| Wasted {
                    path: shown_path(&account::path(merged, id)),
                    bytes,
                    shown,
                })
            })
            .collect();
        wasted_paths.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
        let layers =
            stack.known.iter().zip(&stack.account.layers).map(|(k, l)| row(k, l)).collect();
        Self {
            image: stack.image,
            container: stack.container.clone(),
            bytes: stack.bytes(),
            shown: Figures { names: merged[0].names - 1, bytes: merged[0].bytes },
            wasted: merged[0].wasted,
            layers,
            wasted_paths,
        }
    }
}

fn row(known: &Known, layer: &LayerAccount) -> Row {
    Row {
        origin: known.origin,
        digest: known.digest,
        command: known.made_by.clone(),
        created: known.created.clone(),
        shared_with: known.shared_with.clone(),
        names: layer.items[0].names - 1,
        bytes: layer.bytes(),
        added: layer.added.into(),
        changed: layer.changed.into(),
        deleted: layer.deleted.into(),
        deleted_nothing: layer.deleted_nothing,
        hides: layer.hides.into(),
        wasted: layer.wasted.into(),
    }
}
