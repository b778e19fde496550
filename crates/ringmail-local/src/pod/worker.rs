//! The order of things in a pod's life: network, volumes, init containers and sidecars, applications, end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::container::{self, Backoff};
use super::hooks;
use super::spec::PodFacts;
use super::state::{ContainerKind, ContainerRecord, ContainerState, Over, PodState};
use super::status;
use crate::controllers::Phase;
use crate::machine::{Machine, PodSandbox};
use crate::programs::Programs;
use crate::protocol::Severity;
use crate::sandbox::{Mount, Profile};
use crate::store::Store;
use crate::tokens::Bearer;
use crate::volumes::{PodVolumes, Users, VolumeContext, VolumeError};

/// What all pods share.
#[derive(Clone)]
pub struct PodContext {
    /// Makes pods and containers.
    pub machine: Arc<dyn Machine>,
    /// What volumes need.
    pub volumes: VolumeContext,
    /// The name servers.
    pub dns: Vec<IpAddr>,
    /// The domain of services.
    pub domain: String,
}

/// What pods ask of, and tell to, the rest of the mesh.
pub trait PodEvents: Send + Sync + 'static {
    /// The objects as they are now.
    fn store(&self) -> Arc<Store>;

    /// What stands for images.
    fn programs(&self) -> Arc<Programs>;

    /// Wakes when objects change.
    fn store_changes(&self) -> watch::Receiver<u64>;

    /// A pod's state changed.
    fn changed(&self);

    /// Something happened to a pod.
    fn event(&self, severity: Severity, about: String, reason: &'static str, message: String);
}

/// A pod to be run.
#[derive(Clone, Debug)]
pub struct PodPlan {
    /// The pod, as it is after injection.
    pub pod: Pod,
    /// The containers that injection added, with what they may do.
    pub trusted: BTreeMap<String, Profile>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who its tokens name.
    pub bearer: Bearer,
    /// Directories that live longer than the pod, by volume name.
    pub claims: BTreeMap<String, PathBuf>,
    /// The uids of the containers that injection added.
    pub users: Users,
}

/// A pod that lives, or has lived. Clones are the same pod.
#[derive(Clone)]
pub struct PodHandle(Arc<Shared>);

pub(super) struct Shared {
    context: PodContext,
    events: Arc<dyn PodEvents>,
    plan: PodPlan,
    state: Mutex<PodState>,
    sandbox: Mutex<Option<Arc<dyn PodSandbox>>>,
    volumes: Mutex<Option<PodVolumes>>,
    /// The grace with which the pod is to end.
    stop: watch::Sender<Option<Duration>>,
    gone: watch::Sender<bool>,
}

impl std::fmt::Debug for PodHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PodHandle").field(&self.0.plan.pod.metadata.name).finish()
    }
}

impl PodHandle {
    /// Begins the life of a pod, in a task of its own.
    pub fn start(context: PodContext, events: Arc<dyn PodEvents>, plan: PodPlan) -> Self {
        let state = PodState::new(&plan.pod, plan.addresses.clone(), Timestamp::now());
        let shared = Arc::new(Shared {
            context,
            events,
            plan,
            state: Mutex::new(state),
            sandbox: Mutex::new(None),
            volumes: Mutex::new(None),
            stop: watch::Sender::new(None),
            gone: watch::Sender::new(false),
        });
        tokio::spawn(life(shared.clone()));
        Self(shared)
    }

    /// Ends the pod: applications first, sidecars after them. A second call can only shorten the grace. `None` is the spec's grace.
    pub fn stop(&self, grace: Option<Duration>) {
        let grace = grace.unwrap_or_else(|| self.0.grace());
        self.0.stop.send_if_modified(|stop| {
            let shorter = stop.is_none_or(|known| grace < known);
            if shorter {
                *stop = Some(grace);
            }
            shorter
        });
    }

    /// Whether nothing of it is left but what is known of it.
    pub fn is_gone(&self) -> bool {
        *self.0.gone.borrow()
    }

