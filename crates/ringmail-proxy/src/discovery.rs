//! Where a connection goes and who must answer there: a cache fed by watches on the destination service.
//!
//! Start here: [`Discovery::resolve`]. An address is asked for on its first use and watched from then on. While the
//! control plane is away, what was last heard serves. An address inside the mesh's networks that nobody has told about
//! is held until a deadline and then refused: never plaintext without the control plane's word.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update, update};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code as Grpc;

use crate::balance::Balancer;
use crate::cache::{Cache, Entry, Expire, Full, Standing, sweep_regularly};
use crate::config::Config;
use crate::follow::{Channel, Heard, follow};
use crate::report::{Code, trouble};

mod wire;

/// The destination cache. Cheap to clone.
#[derive(Clone)]
pub struct Discovery(Arc<Inner>);

struct Inner {
    settings: Settings,
    watches: Box<dyn Watches>,
    runtime: Handle,
    addresses: Cache<SocketAddr, Address>,
    services: Mutex<HashMap<String, Weak<Service>>>,
}

/// What discovery needs to know of its proxy.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The addresses that are asked for.
    pub networks: Vec<ipnet::IpNet>,
    /// What the destination service is told of this workload.
    pub context: String,
    /// How long a connection to an unknown address is held.
    pub timeout: Duration,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            networks: config.destination_profile_networks.clone(),
            context: config.destination_context.clone(),
            timeout: config.discovery_timeout,
        }
    }
}

/// What an address is.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Outside the mesh's networks: nobody was asked.
    Outside,
    /// Inside them, and by the control plane's word nothing of the mesh.
    NotMeshed,
    /// One pod, or a service with its pods.
    Known(Known),
}

/// A destination that the control plane knows.
#[derive(Clone, Debug)]
pub struct Known {
    /// The service's name and port, or the pod's address.
    pub name: Arc<str>,
    /// Who answers.
    pub endpoints: Arc<Service>,
    /// Whether its bytes are not to be read in passing.
    pub opaque: bool,
}

/// Why an address could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No answer in time.
    #[error("the destination service did not say within {0:?} what this address is")]
    Timeout(Duration),
    /// Too many destinations are in use.
    #[error("more than {MAX_ADDRESSES} destinations are in use")]
    Full,
}

impl Discovery {
    /// A cache that asks through `channel`. Watches run on the runtime that this is called on.
    pub fn start<C: Channel>(settings: Settings, channel: C) -> Self {
        let inner = Arc::new(Inner {
            watches: Box::new(Remote { channel, context: settings.context.clone() }),
            settings,
            runtime: Handle::current(),
            addresses: Cache::new(MAX_ADDRESSES, IDLE),
            services: Mutex::default(),
        });
        sweep_regularly(&inner, |inner| &inner.addresses);
        Self(inner)
    }

    /// What `addr` is. Answers at once when it is known; else waits for the control plane until the deadline.
    pub async fn resolve(&self, addr: SocketAddr) -> Result<Destination, ResolveError> {
        if !self.0.settings.networks.iter().any(|network| network.contains(&addr.ip())) {
            return Ok(Destination::Outside);
        }
        let entry = self.entry(addr)?;
        if let Some(known) = entry.known() {
            return Ok(known);
        }
        let timeout = self.0.settings.timeout;
        tokio::time::timeout(timeout, entry.learn()).await.map_err(|_| ResolveError::Timeout(timeout))
    }

    fn entry(&self, addr: SocketAddr) -> Result<Arc<Entry<Address>>, ResolveError> {
        self.0.addresses.get(&addr, || self.watch(addr)).map_err(|Full| ResolveError::Full)
    }

