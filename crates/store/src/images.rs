//! What images there are, under which names, and what they take.

use std::path::PathBuf;

use rusqlite::{OptionalExtension, Transaction, params};

use crate::error::{Error, Result};
use crate::id::{Digest, chain_id};
use crate::manifest::{Config, parse_config};
use crate::meta::{self, LayerRow};
use crate::reference::Reference;
use crate::store::Store;

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its id: the digest of its configuration.
    pub id: Digest,
    /// The names that lead to it.
    pub tags: Vec<String>,
    /// The manifest as it came.
    pub manifest: Vec<u8>,
    /// What that is.
    pub media_type: String,
    /// The configuration as it came.
    pub config: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<LayerRow>,
}

impl Image {
    /// The configuration, parsed.
    ///
    /// # Errors
    /// None for an image that the store has accepted.
    pub fn parsed(&self) -> Result<Config> {
        parse_config(&self.config, self.layers.len())
    }

    /// Bytes of data in its layers.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }

    /// The chain ID of all its layers; none for an image without any.
    pub fn chain_id(&self) -> Option<Digest> {
        chain_id(&self.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>())
    }
}

/// A layer, and what stands on it.
#[derive(Debug, Clone)]
pub struct LayerUse {
    /// The layer.
    pub layer: LayerRow,
    /// The images that have it.
    pub images: Vec<Digest>,
}

/// What the store holds, from counters that are kept as it changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Layers.
    pub layers: u64,
    /// Containers.
    pub containers: u64,
    /// Bytes of data in all layers.
    pub bytes: u64,
    /// Of these, bytes that share their place on disk with others.
    pub shared_files: u64,
    /// Bytes that would be more if every image had its layers for itself.
    pub shared_layers: u64,
    /// Bytes of layers that no image with a name, no container and no snapshot needs.
    pub reclaimable: u64,
}

/// One name's past.
#[derive(Debug, Clone)]
pub struct TagChange {
    /// The image that the name led to from then on.
    pub image: Digest,
    /// Seconds since 1970.
    pub at: i64,
}

/// Sets a name, and notes it in the name's history.
pub(crate) fn set_tag(txn: &Transaction<'_>, name: &str, image: &str) -> Result<()> {
    let sql = "INSERT INTO tags (name, image) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET image = ?2";
    txn.execute(sql, params![name, image])?;
    txn.execute(
        "INSERT INTO tag_history (name, image, at) VALUES (?1, ?2, unixepoch())",
        params![name, image],
    )?;
    Ok(())
}

fn load(txn: &Transaction<'_>, id: &Digest) -> Result<Option<Image>> {
    let sql = "SELECT manifest, media_type, config FROM images WHERE id = ?1";
    let row = txn
        .prepare_cached(sql)?
        .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((manifest, media_type, config)) = row else { return Ok(None) };
    let mut layers = Vec::new();
    for diff_id in meta::layers_of(txn, id)? {
        let row = meta::layer(txn, &diff_id)?;
        layers.push(row.ok_or(rusqlite::Error::QueryReturnedNoRows)?);
    }
    let mut query = txn.prepare_cached("SELECT name FROM tags WHERE image = ?1 ORDER BY name")?;
    let tags = query.query_map([id.to_string()], |row| row.get(0))?;
    let tags = tags.collect::<rusqlite::Result<_>>()?;
    Ok(Some(Image { id: *id, tags, manifest, media_type, config, layers }))
}

