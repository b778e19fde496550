//! Kubernetes JSON into what the registry keeps of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::object::{
    Controller, Namespace, Node, Object, ObjectName, Owner, Phase, Pod, PodPort, Probe, ProbeAction,
    Protocol, Service, ServiceKind, ServicePortSpec, TargetPort, config,
};
use crate::ports::PortSet;
use crate::raw::{
    RawIntOrString, RawIp, RawMeta, RawMetadata, RawNode, RawOwner, RawPod, RawPort, RawProbe, RawService,
    RawServicePort,
};

/// Why a JSON value is no Kubernetes object that the registry could keep.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// A field is missing or has the wrong form.
    #[error("RM1602: {object}: field `{field}`: {problem}")]
    Field {
        /// The object as far as it is known: kind, namespace, name.
        object: String,
        /// The path of the field, such as `spec.ports[0].port`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It is an object of a kind that is needed, in a version that is not understood.
    #[error("RM1606: {object}: `apiVersion` is `{found}`, expected `{expected}`")]
    Version {
        /// The object: kind, namespace, name.
        object: String,
        /// The version that came.
        found: String,
        /// The version that is read.
        expected: &'static str,
    },
}

/// Reads one object; `None` for a kind that no answer depends on.
pub(crate) fn object(mut value: Value) -> Result<Option<Object>, ObjectError> {
    strip_nulls(&mut value);
    let described = describe(&value);
    let kind = text(&value, "kind").ok_or_else(|| field(&described, "kind", "is missing"))?;
    let Some((expected, lower)) =
        KINDS.iter().find(|(name, ..)| *name == kind).map(|(_, version, lower)| (*version, *lower))
    else {
        return Ok(None);
    };
    let found = text(&value, "apiVersion").unwrap_or_default();
    if found != expected {
        return Err(ObjectError::Version { object: described, found: found.to_owned(), expected });
    }
    let object = match lower {
        "pod" => Object::Pod(pod(&described, read(&described, value)?)?),
        "service" => Object::Service(service(&described, read(&described, value)?)?),
        "namespace" => Object::Namespace(namespace(&described, read(&described, value)?)?),
        "node" => Object::Node(node(&described, &read(&described, value)?)?),
        _ => Object::Controller(controller(&described, lower, read(&described, value)?)?),
    };
    Ok(Some(object))
}

/// The kinds that are kept: as `kind` spells them, their `apiVersion`, and in lower case.
const KINDS: [(&str, &str, &str); 11] = [
    ("Pod", "v1", "pod"),
    ("Service", "v1", "service"),
    ("Namespace", "v1", "namespace"),
    ("Node", "v1", "node"),
    ("ReplicationController", "v1", "replicationcontroller"),
    ("ReplicaSet", "apps/v1", "replicaset"),
    ("Deployment", "apps/v1", "deployment"),
    ("StatefulSet", "apps/v1", "statefulset"),
    ("DaemonSet", "apps/v1", "daemonset"),
    ("Job", "batch/v1", "job"),
    ("CronJob", "batch/v1", "cronjob"),
];

fn pod(object: &str, raw: RawPod) -> Result<Pod, ObjectError> {
    let name = namespaced(object, &raw.metadata)?;
    let uid = required(object, "metadata.uid", &raw.metadata.uid)?;
    // An init container that restarts always is a sidecar: it runs beside the others and its ports and probes count.
    let sidecars = raw.spec.init_containers.iter().filter(|container| container.restart_policy == "Always");
    let mut ports = Vec::new();
    let mut probes = Vec::new();
    for container in raw.spec.containers.iter().chain(sidecars) {
        let own: Vec<_> = container.ports.iter().map(|port| pod_port(&container.name, port)).collect();
        let given = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
        for probe in given.into_iter().flatten() {
            probes.extend(self::probe(object, &container.name, &own, probe));
        }
        ports.extend(own);
    }
    probes.sort_unstable();
    probes.dedup();
    let named =
        |wanted: &str| ports.iter().find(|port| port.name.as_deref() == Some(wanted)).map(|port| port.number);
    let annotations = mesh_annotations(raw.metadata.annotations);
    let set = |option| port_set(object, &annotations, option, named);
    let (skip_inbound, skip_outbound) = (set("skip-inbound-ports"), set("skip-outbound-ports"));
    let opaque = set("opaque-ports");
    let require_identity = set("proxy-require-identity-inbound-ports").unwrap_or_default();
    Ok(Pod {
        skip_inbound: skip_inbound.unwrap_or_default(),
        skip_outbound: skip_outbound.unwrap_or_default(),
        opaque,
        require_identity,
        name,
        uid,
        created: raw.metadata.creation_timestamp,
        ips: addresses("status", "podIPs", object, raw.status.pod_ip, raw.status.pod_ips)?,
        host_ips: addresses("status", "hostIPs", object, raw.status.host_ip, raw.status.host_ips)?,
        labels: raw.metadata.labels,
        annotations,
        service_account: first_given(raw.spec.service_account_name, raw.spec.service_account, "default"),
        node: (!raw.spec.node_name.is_empty()).then_some(raw.spec.node_name),
        phase: phase(object, &raw.status.phase)?,
        ready: raw
            .status
            .conditions
            .iter()
            .any(|condition| condition.kind == "Ready" && condition.status == "True"),
        terminating: !raw.metadata.deletion_timestamp.is_empty(),
        host_network: raw.spec.host_network,
        ports,
        probes,
        owners: owners(raw.metadata.owner_references),
    })
}

