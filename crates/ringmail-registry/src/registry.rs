//! An index shared between tasks, which wakes those whose answer changed.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;

use crate::index::{Index, Key, MeshSettings};
use crate::object::{Object, ObjectRef};

/// A shared [`Index`]. Clones share it.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    index: RwLock<Index>,
    subscribers: Mutex<HashMap<Key, watch::Sender<()>>>,
    synced: watch::Sender<bool>,
}

impl Registry {
    /// An empty registry that is not synced.
    pub fn new(settings: MeshSettings) -> Self {
        Self(Arc::new(Shared {
            index: RwLock::new(Index::new(settings)),
            subscribers: Mutex::default(),
            synced: watch::Sender::new(false),
        }))
    }

    /// The index as it is now. The guard must not be held across an `.await`; it keeps writers waiting.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.0.index.read()
    }

    /// Adds an object or replaces the one of the same name.
    pub fn apply(&self, object: Object) {
        let keys = self.0.index.write().apply(object);
        self.wake(&keys);
    }

    /// Removes an object.
    pub fn delete(&self, object: &ObjectRef) {
        let keys = self.0.index.write().delete(object);
        self.wake(&keys);
    }

    /// Learns of changes from now on: subscribe first, then read.
    pub fn subscribe(&self, key: Key) -> Subscription {
        let changes = self.0.subscribers.lock().entry(key.clone()).or_default().subscribe();
        Subscription { registry: self.clone(), key, changes: Some(changes) }
    }

    /// Says that the source has been read once: from now on absence means absence.
    pub fn mark_synced(&self) {
        self.0.synced.send_replace(true);
    }

    /// Whether the source has been read once.
    pub fn is_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// Waits until the source has been read once.
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so this cannot end early.
        let _ = self.0.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// The first answer that `ask` gives, asked now and after each change of `key`; without an end of its own.
    pub async fn wait_for<T>(&self, key: Key, mut ask: impl FnMut(&Index) -> Option<T>) -> T {
        let mut changes = self.subscribe(key);
        loop {
            if let Some(answer) = ask(&self.read()) {
                return answer;
            }
            changes.changed().await;
        }
    }

    fn wake(&self, keys: &[Key]) {
        let subscribers = self.0.subscribers.lock();
        for sender in keys.iter().filter_map(|key| subscribers.get(key)) {
            sender.send_replace(());
        }
    }
}

/// A wait for changes of one [`Key`]. However many there were since the last wait, they count as one.
#[derive(Debug)]
pub struct Subscription {
    registry: Registry,
    key: Key,
    changes: Option<watch::Receiver<()>>,
}

impl Subscription {
    /// Waits for a change since the subscription or since the last call.
    pub async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes {
            // The registry keeps the sender while a receiver lives, so this cannot fail.
            let _ = changes.changed().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = self.registry.0.subscribers.lock();
        drop(self.changes.take());
        if subscribers.get(&self.key).is_some_and(|sender| sender.receiver_count() == 0) {
            subscribers.remove(&self.key);
        }
    }
}
