//! Places for connections: a bound for all, and a lower one for each address, so that none of them can take all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Places, counted by address. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    all: usize,
    of_one: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<IpAddr, usize>,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<Taken>>,
    by: IpAddr,
}

impl Places {
    /// `all` places, of which one address may have `of_one`; at least one each.
    pub(crate) fn new(all: usize, of_one: usize) -> Self {
        Self { all: all.max(1), of_one: of_one.max(1), taken: Arc::default() }
    }

    /// A place for whoever comes from this address, if there is one.
    pub(crate) fn take(&self, by: IpAddr) -> Option<Place> {
        let by = by.to_canonical();
        let mut taken = self.taken.lock();
        let own = taken.by.get(&by).copied().unwrap_or_default();
        if taken.all >= self.all || own >= self.of_one {
            return None;
        }
        taken.all += 1;
        taken.by.insert(by, own + 1);
        Some(Place { taken: Arc::clone(&self.taken), by })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        match taken.by.get_mut(&self.by) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.by.remove(&self.by)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_takes_all_and_a_place_is_free_again() {
        let places = Places::new(3, 2);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held = [places.take(one), places.take("::ffff:10.0.0.1".parse().expect("an address"))];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(one).is_none(), "its share is spent, in either clothes");
        let last = places.take(other);
        assert!(last.is_some() && places.take(other).is_none(), "all are taken");
        drop(held);
        assert!(places.take(one).is_some());
        drop(last);
        assert!(places.taken.lock().by.is_empty(), "nothing is kept of who has left");
    }
}
