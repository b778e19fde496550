//! The engine: objects in, running pods out.
//!
//! Start here: [`Engine`] holds the state behind one lock. `reconcile` compares what there is with what is wanted, again and again,
//! whenever something changes; `build` makes pods from templates; `network` says what services, names and the registry look like;
//! `apply` takes objects; `find` picks the pod that a user means.

mod apply;
mod build;
mod find;
mod network;
mod reconcile;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::{Mutex, RwLock};
use ringmail_redirect::services::ServiceMap;
use tokio::sync::{Notify, watch};

pub use apply::{AppliedObjects, refuse_control_plane};
pub use find::{ContainerLog, RunningContainer, Target};
pub use network::{KernelRouter, Router};

use crate::addresses::{FIRST_POD, FIRST_SERVICE, Networks, Pool};
use crate::controllers::job::Progress;
use crate::controllers::{Phase, PodView};
use crate::dns::SharedZone;
use crate::events::Events;
use crate::manifest::{Kind, Object, ObjectKey};
use crate::meshing::Meshing;
use crate::pod::{ContainerKind, PodContext, PodEvents, PodHandle, PodState};
use crate::problem::Problem;
use crate::programs::Programs;
use crate::protocol::Severity;
use crate::registry_dir::RegistryDir;
use crate::store::Store;

/// What the engine is made from.
pub struct EngineParts {
    /// What all pods share.
    pub context: PodContext,
    /// The networks.
    pub networks: Networks,
    /// The injector.
    pub meshing: Meshing,
    /// The objects' directory for the control plane.
    pub registry: RegistryDir,
    /// Where service addresses are translated.
    pub router: Arc<dyn Router>,
    /// The programs that stand for images.
    pub programs: Programs,
}

/// Runs the objects of a mesh.
pub struct Engine {
    context: PodContext,
    meshing: Meshing,
    router: Arc<dyn Router>,
    registry: Mutex<RegistryDir>,
    state: Mutex<State>,
    /// A copy of the objects for those who only read.
    store: RwLock<Arc<Store>>,
    store_version: watch::Sender<u64>,
    programs: RwLock<Arc<Programs>>,
    wake: Notify,
    /// Counts rounds of reconciling, for those who wait for a condition.
    rounds: watch::Sender<u64>,
    events: Events,
    zone: SharedZone,
    closing: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    store: Store,
    pods: BTreeMap<(String, String), PodEntry>,
    pod_pools: Vec<Pool>,
    service_pools: Vec<Pool>,
    sequence: u64,
    jobs: BTreeMap<ObjectKey, JobState>,
    /// Workloads whose pods cannot be made, since when.
    stuck: BTreeMap<ObjectKey, Stuck>,
    services: Option<ServiceMap>,
}

#[derive(Debug)]
struct PodEntry {
    owner: Option<ObjectKey>,
    revision: String,
    ordinal: Option<u32>,
    sequence: u64,
    pod: Pod,
    addresses: Vec<IpAddr>,
    deleted: Option<Timestamp>,
    handle: PodHandle,
}

#[derive(Debug)]
struct JobState {
    began: Instant,
    uid: Option<String>,
    progress: Progress,
    finished: Option<Instant>,
}

#[derive(Debug)]
struct Stuck {
    message: String,
    until: Instant,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine without objects, and the task that keeps it going.
    pub fn start(parts: EngineParts) -> Arc<Self> {
        let pools = |nets: &[ipnet::IpNet], first| nets.iter().map(|net| Pool::new(*net, first)).collect();
        let store = Store::new(Timestamp::now());
        let mut service_pools: Vec<Pool> = pools(&parts.networks.services, FIRST_SERVICE);
        for (pool, address) in service_pools.iter_mut().zip(&parts.context.dns) {
            pool.claim(*address);
        }
        let engine = Arc::new(Self {
            context: parts.context,
            meshing: parts.meshing,
            router: parts.router,
            registry: Mutex::new(parts.registry),
            store: RwLock::new(Arc::new(store.clone())),
            state: Mutex::new(State {
                store,
                pods: BTreeMap::new(),
                pod_pools: pools(&parts.networks.pods, FIRST_POD),
                service_pools,
                sequence: 0,
                jobs: BTreeMap::new(),
                stuck: BTreeMap::new(),
                services: None,
            }),
            store_version: watch::Sender::new(0),
            programs: RwLock::new(Arc::new(parts.programs)),
            wake: Notify::new(),
            rounds: watch::Sender::new(0),
            events: Events::default(),
            zone: SharedZone::default(),
            closing: watch::Sender::new(false),
        });
        tokio::spawn(engine.clone().keep_reconciling());
        engine
    }

    /// The names of the mesh, for the name server.
    pub fn zone(&self) -> SharedZone {
        self.zone.clone()
    }

    /// What happened.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Changes whenever something may have changed.
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    /// Every pod as Kubernetes JSON, of one namespace or all.
    pub fn pods(&self, namespace: Option<&str>) -> Vec<serde_json::Value> {
        let state = self.state.lock();
        let pods = state.pods.iter().filter(|((ns, _), _)| namespace.is_none_or(|wanted| wanted == ns));
        // A pod is plain data with string keys, which JSON always holds.
        pods.map(|(_, entry)| serde_json::to_value(entry.as_pod()).unwrap_or_default()).collect()
    }

