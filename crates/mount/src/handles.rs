//! What is open, by the number that the kernel gives back.

use std::sync::Arc;

use fuse::Errno;
use parking_lot::RwLock;

/// A slab: places are used again, and a number says of which use it is, so that a stale one finds nothing.
#[derive(Debug)]
pub(crate) struct Handles<T> {
    slab: RwLock<Slab<T>>,
}

#[derive(Debug)]
struct Slab<T> {
    places: Vec<(u32, Option<Arc<T>>)>,
    free: Vec<u32>,
}

impl<T> Handles<T> {
    pub fn new() -> Self {
        Self { slab: RwLock::new(Slab { places: Vec::new(), free: Vec::new() }) }
    }

    pub fn insert(&self, value: Arc<T>) -> u64 {
        let mut slab = self.slab.write();
        let index = slab.free.pop().unwrap_or_else(|| {
            slab.places.push((0, None));
            slab.places.len() as u32 - 1
        });
        let place = &mut slab.places[index as usize];
        place.1 = Some(value);
        u64::from(place.0) << 32 | u64::from(index)
    }

    /// EBADF where there is none.
    pub fn get(&self, number: u64) -> Result<Arc<T>, Errno> {
        let slab = self.slab.read();
        let place = slab.places.get(number as u32 as usize);
        let place = place.filter(|place| u64::from(place.0) == number >> 32);
        place.and_then(|place| place.1.clone()).ok_or(Errno(BAD))
    }

    pub fn remove(&self, number: u64) -> Option<Arc<T>> {
        let mut slab = self.slab.write();
        let index = number as u32;
        let place = slab.places.get_mut(index as usize)?;
        if u64::from(place.0) != number >> 32 {
            return None;
        }
        let value = place.1.take()?;
        place.0 = place.0.wrapping_add(1);
        slab.free.push(index);
        Some(value)
    }
}

/// EBADF.
const BAD: i32 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_number_finds_nothing() {
        let handles = Handles::new();
        let first = handles.insert(Arc::new(1));
        assert_eq!(handles.get(first).as_deref(), Ok(&1));
        assert_eq!(handles.remove(first).as_deref(), Some(&1));
        let second = handles.insert(Arc::new(2));
        assert_ne!(first, second);
        assert!(handles.get(first).is_err() && handles.remove(first).is_none());
        assert_eq!(handles.get(second).as_deref(), Ok(&2));
        assert!(handles.get(77).is_err());
    }
}
