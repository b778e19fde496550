//! Which endpoint a connection goes to: of two chosen by chance the less loaded one, and none that failed just now.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rand::Rng;
use ringmail_identity::Identity;

use crate::metrics::Labels;

/// One place that answers, as discovery describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Its address and its own port.
    pub addr: SocketAddr,
    /// Who must answer there; `None` where it is not meshed.
    pub peer: Option<PeerName>,
    /// What metrics and tap say of it (`dst_…`).
    pub labels: Labels,
    /// Whether its bytes are not to be read in passing.
    pub opaque: bool,
}

/// The identity that a server must prove, and the name by which its proxy knows that it is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerName {
    /// The identity.
    pub identity: Identity,
    /// The server name in the ClientHello.
    pub sni: String,
}

/// An endpoint with what this proxy knows of it.
#[derive(Debug)]
pub struct Endpoint {
    spec: EndpointSpec,
    /// Connections open to it from here.
    load: AtomicUsize,
    failures: AtomicU32,
    /// Milliseconds since the process' epoch until which it is left alone.
    shunned_until: AtomicU64,
}

impl Endpoint {
    fn new(spec: EndpointSpec) -> Self {
        Self {
            spec,
            load: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            shunned_until: AtomicU64::new(0),
        }
    }

    /// What discovery says of it.
    pub fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    /// A connection to it failed: for a while others are preferred, longer with each failure in a row.
    pub fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let pause = (SHUN * 2_u32.saturating_pow(failures)).min(LONGEST_SHUN);
        self.shunned_until.store(now_ms().saturating_add(pause.as_millis() as u64), Ordering::Relaxed);
    }

    /// A connection to it stands.
    pub fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.shunned_until.store(0, Ordering::Relaxed);
    }

    /// Connections open to it from here.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    fn is_shunned(&self, now: u64) -> bool {
        self.shunned_until.load(Ordering::Relaxed) > now
    }
}

/// One connection's place at an endpoint: counts as load until it is dropped.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Lease {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl std::ops::Deref for Lease {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The endpoints of one destination. Reading takes no lock.
#[derive(Debug, Default)]
pub struct Balancer {
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
}

impl Balancer {
    /// A destination with these endpoints.
    pub fn new(specs: impl IntoIterator<Item = EndpointSpec>) -> Self {
        let this = Self::default();
        this.replace(specs);
        this
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.endpoints.load().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a whole new set. An endpoint that is described as before keeps its load and its failures.
    pub fn replace(&self, specs: impl IntoIterator<Item = EndpointSpec>) {
        let before = self.endpoints.load();
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for spec in specs {
            upsert(&mut endpoints, &before, spec);
        }
        self.endpoints.store(Arc::new(endpoints));
    }

    /// Adds endpoints, or replaces those at the same address.
    pub fn add(&self, specs: impl IntoIterator<Item = EndpointSpec>) {
        let before = self.endpoints.load();
        let mut endpoints = before.as_ref().clone();
        for spec in specs {
            upsert(&mut endpoints, &before, spec);
        }
        self.endpoints.store(Arc::new(endpoints));
    }

    /// Takes endpoints out. Connections to them go on.
    pub fn remove(&self, addrs: &[SocketAddr]) {
        let mut endpoints = self.endpoints.load().as_ref().clone();
        endpoints.retain(|endpoint| !addrs.contains(&endpoint.spec.addr));
        self.endpoints.store(Arc::new(endpoints));
    }

    /// Chooses an endpoint that is not in `tried`: two by chance among those that did not fail just now, and the less
    /// loaded of them. Where all have failed, one of those; `None` when nothing is left to try.
    pub fn pick(&self, tried: &[SocketAddr], rng: &mut impl Rng) -> Option<Lease> {
        let endpoints = self.endpoints.load();
        let now = now_ms();
        let untried = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.spec.addr);
        let healthy = |endpoint: &&Arc<Endpoint>| untried(endpoint) && !endpoint.is_shunned(now);
        let chosen = two_choices(|| endpoints.iter().filter(healthy), rng)
            .or_else(|| two_choices(|| endpoints.iter().filter(untried), rng))?;
        Some(Lease::new(chosen))
    }

    /// The endpoints as they are now.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }
}