    /// Waits until nothing of it is left.
    pub async fn gone(&self) {
        let mut gone = self.0.gone.subscribe();
        // The sender lives as long as this handle.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// What is known of it.
    pub fn with_state<T>(&self, look: impl FnOnce(&PodState) -> T) -> T {
        look(&self.0.state.lock())
    }

    /// Its status in Kubernetes' words.
    pub fn status(&self) -> PodStatus {
        status::status(&self.0.state.lock(), &self.0.context.volumes.node)
    }

    /// Its network, while it has one.
    pub fn sandbox(&self) -> Option<Arc<dyn PodSandbox>> {
        self.0.sandbox()
    }
}

impl Shared {
    pub(super) fn context(&self) -> &PodContext {
        &self.context
    }

    pub(super) fn events(&self) -> &dyn PodEvents {
        self.events.as_ref()
    }

    pub(super) fn sandbox(&self) -> Option<Arc<dyn PodSandbox>> {
        self.sandbox.lock().clone()
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        self.plan.addresses.first().copied()
    }

    pub(super) fn profile(&self, container: &str) -> Profile {
        self.plan.trusted.get(container).copied().unwrap_or(Profile::Application)
    }

    pub(super) fn restart_policy(&self) -> &str {
        self.plan.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
    }

    pub(super) fn grace(&self) -> Duration {
        let seconds =
            self.plan.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    pub(super) fn facts(&self) -> PodFacts {
        let spec = self.plan.pod.spec.as_ref();
        let name = self.plan.pod.metadata.name.as_deref().unwrap_or_default();
        let hostname = spec.and_then(|s| s.hostname.as_deref()).unwrap_or(name);
        PodFacts {
            hostname: hostname.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned(),
            addresses: self.plan.addresses.clone(),
            dns: self.context.dns.clone(),
            domain: self.context.domain.clone(),
        }
    }

    pub(super) fn pod_with_status(&self) -> Pod {
        let mut pod = self.plan.pod.clone();
        pod.status = Some(status::status(&self.state.lock(), &self.context.volumes.node));
        pod
    }

    pub(super) fn record(&self, index: usize) -> ContainerRecord {
        self.state.lock().containers[index].clone()
    }

    pub(super) fn name_of(&self, index: usize) -> String {
        self.state.lock().containers[index].name().to_owned()
    }

    pub(super) fn kind_of(&self, index: usize) -> ContainerKind {
        self.state.lock().containers[index].kind
    }

    pub(super) fn mounts(
        &self,
        container: &Container,
        env: &[(String, String)],
    ) -> Result<Vec<Mount>, VolumeError> {
        match self.volumes.lock().as_mut() {
            Some(volumes) => volumes.mounts(container, env),
            None => Ok(Vec::new()),
        }
    }

    /// Changes the state and tells everybody.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut PodState) -> T) -> T {
        let result = self.quietly(change);
        self.events.changed();
        result
    }

    /// Changes what nobody waits for.
    pub(super) fn quietly<T>(&self, change: impl FnOnce(&mut PodState) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        state.note(Timestamp::now());
        result
    }

    pub(super) fn event(&self, severity: Severity, reason: &'static str, message: String) {
        self.events.event(severity, self.about(), reason, message);
    }

    /// Waits; less long when objects change, since what was missing may be there now.
    pub(super) async fn wait_or_store_change(&self, pause: Duration) {
        if pause.is_zero() {
            return;
        }
        let mut changes = self.events.store_changes();
        changes.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = changes.changed() => {}
        }
    }

    fn about(&self) -> String {
        let metadata = &self.plan.pod.metadata;
        format!(
            "pod/{} in {}",
            metadata.name.as_deref().unwrap_or_default(),
            metadata.namespace.as_deref().unwrap_or_default()
        )
    }

