//! What is browsed: the layers of an image or a container, where they come from, and the account of them.

use anyhow::Context;
use containers::Container;
use layer::{Account, Layer};
use store::{Digest, Image, Store};

use crate::context::short;

/// Where a layer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The image.
    Image,
    /// A snapshot of the container.
    Snapshot,
    /// What the container writes to.
    Writable,
}

/// What is known of a layer beside its files.
#[derive(Debug)]
pub struct Known {
    pub origin: Origin,
    /// Of a layer of an image.
    pub digest: Option<Digest>,
    /// What made it: a command, by the image's history; what it is otherwise.
    pub made_by: String,
    /// When, RFC 3339.
    pub created: Option<String>,
    /// Other images that have it, by a name where they have one.
    pub shared_with: Vec<String>,
}

/// An image or a container, as layers.
#[derive(Debug)]
pub struct Stack {
    /// The name that was asked for.
    pub title: String,
    /// The image.
    pub image: Digest,
    /// The container.
    pub container: Option<String>,
    /// Lowest first, one for each of the account's.
    pub known: Vec<Known>,
    pub account: Account,
}

impl Stack {
    /// Finds what `name` is and reads its layers.
    pub fn of(store: &Store, name: &str) -> anyhow::Result<Self> {
        let container = match Container::find(store, name) {
            Ok(container) => Some(container),
            Err(containers::Error::Store(store::Error::NoContainer { .. })) => None,
            Err(error) => return Err(error.into()),
        };
        let image = match &container {
            Some(container) => store.image(&container.image.to_string())?,
            None => store.image(name).with_context(|| format!("there is no container {name:?}"))?,
        };
        let namespace = store.namespace();
        let mut known = of_image(store, &image)?;
        let mut layers = Vec::new();
        for path in store.lower_dirs(&image).iter().rev() {
            layers.push(Layer::open(path, namespace)?);
        }
        for path in
            container.iter().flat_map(Container::own_layers).collect::<Vec<_>>().iter().rev()
        {
            layers.push(Layer::open(path, namespace)?.as_upper());
            let name = path.file_name().unwrap_or_default();
            known.push(Known {
                origin: Origin::Snapshot,
                digest: None,
                made_by: format!("snapshot {}", super::names::shown(name)),
                created: None,
                shared_with: Vec::new(),
            });
        }
        if let (Some(_), Some(top)) = (&container, known.last_mut()) {
            (top.origin, top.made_by) = (Origin::Writable, "the writable layer".to_owned());
        }
        Ok(Self {
            title: name.to_owned(),
            image: image.id,
            container: container.map(|container| container.name),
            known,
            account: Account::of(&layers)?,
        })
    }

    /// Bytes that all layers have together.
    pub fn bytes(&self) -> u64 {
        self.account.layers.iter().map(layer::account::LayerAccount::bytes).sum()
    }
}

fn of_image(store: &Store, image: &Image) -> anyhow::Result<Vec<Known>> {
    let history = image.parsed()?.history;
    let mut steps = history.into_iter().filter(|step| !step.empty_layer);
    let images = store.images()?;
    let uses = store.layers()?;
    let name = |id: &Digest| {
        let found = images.iter().find(|image| image.id == *id);
        found.and_then(|image| image.tags.first().cloned()).unwrap_or_else(|| short(id))
    };
    let known = image.layers.iter().map(|layer| {
        let step = steps.next().unwrap_or_default();
        let made_by = step.created_by.or(step.comment).unwrap_or_default();
        let used = uses.iter().find(|used| used.layer.diff_id == layer.diff_id);
        let others = used.iter().flat_map(|used| &used.images).filter(|id| **id != image.id);
        Known {
            origin: Origin::Image,
            digest: Some(layer.diff_id),
            made_by: made_by.split_whitespace().collect::<Vec<_>>().join(" "),
            created: step.created,
            shared_with: others.map(name).collect(),
        }
    });
    Ok(known.collect())
}