fn upsert(endpoints: &mut Vec<Arc<Endpoint>>, before: &[Arc<Endpoint>], spec: EndpointSpec) {
    let same = before.iter().find(|endpoint| endpoint.spec == spec).map(Arc::clone);
    let addr = spec.addr;
    let endpoint = same.unwrap_or_else(|| Arc::new(Endpoint::new(spec)));
    match endpoints.iter_mut().find(|known| known.spec.addr == addr) {
        Some(known) => *known = endpoint,
        None => endpoints.push(endpoint),
    }
}

fn two_choices<'a, I>(candidates: impl Fn() -> I, rng: &mut impl Rng) -> Option<&'a Arc<Endpoint>>
where
    I: Iterator<Item = &'a Arc<Endpoint>>,
{
    let count = candidates().count();
    if count < 2 {
        return candidates().next();
    }
    let first = rng.random_range(0..count);
    let second = (first + rng.random_range(1..count)) % count;
    let (first, second) = (candidates().nth(first)?, candidates().nth(second)?);
    Some(if second.load() < first.load() { second } else { first })
}

fn now_ms() -> u64 {
    static EPOCH: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    // One more than elapsed, so that the first instant is not the zero that means never.
    EPOCH.elapsed().as_millis() as u64 + 1
}

const SHUN: Duration = Duration::from_millis(500);
const LONGEST_SHUN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(last: u8) -> EndpointSpec {
        EndpointSpec {
            addr: ([10, 0, 0, last], 80).into(),
            peer: None,
            labels: Labels::default(),
            opaque: false,
        }
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let balancer = Balancer::new([spec(1), spec(2)]);
        let mut rng = rand::rng();
        let leases: Vec<_> = (0..10).filter_map(|_| balancer.pick(&[], &mut rng)).collect();
        let loads: Vec<_> = balancer.endpoints().iter().map(|endpoint| endpoint.load()).collect();
        assert_eq!(loads, [5, 5], "with two endpoints, both are always compared");
        drop(leases);
        assert!(balancer.endpoints().iter().all(|endpoint| endpoint.load() == 0));
    }

    #[test]
    fn load_is_spread_over_many() {
        let balancer = Balancer::new((1..=10).map(spec));
        let mut rng = rand::rng();
        let _leases: Vec<_> = (0..1_000).filter_map(|_| balancer.pick(&[], &mut rng)).collect();
        let loads: Vec<_> = balancer.endpoints().iter().map(|endpoint| endpoint.load()).collect();
        assert!(loads.iter().all(|load| (80..=120).contains(load)), "{loads:?}");
    }

    #[test]
    fn a_failed_endpoint_is_left_and_comes_back_when_all_have_failed() {
        let balancer = Balancer::new([spec(1), spec(2)]);
        let mut rng = rand::rng();
        let failed = spec(1).addr;
        balancer.endpoints()[0].failed();
        for _ in 0..50 {
            assert_ne!(balancer.pick(&[], &mut rng).expect("one is left").spec().addr, failed);
        }
        balancer.endpoints()[1].failed();
        assert!(balancer.pick(&[], &mut rng).is_some(), "an endpoint that failed is better than none");
        balancer.endpoints()[1].succeeded();
        assert_ne!(balancer.pick(&[], &mut rng).expect("healthy again").spec().addr, failed);
    }

    #[test]
    fn what_was_tried_is_not_offered_again() {
        let balancer = Balancer::new([spec(1), spec(2)]);
        let mut rng = rand::rng();
        let first = balancer.pick(&[], &mut rng).expect("one").spec().addr;
        let second = balancer.pick(&[first], &mut rng).expect("the other").spec().addr;
        assert_ne!(first, second);
        assert!(balancer.pick(&[first, second], &mut rng).is_none());
    }

    #[test]
    fn updates_keep_what_is_known_of_endpoints_that_stay() {
        let balancer = Balancer::new([spec(1), spec(2)]);
        let mut rng = rand::rng();
        let _lease = balancer.pick(&[spec(2).addr], &mut rng);
        balancer.replace([spec(1), spec(3)]);
        let loads: Vec<_> =
            balancer.endpoints().iter().map(|endpoint| (endpoint.spec().addr, endpoint.load())).collect();
        assert_eq!(loads, [(spec(1).addr, 1), (spec(3).addr, 0)]);
        let renamed = EndpointSpec { opaque: true, ..spec(1) };
        balancer.add([renamed.clone()]);
        assert_eq!(balancer.len(), 2);
        assert!(balancer.endpoints().iter().any(|endpoint| *endpoint.spec() == renamed));
        balancer.remove(&[spec(1).addr, spec(3).addr]);
        assert!(balancer.is_empty() && balancer.pick(&[], &mut rng).is_none());
    }
}
