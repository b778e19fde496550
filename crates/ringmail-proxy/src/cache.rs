//! What was asked of the control plane, kept while it is used: bounded in number, and given up after an idle time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

/// Values that are made on first use.
pub(crate) struct Cache<K, V> {
    entries: RwLock<HashMap<K, Arc<Entry<V>>>>,
    born: Instant,
    idle: Duration,
    bound: usize,
}

/// A value that may be given up when it was idle for long.
pub(crate) trait Expire {
    /// Whether it may go now. What the control plane could not tell again at present stays.
    fn may_expire(&self) -> bool;
}

/// How a watch stands, for whoever keeps what it brought.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing(Arc<AtomicU8>);

impl Standing {
    const UNHEARD: u8 = 0;
    const CURRENT: u8 = 1;
    const LOST: u8 = 2;

    /// The control plane has spoken.
    pub(crate) fn heard(&self) {
        self.0.store(Self::CURRENT, Ordering::Relaxed);
    }

    /// The control plane is away. What was never heard cannot be lost.
    pub(crate) fn lost(&self) {
        let _ = self.0.compare_exchange(Self::CURRENT, Self::LOST, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Expire for Standing {
    fn may_expire(&self) -> bool {
        matches!(self.0.load(Ordering::Relaxed), Self::UNHEARD | Self::CURRENT)
    }
}

/// One value with the time of its last use.
pub(crate) struct Entry<V> {
    value: V,
    used_ms: AtomicU64,
}

impl<V> std::ops::Deref for Entry<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

/// The cache is full of what is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<K: Eq + Hash + Clone, V: Expire> Cache<K, V> {
    /// Holds at most `bound` values; one that was not used for `idle` may go.
    pub(crate) fn new(bound: usize, idle: Duration) -> Self {
        Self { entries: RwLock::default(), born: Instant::now(), idle, bound }
    }

    /// The value for `key`, made if there is none.
    pub(crate) fn get(&self, key: &K, make: impl FnOnce() -> V) -> Result<Arc<Entry<V>>, Full> {
        let now = self.now();
        if let Some(entry) = self.entries.read().get(key) {
            entry.used_ms.store(now, Ordering::Relaxed);
            return Ok(Arc::clone(entry));
        }
        let mut entries = self.entries.write();
        if let Some(entry) = entries.get(key) {
            return Ok(Arc::clone(entry));
        }
        if entries.len() >= self.bound {
            // The longest idle one goes early rather than that a new destination is refused.
            let longest = entries
                .iter()
                .filter(|(_, entry)| Arc::strong_count(entry) == 1 && entry.may_expire())
                .min_by_key(|(_, entry)| entry.used_ms.load(Ordering::Relaxed))
                .map(|(key, _)| key.clone());
            match longest {
                Some(longest) => entries.remove(&longest),
                None => return Err(Full),
            };
        }
        let entry = Arc::new(Entry { value: make(), used_ms: AtomicU64::new(now) });
        entries.insert(key.clone(), Arc::clone(&entry));
        Ok(entry)
    }

    /// How many values there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.read().len()
    }

    /// Gives up what was idle for too long.
    pub(crate) fn sweep(&self) {
        let horizon = self.now().saturating_sub(self.idle.as_millis() as u64);
        self.entries.write().retain(|_, entry| {
            let idle = entry.used_ms.load(Ordering::Relaxed) < horizon && Arc::strong_count(entry) == 1;
            !(idle && entry.may_expire())
        });
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}

/// Sweeps from time to time, while the cache's owner lives.
pub(crate) fn sweep_regularly<O, K, V>(owner: &Arc<O>, cache: fn(&O) -> &Cache<K, V>)
where
    O: Send + Sync + 'static,
    K: Eq + Hash + Clone + 'static,
    V: Expire + 'static,
{
    let owner = Arc::downgrade(owner);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            match owner.upgrade() {
                Some(owner) => cache(&owner).sweep(),
                None => return,
            }
        }
    });
}

const SWEEP: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    struct Value(bool);

    impl Expire for Value {
        fn may_expire(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn the_bound_holds_and_the_longest_idle_goes_first() {
        let cache = Cache::new(2, Duration::from_mins(1));
        for key in ["a", "b"] {
            drop(cache.get(&key, || Value(true)).expect("fits"));
            std::thread::sleep(Duration::from_millis(3));
        }
        let _held = cache.get(&"a", || Value(false)).expect("there already");
        assert!(cache.get(&"c", || Value(false)).is_ok(), "b was idle and makes room");
        assert!(cache.get(&"d", || Value(true)).is_err(), "a is held, c may not go");
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn only_what_was_heard_and_cannot_be_heard_now_must_stay() {
        let standing = Standing::default();
        standing.lost();
        assert!(standing.may_expire(), "nothing is lost with it");
        standing.heard();
        assert!(standing.may_expire(), "it can be asked for again");
        standing.lost();
        assert!(!standing.may_expire());
        standing.heard();
        assert!(standing.may_expire());
    }

    #[test]
    fn idle_values_go_and_those_that_cannot_be_asked_for_again_stay() {
        let cache = Cache::new(9, Duration::ZERO);
        drop(cache.get(&"gone", || Value(true)).expect("fits"));
        drop(cache.get(&"kept", || Value(false)).expect("fits"));
        std::thread::sleep(Duration::from_millis(3));
        cache.sweep();
        assert_eq!(cache.len(), 1);
        assert!(cache.get(&"kept", || Value(true)).is_ok_and(|kept| !kept.0));
    }
}
