//! Kubernetes objects as their JSON has them, down to the fields that are read.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct RawMeta {
    pub(crate) metadata: RawMetadata,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RawMetadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) creation_timestamp: String,
    pub(crate) deletion_timestamp: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) owner_references: Vec<RawOwner>,
}

#[derive(Deserialize)]
pub(crate) struct RawOwner {
    pub(crate) kind: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) uid: String,
    #[serde(default)]
    pub(crate) controller: bool,
}

#[derive(Deserialize)]
pub(crate) struct RawPod {
    pub(crate) metadata: RawMetadata,
    pub(crate) spec: RawPodSpec,
    #[serde(default)]
    pub(crate) status: RawPodStatus,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RawPodSpec {
    pub(crate) containers: Vec<RawContainer>,
    pub(crate) init_containers: Vec<RawContainer>,
    pub(crate) service_account_name: String,
    pub(crate) service_account: String,
    pub(crate) node_name: String,
    pub(crate) host_network: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawContainer {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) restart_policy: String,
    #[serde(default)]
    pub(crate) ports: Vec<RawPort>,
    pub(crate) startup_probe: Option<RawProbe>,
    pub(crate) liveness_probe: Option<RawProbe>,
    pub(crate) readiness_probe: Option<RawProbe>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawPort {
    pub(crate) container_port: u16,
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) protocol: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawProbe {
    pub(crate) http_get: Option<RawHttpGet>,
    pub(crate) grpc: Option<RawGrpc>,
}

#[derive(Deserialize)]
pub(crate) struct RawHttpGet {
    #[serde(default)]
    pub(crate) path: String,
    pub(crate) port: RawIntOrString,
    #[serde(default)]
    pub(crate) scheme: String,
}

#[derive(Deserialize)]
pub(crate) struct RawGrpc {
    pub(crate) port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum RawIntOrString {
    Number(u16),
    Text(String),
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct RawPodStatus {
    pub(crate) phase: String,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: String,
    #[serde(rename = "podIPs")]
    pub(crate) pod_ips: Vec<RawIp>,
    #[serde(rename = "hostIP")]
    pub(crate) host_ip: String,
    #[serde(rename = "hostIPs")]
    pub(crate) host_ips: Vec<RawIp>,
    pub(crate) conditions: Vec<RawCondition>,
}

#[derive(Deserialize)]
pub(crate) struct RawIp {
    pub(crate) ip: String,
}

#[derive(Deserialize)]
pub(crate) struct RawCondition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
}

#[derive(Deserialize)]
pub(crate) struct RawService {
    pub(crate) metadata: RawMetadata,
    pub(crate) spec: RawServiceSpec,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RawServiceSpec {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    pub(crate) cluster_ips: Vec<String>,
    pub(crate) ip_families: Vec<String>,
    pub(crate) ports: Vec<RawServicePort>,
    pub(crate) selector: Option<BTreeMap<String, String>>,
    pub(crate) publish_not_ready_addresses: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawServicePort {
    #[serde(default)]
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) target_port: Option<RawIntOrString>,
    #[serde(default)]
    pub(crate) protocol: String,
}

#[derive(Deserialize)]
pub(crate) struct RawNode {
    pub(crate) metadata: RawMetadata,
    #[serde(default)]
    pub(crate) status: RawNodeStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct RawNodeStatus {
    pub(crate) addresses: Vec<RawNodeAddress>,
}

#[derive(Deserialize)]
pub(crate) struct RawNodeAddress {
    pub(crate) address: String,
}