    fn indices(&self, kinds: &[ContainerKind]) -> Vec<usize> {
        let state = self.state.lock();
        let matching = state.containers.iter().enumerate().filter(|(_, c)| kinds.contains(&c.kind));
        matching.map(|(index, _)| index).collect()
    }
}

async fn life(me: Arc<Shared>) {
    let mut stop = me.stop.subscribe();
    let mut sidecars = JoinSet::new();
    let over = tokio::select! {
        over = live(&me, &mut sidecars) => over,
        over = deadline(&me) => over,
        _ = stop.wait_for(Option::is_some) => ended_as(&me),
    };
    // From here on nothing is started again.
    sidecars.shutdown().await;
    end(&me, &mut stop).await;
    let sandbox = me.sandbox.lock().take();
    if let Some(sandbox) = sandbox {
        sandbox.remove().await;
    }
    if let Some(volumes) = me.volumes.lock().take() {
        volumes.remove();
    }
    me.quietly(|state| {
        state.over = Some(over);
        state.has_network = false;
        for record in &mut state.containers {
            record.ready = false;
            if let ContainerState::Waiting { .. } = record.state
                && let Some(last) = record.last.take()
            {
                record.state = ContainerState::Terminated(last);
            }
        }
    });
    me.gone.send_replace(true);
    me.events.changed();
}

/// Everything up to the end of the applications.
async fn live(me: &Arc<Shared>, sidecars: &mut JoinSet<bool>) -> Over {
    network(me).await;
    volumes(me).await;
    let refresh = tokio::spawn(keep_volumes_fresh(me.clone()));
    let _stops_with_this = AbortOnDrop(refresh);
    for index in me.indices(&[ContainerKind::Init, ContainerKind::Sidecar]) {
        if me.kind_of(index) == ContainerKind::Sidecar {
            sidecars.spawn(container::supervise(me.clone(), index));
            has_started(me, index).await;
        } else if !container::supervise(me.clone(), index).await {
            let message = format!("init container {} failed", me.name_of(index));
            return Over { phase: Phase::Failed, reason: "", message, at: Instant::now() };
        }
    }
    let apps = me.indices(&[ContainerKind::App]);
    let results = join_all(apps.into_iter().map(|index| container::supervise(me.clone(), index))).await;
    let phase = if results.into_iter().all(|good| good) { Phase::Succeeded } else { Phase::Failed };
    Over { phase, reason: "", message: String::new(), at: Instant::now() }
}

async fn network(me: &Arc<Shared>) {
    let mut backoff = Backoff::default();
    let metadata = &me.plan.pod.metadata;
    let name = format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    );
    loop {
        match me.context.machine.create_pod(name.clone(), me.plan.addresses.clone()).await {
            Ok(sandbox) => {
                *me.sandbox.lock() = Some(sandbox);
                me.change(|state| state.has_network = true);
                return;
            }
            Err(error) => {
                me.event(Severity::Warning, "FailedCreatePodSandBox", error.to_string());
                tokio::time::sleep(backoff.next(Duration::ZERO).max(Duration::from_millis(200))).await;
            }
        }
    }
}

async fn volumes(me: &Arc<Shared>) {
    let mut backoff = Backoff::default();
    loop {
        let store = me.events.store();
        let made = PodVolumes::create(
            &me.context.volumes,
            &store,
            &me.pod_with_status(),
            &me.plan.bearer,
            &me.plan.claims,
            &me.plan.users,
        );
        match made {
            Ok(volumes) => {
                *me.volumes.lock() = Some(volumes);
                return;
            }
            Err(error) => {
                me.event(Severity::Warning, "FailedMount", error.to_string());
                let message = error.to_string();
                me.change(|state| {
                    for record in &mut state.containers {
                        record.state =
                            ContainerState::Waiting { reason: "ContainerCreating", message: message.clone() };
                    }
                });
                let pause = backoff.next(Duration::ZERO).max(Duration::from_millis(200));
                me.wait_or_store_change(pause).await;
            }
        }
    }
}