    fn watch(&self, addr: SocketAddr) -> Address {
        let (answer, receiver) = watch::channel(None);
        let standing = Standing::default();
        let listener = Listener { inner: Arc::downgrade(&self.0), addr, answer, standing: standing.clone() };
        let task = self.0.watches.profile(addr, Box::new(listener), &self.0.runtime);
        Address { answer: receiver, standing, _task: AbortOnDropHandle::new(task) }
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// One address, watched.
struct Address {
    answer: watch::Receiver<Option<Destination>>,
    standing: Standing,
    _task: AbortOnDropHandle<()>,
}

impl Address {
    fn known(&self) -> Option<Destination> {
        let answer = self.answer.borrow();
        answer.clone().filter(|destination| match destination {
            Destination::Known(known) => *known.endpoints.heard.borrow(),
            _ => true,
        })
    }

    /// Waits until it is known, through whatever it turns into meanwhile.
    async fn learn(&self) -> Destination {
        let mut answer = self.answer.clone();
        loop {
            let destination = answer.borrow_and_update().clone();
            match destination {
                Some(Destination::Known(known)) => {
                    let mut heard = known.endpoints.heard.subscribe();
                    // `known` holds the sender, so this wait ends with an answer only.
                    let heard = async { heard.wait_for(|heard| *heard).await.is_ok() };
                    tokio::select! {
                        true = heard => return Destination::Known(known),
                        Ok(()) = answer.changed() => {}
                        else => std::future::pending::<()>().await,
                    }
                }
                Some(other) => return other,
                None => {
                    if answer.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }
}

impl Expire for Address {
    fn may_expire(&self) -> bool {
        self.standing.may_expire()
    }
}

/// The endpoints of a service or of one pod.
#[derive(Debug)]
pub struct Service {
    balancer: Balancer,
    heard: watch::Sender<bool>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Service {
    fn unheard() -> Self {
        Self { balancer: Balancer::default(), heard: watch::Sender::new(false), task: Mutex::new(None) }
    }

    fn of_one(spec: crate::balance::EndpointSpec) -> Self {
        Self { balancer: Balancer::new([spec]), heard: watch::Sender::new(true), task: Mutex::new(None) }
    }

    /// The endpoints to choose from.
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }
}

/// Takes the answers about one address.
struct Listener {
    inner: Weak<Inner>,
    addr: SocketAddr,
    answer: watch::Sender<Option<Destination>>,
    standing: Standing,
}

impl Listener {
    fn heard(&mut self, heard: Heard<DestinationProfile>) {
        match heard {
            Heard::Message(profile) => {
                self.standing.heard();
                if let Some(destination) = self.read(profile) {
                    self.answer.send_replace(Some(destination));
                }
            }
            // The control plane's word for "no address of mine" (wire.md 6.2). It is asked again, for it may become one.
            Heard::Lost(status) if status.code() == Grpc::InvalidArgument => {
                self.standing.heard();
                self.answer.send_replace(Some(Destination::NotMeshed));
            }
            Heard::Lost(status) => {
                self.standing.lost();
                trouble(Code::DiscoveryWatch, &self.addr, &status);
            }
        }
    }

    /// `None` keeps what was known: an answer that cannot be used must not turn into plaintext.
    fn read(&self, profile: DestinationProfile) -> Option<Destination> {
        let opaque = profile.opaque_protocol;
        if let Some(endpoint) = profile.endpoint {
            let spec = match wire::endpoint(endpoint, &HashMap::new()) {
                Ok(spec) => spec,
                Err(problem) => {
                    trouble(Code::EndpointUnusable, &self.addr, &problem);
                    return None;
                }
            };
            let before = self.answer.borrow();
            if let Some(Destination::Known(known)) = &*before {
                // The same pod told again: its load and failures stay known.
                if known.opaque == opaque && *known.name == *spec.addr.to_string() {
                    known.endpoints.balancer.replace([spec]);
                    return Some(Destination::Known(known.clone()));
                }
            }
            let name = spec.addr.to_string().into();
            return Some(Destination::Known(Known {
                name,
                endpoints: Arc::new(Service::of_one(spec)),
                opaque,
            }));
        }
        let service = profile.fully_qualified_name.trim_end_matches('.');
        if service.is_empty() {
            return Some(Destination::NotMeshed);
        }
        let inner = self.inner.upgrade()?;
        let name: Arc<str> = format!("{service}:{}", self.addr.port()).into();
        Some(Destination::Known(Known { endpoints: inner.service(&name), name, opaque }))
    }
}

impl Inner {
    /// The service of that name, watched while anybody holds it.
    fn service(&self, name: &Arc<str>) -> Arc<Service> {
        let mut services = self.services.lock();
        if let Some(service) = services.get(&**name).and_then(Weak::upgrade) {
            return service;
        }
        services.retain(|_, service| service.strong_count() > 0);
        let service = Arc::new(Service::unheard());
        services.insert(name.to_string(), Arc::downgrade(&service));
        let listener =
            ServiceListener { name: Arc::clone(name), service: Arc::downgrade(&service), fresh: true };
        let task = self.watches.service(name, listener, &self.runtime);
        *service.task.lock() = Some(AbortOnDropHandle::new(task));
        service
    }
}

/// Takes the answers about one service's endpoints.
struct ServiceListener {
    name: Arc<str>,
    service: Weak<Service>,
    /// Whether the next set replaces all that is known: the first after each reopening does (wire.md 6.3).
    fresh: bool,
}

impl ServiceListener {
    fn heard(&mut self, heard: Heard<Update>) {
        let Some(service) = self.service.upgrade() else { return };
        let balancer = &service.balancer;
        match heard {
            Heard::Message(Update { update: Some(update::Update::Add(set)) }) => {
                let specs =
                    wire::endpoints(set, |problem| trouble(Code::EndpointUnusable, &self.name, &problem));
                if std::mem::take(&mut self.fresh) {
                    balancer.replace(specs);
                } else {
                    balancer.add(specs);
                }
            }
            Heard::Message(Update { update: Some(update::Update::Remove(set)) }) => {
                // As the first message it says nothing about what is there.
                if self.fresh {
                    return;
                }
                balancer.remove(&wire::addresses(set));
            }
            Heard::Message(Update { update: Some(update::Update::NoEndpoints(_)) }) => {
                self.fresh = false;
                balancer.replace([]);
            }
            Heard::Message(Update { update: None }) => return,
            // The control plane's word that there is no such service.
            Heard::Lost(status) if matches!(status.code(), Grpc::InvalidArgument | Grpc::NotFound) => {
                self.fresh = true;
                balancer.replace([]);
            }
            Heard::Lost(status) => {
                self.fresh = true;
                trouble(Code::DiscoveryWatch, &self.name, &status);
                return;
            }
        }
        service.heard.send_replace(true);
    }
}

/// Opens watches: erases the channel's type.
trait Watches: Send + Sync {
    fn profile(
        &self,
        addr: SocketAddr,
        listener: Box<Listener>,
        runtime: &Handle,
    ) -> tokio::task::JoinHandle<()>;
    fn service(&self, name: &str, listener: ServiceListener, runtime: &Handle)
    -> tokio::task::JoinHandle<()>;
}

struct Remote<C> {
    channel: C,
    context: String,
}

impl<C: Channel> Remote<C> {
    fn request(&self, path: String) -> GetDestination {
        GetDestination { path, context_token: self.context.clone(), ..GetDestination::default() }
    }
}

impl<C: Channel> Watches for Remote<C> {
    fn profile(
        &self,
        addr: SocketAddr,
        mut listener: Box<Listener>,
        runtime: &Handle,
    ) -> tokio::task::JoinHandle<()> {
        let (request, channel) = (self.request(addr.to_string()), self.channel.clone());
        runtime.spawn(async move {
            let open = || {
                let (request, mut client) = (request.clone(), DestinationClient::new(channel.clone()));
                async move { client.get_profile(request).await }
            };
            follow(open, |heard| listener.heard(heard)).await;
        })
    }

    fn service(
        &self,
        name: &str,
        mut listener: ServiceListener,
        runtime: &Handle,
    ) -> tokio::task::JoinHandle<()> {
        let (request, channel) = (self.request(name.to_owned()), self.channel.clone());
        runtime.spawn(async move {
            let open = || {
                let (request, mut client) = (request.clone(), DestinationClient::new(channel.clone()));
                async move { client.get(request).await }
            };
            follow(open, |heard| listener.heard(heard)).await;
        })
    }
}

/// Destinations that are watched at once.
const MAX_ADDRESSES: usize = 8_192;
/// Long enough that a pair of workloads which speaks now and then goes on through an outage of the control plane.
const IDLE: Duration = Duration::from_mins(10);
