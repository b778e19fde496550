//! The pod that a user means by `pod/x`, `deploy/x` or `svc/x`.

use std::sync::Arc;

use super::{Engine, PodEntry};
use crate::endpoints;
use crate::logs::Log;
use crate::machine::Running;
use crate::manifest::{Kind, ObjectKey};
use crate::pod::{ContainerKind, PodHandle};
use crate::problem::Problem;

/// A pod, and the port that was asked for in it.
#[derive(Debug)]
pub struct Target {
    /// The pod's name.
    pub pod: String,
    /// The pod.
    pub handle: PodHandle,
    /// The port in the pod; for a service the one behind the service's.
    pub port: u16,
}

/// A container's output.
#[derive(Debug)]
pub struct ContainerLog {
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// Its output.
    pub log: Log,
}

/// A running container, its environment, and its name.
pub type RunningContainer = (Arc<dyn Running>, Vec<(String, String)>, String);

impl Engine {
    /// The pod behind a target: a ready one, where there is one.
    pub fn find_pod(&self, namespace: &str, target: &str, port: u16) -> Result<Target, Problem> {
        let (kind, name) = parse(target)?;
        if kind == Kind::Service {
            return self.behind_service(namespace, name, port);
        }
        let state = self.state.lock();
        let key = ObjectKey::new(kind, namespace, name);
        let mut pods: Vec<&PodEntry> = state
            .pods
            .values()
            .filter(|entry| match kind {
                Kind::Pod => entry.namespace() == namespace && entry.name() == name,
                _ => entry.belongs_to(&key),
            })
            .collect();
        // Ready ones first, then those that are not ending, then the youngest.
        pods.sort_by_key(|e| {
            (!endpoints::is_ready(&e.as_pod()), e.deleted.is_some(), std::cmp::Reverse(e.sequence))
        });
        if let Some(entry) = pods.first() {
            return Ok(Target { pod: entry.name().to_owned(), handle: entry.handle.clone(), port });
        }
        let here = state.pods.values().filter(|e| e.namespace() == namespace);
        let others: Vec<&str> = here.map(PodEntry::name).take(8).collect();
        let elsewhere = state.pods.values().find(|e| e.name() == name || e.belongs_to_named(kind, name));
        let hint = match elsewhere {
            Some(entry) => format!("there is one in namespace `{0}`: add `-n {0}`", entry.namespace()),
            None if others.is_empty() => format!("namespace `{namespace}` has no pods; `-n` chooses another"),
            None => format!("there is {}", others.join(", ")),
        };
        Err(Problem::new("RM1559", "", format!("{key} has no pod"), hint))
    }

    /// The outputs that a user means: of one container, of the applications, or of all.
    pub fn find_logs(
        &self,
        namespace: &str,
        target: &str,
        container: Option<&str>,
        all: bool,
        previous: bool,
    ) -> Result<Vec<ContainerLog>, Problem> {
        let target = self.find_pod(namespace, target, 0)?;
        target.handle.with_state(|state| {
            let chosen: Vec<_> = match container {
                Some(name) => state.containers.iter().filter(|c| c.name() == name).collect(),
                None if all => state.containers.iter().collect(),
                None => state.containers.iter().filter(|c| c.kind == ContainerKind::App).collect(),
            };
            if chosen.is_empty() {
                return Err(no_container(&target.pod, container, state));
            }
            chosen
                .into_iter()
                .map(|record| {
                    let log = if previous { record.previous_log.clone() } else { Some(record.log.clone()) };
                    let log = log.ok_or_else(|| {
                        Problem::new(
                            "RM1559",
                            "",
                            format!("container {} of pod/{} has not run before", record.name(), target.pod),
                            "leave `--previous` out",
                        )
                    })?;
                    Ok(ContainerLog { pod: target.pod.clone(), container: record.name().to_owned(), log })
                })
                .collect()
        })
    }

    /// A running container that a user means.
    pub fn find_container(
        &self,
        namespace: &str,
        target: &str,
        container: Option<&str>,
    ) -> Result<RunningContainer, Problem> {
        let target = self.find_pod(namespace, target, 0)?;
        target.handle.with_state(|state| {
            let record =
                state.container(container).ok_or_else(|| no_container(&target.pod, container, state))?;
            let running = record.running.clone().ok_or_else(|| {
                Problem::new(
                    "RM1559",
                    "",
                    format!("container {} of pod/{} does not run", record.name(), target.pod),
                    "`ringmail ps` and `ringmail logs` show why",
                )
            })?;
            Ok((running, record.env.clone(), record.name().to_owned()))
        })
    }

    fn behind_service(&self, namespace: &str, name: &str, port: u16) -> Result<Target, Problem> {
        let missing = |what: String, cure: &str| Problem::new("RM1559", "", what, cure);
        let found = self.endpoints_of(namespace, name);
        let Some(endpoint) = found.first() else {
            return Err(missing(
                format!("service/{name} in {namespace} does not exist or has no pod that is ready"),
                "`ringmail ps` shows the pods; `-n` chooses the namespace",
            ));
        };
        let target = if port == 0 {
            0
        } else {
            let ports = endpoint.ports.iter().find(|p| p.port == port && p.protocol == "TCP");
            ports.map(|p| p.target).ok_or_else(|| {
                let has: Vec<String> = endpoint.ports.iter().map(|p| p.port.to_string()).collect();
                missing(
                    format!("service/{name} in {namespace} has no port {port}, but {}", has.join(", ")),
                    "",
                )
            })?
        };
        let state = self.state.lock();
        let entry = state.pods.get(&(namespace.to_owned(), endpoint.pod.clone()));
        let entry =
            entry.ok_or_else(|| missing(format!("pod/{} has just ended", endpoint.pod), "try again"))?;
        Ok(Target { pod: endpoint.pod.clone(), handle: entry.handle.clone(), port: target })
    }
}

impl PodEntry {
    fn belongs_to_named(&self, kind: Kind, name: &str) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.kind == kind && owner.name == name)
    }
}

/// `deploy/web` or `web`, which is a pod.
fn parse(target: &str) -> Result<(Kind, &str), Problem> {
    let Some((kind, name)) = target.split_once('/') else { return Ok((Kind::Pod, target)) };
    match Kind::from_user(kind) {
        Some(
            kind @ (Kind::Pod
            | Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::Job
            | Kind::Service),
        ) => Ok((kind, name)),
        _ => Err(Problem::new(
            "RM1559",
            "",
            format!("`{target}` names no pod"),
            "write `pod/NAME`, `deploy/NAME`, `sts/NAME`, `ds/NAME`, `job/NAME` or `svc/NAME`",
        )),
    }
}

fn no_container(pod: &str, wanted: Option<&str>, state: &crate::pod::PodState) -> Problem {
    let has: Vec<&str> = state.containers.iter().map(|c| c.spec.name.as_str()).collect();
    let wanted = wanted.unwrap_or("an application");
    Problem::new(
        "RM1559",
        "",
        format!("pod/{pod} has no container {wanted}"),
        format!("it has {}", has.join(", ")),
    )
}