/// Tokens before they end; config maps and secrets when they change.
async fn keep_volumes_fresh(me: Arc<Shared>) {
    let mut changes = me.events.store_changes();
    loop {
        let store = me.events.store();
        let pod = me.pod_with_status();
        let next = match me.volumes.lock().as_mut() {
            None => return,
            Some(volumes) => {
                volumes.refresh(&me.context.volumes, &store, &pod, &me.plan.bearer, SystemTime::now())
            }
        };
        let next = next.unwrap_or_else(|error| {
            me.event(Severity::Warning, "FailedMount", error.to_string());
            Some(Duration::from_secs(10))
        });
        let wait = next.unwrap_or(Duration::from_hours(1)).max(Duration::from_millis(100));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = changes.changed() => {}
        }
    }
}

async fn has_started(me: &Arc<Shared>, index: usize) {
    loop {
        if me.state.lock().containers[index].started {
            return;
        }
        // The state is changed by this pod's own tasks only; a short look is simpler than one more channel.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn deadline(me: &Arc<Shared>) -> Over {
    let seconds = me.plan.pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
    match seconds.and_then(|s| u64::try_from(s).ok()) {
        None => std::future::pending().await,
        Some(seconds) => {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Over {
                phase: Phase::Failed,
                reason: "DeadlineExceeded",
                message: format!("the pod ran longer than activeDeadlineSeconds ({seconds})"),
                at: Instant::now(),
            }
        }
    }
}

/// How a pod that is told to end ends: as its applications do.
fn ended_as(me: &Arc<Shared>) -> Over {
    let state = me.state.lock();
    let good =
        state.containers.iter().filter(|c| c.kind == ContainerKind::App).all(ContainerRecord::completed);
    Over {
        phase: if good { Phase::Succeeded } else { Phase::Failed },
        reason: "",
        message: String::new(),
        at: Instant::now(),
    }
}

/// Ends what runs: init containers and applications together, then the sidecars, the last one first.
async fn end(me: &Arc<Shared>, stop: &mut watch::Receiver<Option<Duration>>) {
    let begin = Instant::now();
    let grace = stop.borrow_and_update().unwrap_or_else(|| me.grace());
    let orderly = async {
        let first = me.indices(&[ContainerKind::Init, ContainerKind::App]);
        join_all(first.into_iter().map(|index| stop_container(me, index, grace))).await;
        let mut sidecars = me.indices(&[ContainerKind::Sidecar]);
        sidecars.reverse();
        for index in sidecars {
            // A sidecar gets its chance even when the applications used the grace up.
            let left = grace.saturating_sub(begin.elapsed()).max(Duration::from_secs(2).min(grace));
            stop_container(me, index, left).await;
        }
    };
    let hurried = async {
        // A later call with less grace.
        loop {
            if stop.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let grace = stop.borrow_and_update().unwrap_or_default();
            tokio::time::sleep(grace.saturating_sub(begin.elapsed())).await;
            let running: Vec<_> =
                me.state.lock().containers.iter().filter_map(|c| c.running.clone()).collect();
            for running in running {
                running.kill();
            }
        }
    };
    tokio::select! {
        () = orderly => {}
        () = hurried => {}
    }
}

async fn stop_container(me: &Arc<Shared>, index: usize, grace: Duration) {
    let record = me.record(index);
    let Some(running) = record.running.clone() else { return };
    let started = match record.state {
        ContainerState::Running { since } => since,
        _ => Timestamp::now(),
    };
    let exit = hooks::stop(&record.spec, &running, &record.env, me.address(), grace).await;
    me.quietly(|state| {
        let record = &mut state.containers[index];
        record.state = ContainerState::Terminated(super::state::Ended {
            exit,
            reason: if exit.code == 0 { "Completed" } else { "Error" },
            message: String::new(),
            started,
            finished: Timestamp::now(),
        });
        record.running = None;
        record.ready = false;
    });
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