fn ids(txn: &Transaction<'_>) -> Result<Vec<Digest>> {
    let mut query = txn.prepare_cached("SELECT id FROM images ORDER BY created DESC, id")?;
    let rows = query.query_map([], |row| meta::digest(&row.get::<_, String>(0)?))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The image of a name, an id, or the start of an id that only one has.
fn find(txn: &Transaction<'_>, name: &str) -> Result<Digest> {
    let tagged = |name: &str| -> Result<Option<Digest>> {
        let sql = "SELECT image FROM tags WHERE name = ?1";
        let row = txn
            .prepare_cached(sql)?
            .query_row([name], |row| meta::digest(&row.get::<_, String>(0)?))
            .optional()?;
        Ok(row)
    };
    if let Some(found) = tagged(name)? {
        return Ok(found);
    }
    if let Ok(reference) = name.parse::<Reference>()
        && let Some(found) = tagged(&reference.to_string())?
    {
        return Ok(found);
    }
    let all = ids(txn)?;
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let starts: Vec<&Digest> = all.iter().filter(|id| id.hex().starts_with(hex)).collect();
    if let ([only], true) = (starts.as_slice(), hex.len() >= 4) {
        return Ok(**only);
    }
    let mut query = txn.prepare_cached("SELECT name FROM tags")?;
    let names = query.query_map([], |row| row.get::<_, String>(0))?;
    let names: Vec<String> = names.collect::<rusqlite::Result<_>>()?;
    Err(Error::NoImage { name: name.to_owned(), near: near(name, names) })
}

/// Up to three names that differ from one by little.
pub(crate) fn near(name: &str, names: Vec<String>) -> Vec<String> {
    let short = |full: &str| {
        let short = full.strip_prefix("docker.io/library/").unwrap_or(full);
        short.strip_suffix(":latest").unwrap_or(short).to_owned()
    };
    // Whoever leaves out the registry or the tag means that one, too.
    let last = |full: &str| {
        let last = full.rsplit('/').next().unwrap_or(full);
        last.split(['@', ':']).next().unwrap_or(last).to_owned()
    };
    let mut scored: Vec<(usize, String)> = names
        .into_iter()
        .filter_map(|full| {
            let whole = distance(name, &short(&full)).min(distance(name, &full));
            let (own, asked) = (last(&full), last(name));
            let part = distance(&asked, &own);
            let near = whole <= 3 && whole < short(&full).len();
            (near || part <= own.len() / 3).then(|| (whole.min(part + 1), short(&full)))
        })
        .collect();
    scored.sort();
    scored.into_iter().map(|(_, name)| name).take(3).collect()
}

/// How many letters must change to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row.last().copied().unwrap_or(0)
}

impl Store {
    /// Every image, the newest first.
    ///
    /// # Errors
    /// The database's own.
    pub fn images(&self) -> Result<Vec<Image>> {
        self.meta.read(|txn| {
            let mut images = Vec::new();
            for id in ids(txn)? {
                images.extend(load(txn, &id)?);
            }
            Ok(images)
        })
    }

    /// One image, by a name as people type it, its id, or the start of that.
    ///
    /// # Errors
    /// [`Error::NoImage`] with names that are like it.
    pub fn image(&self, name: &str) -> Result<Image> {
        self.meta.read(|txn| {
            let id = find(txn, name)?;
            load(txn, &id)?
                .ok_or_else(|| Error::NoImage { name: name.to_owned(), near: Vec::new() })
        })
    }

    /// The trees of an image's layers, uppermost first: what a union or overlayfs is mounted over.
    pub fn lower_dirs(&self, image: &Image) -> Vec<PathBuf> {
        image.layers.iter().rev().map(|layer| self.layer_tree(&layer.diff_id)).collect()
    }

    /// Gives an image one name more; the name leads there from now on.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::BadReference`].
    pub fn tag(&self, image: &str, name: &str) -> Result<Reference> {
        let reference: Reference = name.parse()?;
        self.meta.write(|txn| {
            let id = find(txn, image)?;
            set_tag(txn, &reference.to_string(), &id.to_string())
        })?;
        Ok(reference)
    }