fn pod_port(container: &str, raw: &RawPort) -> PodPort {
    let name = (!raw.name.is_empty()).then(|| raw.name.clone());
    PodPort {
        container: container.to_owned(),
        name,
        number: raw.container_port,
        protocol: protocol(&raw.protocol),
    }
}

fn probe(object: &str, container: &str, ports: &[PodPort], raw: &RawProbe) -> Option<Probe> {
    let container = container.to_owned();
    if let Some(grpc) = &raw.grpc {
        return Some(Probe { container, port: grpc.port, action: ProbeAction::Grpc });
    }
    let get = raw.http_get.as_ref()?;
    if get.scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let port = match &get.port {
        RawIntOrString::Number(number) => Some(*number),
        RawIntOrString::Text(name) => {
            let named = ports.iter().find(|port| port.name.as_deref() == Some(name)).map(|port| port.number);
            named.or_else(|| name.parse().ok())
        }
    };
    let Some(port) = port else {
        tracing::warn!(
            "RM1605: {object}: a probe of container `{container}` names port {:?}, which it does not declare",
            get.port
        );
        return None;
    };
    let path = get.path.split(['?', '#']).next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some(Probe { container, port, action: ProbeAction::HttpGet(path) })
}

fn service(object: &str, raw: RawService) -> Result<Service, ObjectError> {
    let name = namespaced(object, &raw.metadata)?;
    let kind = match raw.spec.kind.as_str() {
        "" | "ClusterIP" => ServiceKind::ClusterIp,
        "NodePort" => ServiceKind::NodePort,
        "LoadBalancer" => ServiceKind::LoadBalancer,
        "ExternalName" => ServiceKind::ExternalName,
        other => return Err(field(object, "spec.type", &format!("`{other}` is no type of service"))),
    };
    let ports: Vec<_> = raw.spec.ports.into_iter().map(service_port).collect();
    let named =
        |wanted: &str| ports.iter().find(|port| port.name.as_deref() == Some(wanted)).map(|port| port.port);
    let annotations = mesh_annotations(raw.metadata.annotations);
    let headless = raw.spec.cluster_ip == "None";
    let given: Vec<_> = raw.spec.cluster_ips.into_iter().filter(|ip| ip != "None").collect();
    let primary = if headless { String::new() } else { raw.spec.cluster_ip };
    let cluster_ips = addresses_of("spec", "clusterIPs", object, primary, given)?;
    let prefers_ipv6 = match raw.spec.ip_families.first().map(String::as_str) {
        Some(family) => family == "IPv6",
        None => cluster_ips.first().is_some_and(IpAddr::is_ipv6),
    };
    Ok(Service {
        opaque: port_set(object, &annotations, "opaque-ports", named),
        name,
        uid: raw.metadata.uid.into(),
        created: raw.metadata.creation_timestamp,
        cluster_ips,
        headless,
        kind,
        ports,
        selector: raw.spec.selector,
        annotations,
        publish_not_ready: raw.spec.publish_not_ready_addresses,
        prefers_ipv6,
    })
}

fn service_port(raw: RawServicePort) -> ServicePortSpec {
    let target = match raw.target_port {
        None | Some(RawIntOrString::Number(0)) => TargetPort::Number(raw.port),
        Some(RawIntOrString::Number(number)) => TargetPort::Number(number),
        Some(RawIntOrString::Text(name)) => match name.parse() {
            Ok(number) => TargetPort::Number(number),
            Err(_) => TargetPort::Name(name),
        },
    };
    ServicePortSpec {
        name: (!raw.name.is_empty()).then_some(raw.name),
        port: raw.port,
        target,
        protocol: protocol(&raw.protocol),
    }
}

fn namespace(object: &str, raw: RawMeta) -> Result<Namespace, ObjectError> {
    let annotations = mesh_annotations(raw.metadata.annotations);
    Ok(Namespace {
        name: required(object, "metadata.name", &raw.metadata.name)?,
        labels: raw.metadata.labels,
        opaque: port_set(object, &annotations, "opaque-ports", |_| None),
        annotations,
    })
}

