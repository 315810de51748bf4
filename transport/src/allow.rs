//! Which client keys may connect. Relay and broker change it while listeners use it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::keys::PublicKey;

/// A shared set of client keys, each with a tag of the owner's choice (a block, an endpoint, a user).
///
/// Clones share the set. A key that is removed is cut by every listener of the set within half a second, and its
/// frames are dropped from the next turn of the reactor on.
#[derive(Clone, Debug, Default)]
pub struct AllowList {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    keys: RwLock<BTreeMap<PublicKey, u64>>,
    version: AtomicU64,
}

impl AllowList {
    /// An empty set: nobody may connect.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `key` connect, known by `tag`. Answers the tag that it had before.
    pub fn insert(&self, key: PublicKey, tag: u64) -> Option<u64> {
        let before = self.inner.keys.write().unwrap_or_else(PoisonError::into_inner).insert(key, tag);
        self.inner.version.fetch_add(1, Ordering::Release);
        before
    }

    /// Shuts `key` out and cuts its connections. Answers the tag that it had.
    pub fn remove(&self, key: &PublicKey) -> Option<u64> {
        let before = self.inner.keys.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        self.inner.version.fetch_add(1, Ordering::Release);
        before
    }

    /// The tag of `key`, if it may connect.
    pub fn get(&self, key: &PublicKey) -> Option<u64> {
        self.inner.keys.read().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// Whether `key` may connect.
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.get(key).is_some()
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.inner.keys.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nobody may connect.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes with each insert and remove.
    pub(crate) fn version(&self) -> u64 {
        self.inner.version.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_keys_and_tags() {
        let list = AllowList::new();
        let other = list.clone();
        let key = PublicKey([7; 32]);
        assert_eq!(list.insert(key, 3), None);
        assert_eq!(other.get(&key), Some(3));
        assert_eq!(other.insert(key, 4), Some(3));
        assert_eq!((list.len(), list.contains(&key)), (1, true));
        let before = list.version();
        assert_eq!(other.remove(&key), Some(4));
        assert!(list.is_empty() && list.version() > before);
    }
}