    /// Takes a name away, and the image with its last name; by an id, the image with all its names.
    /// Its layers go where no other image has them. True where the image went.
    ///
    /// Cost: one transaction and a rename a layer, and a row for each of its files; the files go with
    /// [`Store::empty_trash`].
    ///
    /// # Errors
    /// [`Error::NoImage`]; [`Error::InUse`] by a container.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let gone = self.forget(name)?;
        if gone {
            self.collect_layers()?;
        }
        Ok(gone)
    }

    /// The same, but that the layers stay until [`Store::tidy`] is called, by whomever.
    ///
    /// Cost: one transaction.
    ///
    /// # Errors
    /// As [`Store::remove`].
    pub fn forget(&self, name: &str) -> Result<bool> {
        self.meta.write(|txn| {
            let id = find(txn, name)?;
            let full =
                name.parse::<Reference>().map_or_else(|_| name.to_owned(), |r| r.to_string());
            let named = |name: &str| {
                txn.execute(
                    "DELETE FROM tags WHERE name = ?1 AND image = ?2",
                    params![name, id.to_string()],
                )
            };
            let untagged = named(name)? + named(&full)?;
            let sql = "SELECT count(*) FROM tags WHERE image = ?1";
            let left: i64 = txn.query_row(sql, [id.to_string()], |row| row.get(0))?;
            if untagged > 0 && left > 0 {
                return Ok(false);
            }
            let sql = "SELECT name FROM containers WHERE image = ?1 LIMIT 1";
            let used = txn.query_row(sql, [id.to_string()], |row| row.get(0)).optional()?;
            if let Some(container) = used {
                return Err(Error::InUse { name: name.to_owned(), container });
            }
            txn.execute("DELETE FROM tags WHERE image = ?1", [id.to_string()])?;
            txn.execute("DELETE FROM images WHERE id = ?1", [id.to_string()])?;
            Ok(true)
        })
    }

    /// Where a name led before, the latest last.
    ///
    /// # Errors
    /// [`Error::BadReference`]; the database's own.
    pub fn tag_history(&self, name: &str) -> Result<Vec<TagChange>> {
        let name = name.parse::<Reference>()?.to_string();
        self.meta.read(|txn| {
            let mut query = txn.prepare_cached(
                "SELECT image, at FROM tag_history WHERE name = ?1 ORDER BY rowid",
            )?;
            let rows = query.query_map([&name], |row| {
                Ok(TagChange { image: meta::digest(&row.get::<_, String>(0)?)?, at: row.get(1)? })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Takes a name back to the image that it led to before, and gives that one's id.
    ///
    /// # Errors
    /// [`Error::NoPast`] where it led nowhere else, or what it led to has been collected.
    pub fn roll_back_tag(&self, name: &str) -> Result<Digest> {
        let name = name.parse::<Reference>()?.to_string();
        self.meta.write(|txn| {
            let sql = "SELECT h.image FROM tag_history h JOIN images i ON i.id = h.image
              WHERE h.name = ?1 AND h.image <> (SELECT image FROM tags WHERE name = ?1)
              ORDER BY h.rowid DESC LIMIT 1";
            let found = txn.query_row(sql, [&name], |row| row.get::<_, String>(0)).optional()?;
            let image = found.ok_or_else(|| Error::NoPast { name: name.clone() })?;
            set_tag(txn, &name, &image)?;
            Ok(meta::digest(&image)?)
        })
    }

    /// Every layer, with the images that have it.
    ///
    /// # Errors
    /// The database's own.
    pub fn layers(&self) -> Result<Vec<LayerUse>> {
        self.meta.read(|txn| {
            let mut all = Vec::new();
            for layer in meta::layers(txn)? {
                let sql = "SELECT DISTINCT image FROM image_layers WHERE diff_id = ?1";
                let mut query = txn.prepare_cached(sql)?;
                let rows = query.query_map([layer.diff_id.to_string()], |row| {
                    meta::digest(&row.get::<_, String>(0)?)
                })?;
                let images = rows.collect::<rusqlite::Result<_>>()?;
                all.push(LayerUse { layer, images });
            }
            Ok(all)
        })
    }

    /// What the store holds. Instant: nothing on disk is walked.
    ///
    /// # Errors
    /// The database's own.
    pub fn usage(&self) -> Result<Usage> {
        self.meta.read(|txn| {
            let one = |sql: &str| -> Result<u64> { Ok(meta::count(txn.query_row(sql, [], |row| row.get(0))?)) };
            let bytes = one("SELECT coalesce(sum(bytes), 0) FROM layers")?;
            let each = one(
                "SELECT coalesce(sum(l.bytes), 0) FROM image_layers i JOIN layers l USING (diff_id)",
            )?;
            let used = one(
                "SELECT coalesce(sum(bytes), 0) FROM layers WHERE diff_id IN (
                   SELECT diff_id FROM image_layers WHERE image IN (SELECT image FROM tags)
                   OR image IN (SELECT image FROM containers))
                 OR diff_id IN (SELECT diff_id FROM snapshots WHERE diff_id IS NOT NULL)",
            )?;
            Ok(Usage {
                images: one("SELECT count(*) FROM images")?,
                layers: one("SELECT count(*) FROM layers")?,
                containers: one("SELECT count(*) FROM containers")?,
                bytes,
                shared_files: one("SELECT coalesce(sum(shared), 0) FROM layers")?,
                shared_layers: each.saturating_sub(bytes),
                reclaimable: bytes.saturating_sub(used),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_like_one_are_named() {
        let names =
            ["docker.io/library/nginx:1", "docker.io/library/busybox:latest", "localhost/x:1"];
        let near = |name| near(name, names.map(str::to_owned).to_vec());
        assert_eq!(near("nginx:2"), ["nginx:1"]);
        assert_eq!(near("busibox"), ["busybox"]);
        assert_eq!(near("quay.io/me/busybox"), ["busybox"]);
        let there = super::near("busibox", vec!["localhost/busybox:1".to_owned()]);
        assert_eq!(there, ["localhost/busybox:1"]);
        assert_eq!(near("something-else"), [""; 0]);
    }
}
