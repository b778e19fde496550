//! What is known of a pod and its containers.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;

use crate::controllers::Phase;
use crate::logs::Log;
use crate::machine::{Exit, Running};

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// Runs to its end before the next one.
    Init,
    /// Starts before the applications and ends after them.
    Sidecar,
    /// What the pod is for.
    App,
}

/// How a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// It does not run.
    Waiting {
        /// One word, such as `CrashLoopBackOff`.
        reason: &'static str,
        /// One sentence, or nothing.
        message: String,
    },
    /// It runs.
    Running {
        /// Since then.
        since: Timestamp,
    },
    /// It has ended.
    Terminated(Ended),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub exit: Exit,
    /// `Completed`, `Error`, …
    pub reason: &'static str,
    /// One sentence, or nothing.
    pub message: String,
    /// When it started.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
}

/// Everything known of a container.
#[derive(Clone)]
pub struct ContainerRecord {
    /// Its part of the pod's spec.
    pub spec: Container,
    /// What it is for.
    pub kind: ContainerKind,
    /// How it is doing.
    pub state: ContainerState,
    /// How its run before ended.
    pub last: Option<Ended>,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it may be used.
    pub ready: bool,
    /// Whether it has started: its startup probe said so.
    pub started: bool,
    /// The output of its present run, or its last.
    pub log: Log,
    /// The output of its run before.
    pub previous_log: Option<Log>,
    /// The running program.
    pub running: Option<Arc<dyn Running>>,
    /// The environment of its present run, for programs beside it.
    pub env: Vec<(String, String)>,
    /// Whether it was ever started.
    pub ran: bool,
    /// What its last probe complained about.
    pub trouble: Option<String>,
}

impl fmt::Debug for ContainerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerRecord")
            .field("name", &self.spec.name)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl ContainerRecord {
    fn new(spec: Container, kind: ContainerKind) -> Self {
        Self {
            spec,
            kind,
            state: ContainerState::Waiting { reason: "PodInitializing", message: String::new() },
            last: None,
            restarts: 0,
            ready: false,
            started: false,
            log: Log::default(),
            previous_log: None,
            running: None,
            env: Vec::new(),
            ran: false,
            trouble: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Whether it ended well and will not start again.
    pub fn completed(&self) -> bool {
        matches!(&self.state, ContainerState::Terminated(ended) if ended.exit.code == 0)
    }
}

/// Everything known of a pod.
#[derive(Clone, Debug)]
pub struct PodState {
    /// Its containers, init containers and sidecars first, in the order of the spec.
    pub containers: Vec<ContainerRecord>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When its worker began.
    pub began: Timestamp,
    /// Whether its network stands.
    pub has_network: bool,
    /// Set when the pod is over.
    pub over: Option<Over>,
    /// Since when each condition is as it is: initialized, ready.
    changed: [(bool, Timestamp, Instant); 2],
}

/// How a pod ended.
#[derive(Clone, Debug)]
pub struct Over {
    /// `Succeeded` or `Failed`.
    pub phase: Phase,
    /// One word, or nothing.
    pub reason: &'static str,
    /// One sentence, or nothing.
    pub message: String,
    /// When.
    pub at: Instant,
}

impl PodState {
    /// The state of a pod that is about to begin.
    pub fn new(pod: &Pod, addresses: Vec<IpAddr>, now: Timestamp) -> Self {
        let spec = pod.spec.as_ref();
        let inits = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten()).map(|container| {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            ContainerRecord::new(
                container.clone(),
                if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init },
            )
        });
        let apps = spec.into_iter().flat_map(|s| &s.containers);
        let apps = apps.map(|container| ContainerRecord::new(container.clone(), ContainerKind::App));
        let instant = Instant::now();
        Self {
            containers: inits.chain(apps).collect(),
            addresses,
            began: now,
            has_network: false,
            over: None,
            changed: [(false, now, instant); 2],
        }
    }

    /// Its phase.
    pub fn phase(&self) -> Phase {
        if let Some(over) = &self.over {
            return over.phase;
        }
        let started = self.containers.iter().any(|c| c.kind == ContainerKind::App && c.ran);
        if self.initialized() && started { Phase::Running } else { Phase::Pending }
    }

    /// Whether the init containers are through and the sidecars started once.
    pub fn initialized(&self) -> bool {
        self.containers.iter().all(|c| match c.kind {
            ContainerKind::Init => c.completed(),
            ContainerKind::Sidecar => c.started || c.restarts > 0,
            ContainerKind::App => true,
        })
    }

    /// Whether all of its containers may be used.
    pub fn ready(&self) -> bool {
        let containers = self.containers.iter().filter(|c| c.kind != ContainerKind::Init);
        self.over.is_none()
            && containers.clone().next().is_some()
            && containers.into_iter().all(|c| c.ready || (c.kind == ContainerKind::App && c.completed()))
            && self.containers.iter().any(|c| c.kind == ContainerKind::App && c.ready)
    }

    /// For how long it has been ready.
    pub fn ready_for(&self) -> Option<Duration> {
        let (ready, _, since) = self.changed[1];
        (ready && self.ready()).then(|| since.elapsed())
    }

    /// Since when the conditions initialized and ready are as they are.
    pub fn since(&self) -> (Timestamp, Timestamp) {
        (self.changed[0].1, self.changed[1].1)
    }

    /// Notes the time at which a condition changed; to be called after every change.
    pub fn note(&mut self, now: Timestamp) {
        for (index, value) in [self.initialized(), self.ready()].into_iter().enumerate() {
            if self.changed[index].0 != value {
                self.changed[index] = (value, now, Instant::now());
            }
        }
    }

    /// How often its containers were started again.
    pub fn restarts(&self) -> u32 {
        self.containers.iter().map(|c| c.restarts).sum()
    }

    /// A container by name; without one, the first application.
    pub fn container(&self, name: Option<&str>) -> Option<&ContainerRecord> {
        match name {
            Some(name) => self.containers.iter().find(|c| c.name() == name),
            None => self.containers.iter().find(|c| c.kind == ContainerKind::App),
        }
    }

    /// Why it is not ready, for people: the first container with something to say.
    pub fn trouble(&self) -> Option<String> {
        self.containers.iter().find_map(|c| match &c.state {
            ContainerState::Waiting { reason, message } if !reason.contains("Initializing") => {
                let last =
                    c.last.as_ref().map(|l| format!(" (last exit code {})", l.exit.code)).unwrap_or_default();
                let message = if message.is_empty() { String::new() } else { format!(": {message}") };
                Some(format!("container {} is in {reason}{message}{last}", c.name()))
            }
            ContainerState::Running { .. } if !c.ready && c.kind != ContainerKind::Init => {
                let why = c.trouble.as_ref().map(|t| format!(": {t}")).unwrap_or_default();
                Some(format!("container {} runs and is not ready yet{why}", c.name()))
            }
            _ => None,
        })
    }
}