    /// How far the workloads are.
    pub fn rollout(&self) -> Rollout {
        let state = self.state.lock();
        let live: Vec<&PodEntry> = state.pods.values().filter(|e| e.deleted.is_none()).collect();
        let good = |entry: &&&PodEntry| {
            entry
                .handle
                .with_state(|s| s.ready() || s.over.as_ref().is_some_and(|o| o.phase == Phase::Succeeded))
        };
        let mut rollout =
            Rollout { pods: live.len(), ready: live.iter().filter(good).count(), ..Rollout::default() };
        for (key, object) in state.store.iter() {
            if let Some(stuck) = state.stuck.get(key) {
                rollout.waiting.push(format!("{key}: {}", stuck.message));
                continue;
            }
            let own: Vec<&&PodEntry> = live.iter().filter(|e| e.belongs_to(key)).collect();
            let ready = own.iter().filter(|e| e.handle.with_state(PodState::ready)).count();
            let wanted = match object.as_ref() {
                Object::Deployment(o) => o.spec.as_ref().map_or(0, |s| s.replicas.unwrap_or(1)),
                Object::StatefulSet(o) => o.spec.as_ref().map_or(0, |s| s.replicas.unwrap_or(1)),
                Object::DaemonSet(_) => 1,
                Object::Pod(_) => {
                    if own.iter().any(&good) {
                        continue;
                    }
                    1
                }
                _ => continue,
            };
            let wanted = usize::try_from(wanted).unwrap_or(0);
            let current = object.template().map(|t| build::revision(&t)).unwrap_or_default();
            let updated = own.iter().all(|e| e.revision == current || key.kind == Kind::Pod);
            if ready == wanted && own.len() == wanted && updated {
                continue;
            }
            let trouble = own.iter().find_map(|e| {
                e.handle.with_state(|s| {
                    if s.ready() { None } else { s.trouble() }.map(|t| (e.name().to_owned(), t))
                })
            });
            let why = trouble.map(|(pod, why)| format!("; pod/{pod}: {why}")).unwrap_or_default();
            rollout.waiting.push(format!("{key}: {ready} of {wanted} ready{why}"));
        }
        rollout
    }

    /// Ends every pod, the control plane's last, and waits until they are gone. Each gets at most `grace`.
    pub async fn close(&self, grace: Duration) {
        self.closing.send_replace(true);
        let all: Vec<(String, PodHandle)> = {
            let state = self.state.lock();
            state
                .pods
                .iter()
                .map(|((namespace, _), entry)| (namespace.clone(), entry.handle.clone()))
                .collect()
        };
        for control_plane in [false, true] {
            let group: Vec<PodHandle> = all
                .iter()
                .filter(|(namespace, _)| (namespace == crate::control_plane::NAMESPACE) == control_plane)
                .map(|(_, handle)| handle.clone())
                .collect();
            for handle in &group {
                handle.stop(Some(grace));
            }
            futures::future::join_all(group.iter().map(PodHandle::gone)).await;
        }
    }

    fn event(&self, severity: Severity, about: &ObjectKey, reason: &str, message: String) {
        self.events.push(severity, about.to_string(), reason, message);
    }

    /// After every change of objects: those who only read see the new ones.
    fn publish_store(&self, state: &State) {
        *self.store.write() = Arc::new(state.store.clone());
        self.store_version.send_modify(|version| *version += 1);
        self.wake.notify_one();
    }
}

/// How far the workloads are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Pods that are there and are to stay.
    pub pods: usize,
    /// Of these, how many are ready or ended well.
    pub ready: usize,
    /// What is not as wanted yet, one line each.
    pub waiting: Vec<String>,
}

impl Rollout {
    /// Whether everything is as wanted.
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What is waited for, as an error.
    pub fn problem(&self, after: Duration) -> Problem {
        Problem::new(
            "RM1558",
            "",
            format!("not everything is ready after {} s: {}", after.as_secs(), self.waiting.join("; ")),
            "`ringmail ps` shows the pods, `ringmail logs POD` what they say",
        )
    }
}

impl PodEntry {
    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn belongs_to(&self, key: &ObjectKey) -> bool {
        match &self.owner {
            Some(owner) => owner == key,
            None => key.kind == Kind::Pod && key.namespace == self.namespace() && key.name == self.name(),
        }
    }

    /// The pod with its status, as Kubernetes would show it.
    fn as_pod(&self) -> Pod {
        let mut pod = self.pod.clone();
        pod.status = Some(self.handle.status());
        pod.metadata.deletion_timestamp = self.deleted.map(Time);
        pod
    }

    fn view(&self) -> PodView {
        self.handle.with_state(|state| PodView {
            name: self.name().to_owned(),
            revision: self.revision.clone(),
            ordinal: self.ordinal,
            phase: state.phase(),
            ready_for: state.ready_for(),
            over_for: state.over.as_ref().map(|over| over.at.elapsed()),
            terminating: self.deleted.is_some(),
            sequence: self.sequence,
            restarts: state
                .containers
                .iter()
                .filter(|c| c.kind == ContainerKind::App)
                .map(|c| c.restarts)
                .sum(),
        })
    }
}

impl PodEvents for Engine {
    fn store(&self) -> Arc<Store> {
        self.store.read().clone()
    }

    fn programs(&self) -> Arc<Programs> {
        self.programs.read().clone()
    }

    fn store_changes(&self) -> watch::Receiver<u64> {
        self.store_version.subscribe()
    }

    fn changed(&self) {
        self.wake.notify_one();
    }

    fn event(&self, severity: Severity, about: String, reason: &'static str, message: String) {
        self.events.push(severity, about, reason, message);
    }
}