fn node(object: &str, raw: &RawNode) -> Result<Node, ObjectError> {
    let name = required(object, "metadata.name", &raw.metadata.name)?;
    // Node addresses also hold host names: those are not ours to resolve.
    let addresses = raw.status.addresses.iter().filter_map(|address| address.address.parse().ok()).collect();
    Ok(Node { name, addresses })
}

fn controller(object: &str, kind: &str, raw: RawMeta) -> Result<Controller, ObjectError> {
    let name = namespaced(object, &raw.metadata)?;
    Ok(Controller {
        kind: kind.into(),
        name,
        uid: raw.metadata.uid.into(),
        owners: owners(raw.metadata.owner_references),
    })
}

fn owners(raw: Vec<RawOwner>) -> Vec<Owner> {
    raw.into_iter()
        .map(|owner| Owner {
            kind: owner.kind.to_ascii_lowercase().into(),
            name: owner.name.into(),
            uid: owner.uid.into(),
            controller: owner.controller,
        })
        .collect()
}

fn phase(object: &str, text: &str) -> Result<Phase, ObjectError> {
    Ok(match text {
        "" | "Pending" => Phase::Pending,
        "Running" => Phase::Running,
        "Succeeded" => Phase::Succeeded,
        "Failed" => Phase::Failed,
        "Unknown" => Phase::Unknown,
        other => return Err(field(object, "status.phase", &format!("`{other}` is no phase of a pod"))),
    })
}

fn protocol(text: &str) -> Protocol {
    match text {
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn mesh_annotations(all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let ours = |key: &str| {
        key.split_once('/')
            .is_some_and(|(domain, _)| domain.ends_with("ringmail.dev") || domain.ends_with("linkerd.io"))
    };
    all.into_iter().filter(|(key, _)| ours(key)).collect()
}

/// A set of ports from an annotation. A value that cannot be read counts as absent and is logged: its author loses
/// the exception that was asked for, nobody else loses anything.
fn port_set(
    object: &str,
    annotations: &BTreeMap<String, String>,
    option: &str,
    named: impl Fn(&str) -> Option<u16>,
) -> Option<PortSet> {
    match PortSet::parse(config(annotations, option)?, named) {
        Ok(set) => Some(set),
        Err(error) => {
            tracing::warn!("RM1605: {object}: annotation `config.ringmail.dev/{option}` is ignored: {error}");
            None
        }
    }
}

fn addresses(
    parent: &str,
    name: &str,
    object: &str,
    one: String,
    all: Vec<RawIp>,
) -> Result<Vec<IpAddr>, ObjectError> {
    addresses_of(parent, name, object, one, all.into_iter().map(|ip| ip.ip).collect())
}

fn addresses_of(
    parent: &str,
    name: &str,
    object: &str,
    one: String,
    all: Vec<String>,
) -> Result<Vec<IpAddr>, ObjectError> {
    let mut addresses = Vec::new();
    for text in std::iter::once(one).chain(all).filter(|text| !text.is_empty()) {
        let address: IpAddr = text
            .parse()
            .map_err(|_| field(object, &format!("{parent}.{name}"), &format!("`{text}` is no IP address")))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn first_given(first: String, second: String, last: &str) -> String {
    [first, second].into_iter().find(|text| !text.is_empty()).unwrap_or_else(|| last.to_owned())
}

fn namespaced(object: &str, metadata: &RawMetadata) -> Result<ObjectName, ObjectError> {
    let namespace = required(object, "metadata.namespace", &metadata.namespace)?;
    Ok(ObjectName { namespace, name: required(object, "metadata.name", &metadata.name)? })
}

fn required(object: &str, name: &str, text: &str) -> Result<Arc<str>, ObjectError> {
    if text.is_empty() { Err(field(object, name, "is missing")) } else { Ok(text.into()) }
}

fn field(object: &str, field: &str, problem: &str) -> ObjectError {
    ObjectError::Field { object: object.to_owned(), field: field.to_owned(), problem: problem.to_owned() }
}

fn read<T: DeserializeOwned>(object: &str, value: Value) -> Result<T, ObjectError> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| field(object, &error.path().to_string(), &error.inner().to_string()))
}

fn describe(value: &Value) -> String {
    let metadata = value.get("metadata").unwrap_or(&Value::Null);
    let kind = text(value, "kind").unwrap_or("object without kind");
    match (text(metadata, "namespace"), text(metadata, "name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => format!("{kind} without a name"),
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// Kubernetes writes `null` for what is absent.
fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, entry| !entry.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}
