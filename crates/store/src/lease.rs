//! Layers that somebody needs for now, without a row that says so for good: of an image that is being pulled, saved or
//! sent. A lease ends with its process.

use rusqlite::params;

use crate::error::{Error, Result};
use crate::id::Digest;
use crate::images::Image;
use crate::meta;
use crate::store::{LEASE, Lock, Store};

/// Layers that are not to go, until this is dropped.
#[derive(Debug)]
pub struct Lease<'s> {
    store: &'s Store,
    owner: String,
    lock: Option<Lock>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let owner = &self.owner;
        let freed = self.store.meta.write(|txn| {
            txn.execute("DELETE FROM leases WHERE owner = ?1", [owner])?;
            Ok(())
        });
        let unlocked = self.lock.take().map_or(Ok(()), |lock| self.store.unlock(owner, lock));
        // Whoever opens the store next finds the lock free and does the same.
        if let Err(error) = freed.and(unlocked) {
            tracing::debug!(%error, "a lease is left for the next to clear");
        }
    }
}

impl Store {
    /// Keeps layers, there or not yet, from being collected.
    pub(crate) fn lease(&self, diff_ids: &[Digest]) -> Result<Lease<'_>> {
        let owner = format!("{LEASE}{}", self.unique());
        let lock = Some(self.lock(&owner)?);
        let lease = Lease { store: self, owner, lock };
        self.meta.write(|txn| {
            let mut insert = txn
                .prepare_cached("INSERT OR IGNORE INTO leases (owner, diff_id) VALUES (?1, ?2)")?;
            for diff_id in diff_ids {
                insert.execute(params![lease.owner, diff_id.to_string()])?;
            }
            Ok(())
        })?;
        Ok(lease)
    }

    /// Keeps the layers of images from going, whoever removes the images meanwhile. What nothing needs when the lease ends,
    /// [`Store::tidy`] removes.
    ///
    /// Cost: two transactions, one at the end.
    ///
    /// # Errors
    /// [`Error::NoImage`] where a layer has gone already; the database's own.
    pub fn keep<'i>(&self, images: impl Iterator<Item = &'i Image> + Clone) -> Result<Lease<'_>> {
        let layers = images.clone().flat_map(|image| &image.layers);
        let diff_ids: Vec<Digest> = layers.map(|layer| layer.diff_id).collect();
        let lease = self.lease(&diff_ids)?;
        self.meta.read(|txn| {
            for image in images {
                for layer in &image.layers {
                    if meta::layer(txn, &layer.diff_id)?.is_none() {
                        let name = image.tags.first().cloned();
                        let name = name.unwrap_or_else(|| image.id.to_string());
                        return Err(Error::NoImage { name, near: Vec::new() });
                    }
                }
            }
            Ok(())
        })?;
        Ok(lease)
    }
}
