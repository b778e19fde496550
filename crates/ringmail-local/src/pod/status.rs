//! A pod's state in Kubernetes' words.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState as K8sState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::state::{ContainerKind, ContainerRecord, ContainerState, Ended, PodState};
use crate::controllers::Phase;
use crate::env::Node;

/// The `status` of a pod.
pub(super) fn status(state: &PodState, node: &Node) -> PodStatus {
    let ip = |address: &std::net::IpAddr| address.to_string();
    let (initialized_at, ready_at) = state.since();
    let ready = state.ready();
    let condition = |type_: &str, holds: bool, at: Timestamp, reason: Option<(&str, String)>| PodCondition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        last_transition_time: Some(Time(at)),
        reason: reason.as_ref().map(|(reason, _)| (*reason).to_owned()),
        message: reason.map(|(_, message)| message),
        ..PodCondition::default()
    };
    let unready: Vec<&str> = state
        .containers
        .iter()
        .filter(|c| c.kind != ContainerKind::Init && !c.ready)
        .map(ContainerRecord::name)
        .collect();
    let why = (!ready).then(|| {
        if state.phase() == Phase::Succeeded {
            ("PodCompleted", String::new())
        } else {
            ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
        }
    });
    let of = |app: bool| {
        let containers = state.containers.iter().filter(move |c| (c.kind == ContainerKind::App) == app);
        let list: Vec<ContainerStatus> = containers.map(container).collect();
        (!list.is_empty()).then_some(list)
    };
    PodStatus {
        phase: Some(state.phase().as_str().to_owned()),
        reason: state.over.as_ref().map(|o| o.reason.to_owned()).filter(|r| !r.is_empty()),
        message: state.over.as_ref().map(|o| o.message.clone()).filter(|m| !m.is_empty()),
        conditions: Some(vec![
            condition("PodReadyToStartContainers", state.has_network, state.began, None),
            condition("Initialized", state.initialized(), initialized_at, None),
            condition("Ready", ready, ready_at, why.clone()),
            condition("ContainersReady", ready, ready_at, why),
            condition("PodScheduled", true, state.began, None),
        ]),
        host_ip: Some(node.ip.clone()),
        host_ips: Some(vec![HostIP { ip: node.ip.clone() }]),
        pod_ip: state.addresses.first().map(ip),
        pod_ips: Some(state.addresses.iter().map(|a| PodIP { ip: ip(a) }).collect()),
        start_time: Some(Time(state.began)),
        init_container_statuses: of(false),
        container_statuses: of(true),
        qos_class: Some("BestEffort".to_owned()),
        ..PodStatus::default()
    }
}

fn container(record: &ContainerRecord) -> ContainerStatus {
    let image = record.spec.image.clone().unwrap_or_default();
    ContainerStatus {
        name: record.spec.name.clone(),
        image_id: image.clone(),
        image,
        ready: record.ready || (record.kind == ContainerKind::Init && record.completed()),
        started: Some(record.started),
        restart_count: i32::try_from(record.restarts).unwrap_or(i32::MAX),
        state: Some(match &record.state {
            ContainerState::Waiting { reason, message } => K8sState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some((*reason).to_owned()),
                    message: Some(message.clone()).filter(|m| !m.is_empty()),
                }),
                ..K8sState::default()
            },
            ContainerState::Running { since } => K8sState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
                ..K8sState::default()
            },
            ContainerState::Terminated(ended) => terminated(ended),
        }),
        last_state: record.last.as_ref().map(terminated),
        ..ContainerStatus::default()
    }
}

fn terminated(ended: &Ended) -> K8sState {
    K8sState {
        terminated: Some(ContainerStateTerminated {
            exit_code: ended.exit.code,
            signal: ended.exit.signal,
            reason: Some(ended.reason.to_owned()),
            message: Some(ended.message.clone()).filter(|m| !m.is_empty()),
            started_at: Some(Time(ended.started)),
            finished_at: Some(Time(ended.finished)),
            ..ContainerStateTerminated::default()
        }),
        ..K8sState::default()
    }
}
