//! The registry's answers as messages of Linkerd's destination API (wire.md 6.4 to 6.7).

use std::collections::HashMap;

use ringmail_api::linkerd::destination::protocol_hint::{Opaque, Protocol};
use ringmail_api::linkerd::destination::tls_identity::{DnsLikeIdentity, Strategy};
use ringmail_api::linkerd::destination::{ProtocolHint, TlsIdentity, WeightedAddr};
use ringmail_api::linkerd::meta::{Metadata, Resource, metadata};
use ringmail_identity::WorkloadId;
use ringmail_registry::{Endpoint, ObjectName};
use ringmail_vocab::WorkloadRef;

/// An endpoint with its labels; the namespace is a label of the set, or of the endpoint where there is no set.
///
/// There is no `opaque_transport`: our proxies terminate TLS on the application's own port, opaque or not.
pub(super) fn weighted_addr(endpoint: &Endpoint) -> WeightedAddr {
    let workload = &endpoint.workload;
    let pod = ObjectName::new(&workload.namespace, &workload.pod);
    WeightedAddr {
        addr: Some(endpoint.address.into()),
        weight: WEIGHT,
        metric_labels: labels(workload, endpoint.identity.as_ref(), endpoint.template_hash.as_deref()),
        tls_identity: endpoint.identity.as_ref().map(tls_identity),
        protocol_hint: endpoint
            .opaque
            .then_some(ProtocolHint { opaque_transport: None, protocol: Some(Protocol::Opaque(Opaque {})) }),
        authority_override: None,
        http2: None,
        resource_ref: Some(resource("Pod", &pod, 0)),
    }
}

/// The identity that must answer, which is also the server name to send.
pub fn tls_identity(id: &WorkloadId) -> TlsIdentity {
    let name = DnsLikeIdentity { name: id.to_string() };
    TlsIdentity { server_name: Some(name.clone()), strategy: Some(Strategy::DnsLikeIdentity(name)) }
}

/// A core object as metadata; port 0 for none.
pub(crate) fn resource(kind: &str, name: &ObjectName, port: u16) -> Metadata {
    let resource = Resource {
        group: "core".to_owned(),
        kind: kind.to_owned(),
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        section: String::new(),
        port: port.into(),
    };
    Metadata { kind: Some(metadata::Kind::Resource(resource)) }
}

fn labels(workload: &WorkloadRef, id: Option<&WorkloadId>, hash: Option<&str>) -> HashMap<String, String> {
    // In a metrics system `job` names the scraper's job.
    let kind = if workload.owner_kind == "job" { "k8s_job" } else { &workload.owner_kind };
    let mut labels = HashMap::from([
        ("pod".to_owned(), workload.pod.clone()),
        ("serviceaccount".to_owned(), workload.service_account.clone()),
    ]);
    if !kind.is_empty() {
        labels.insert(kind.to_owned(), workload.owner.clone());
    }
    if let Some(id) = id {
        labels.insert("control_plane_ns".to_owned(), id.domain().identity_namespace().to_owned());
    }
    if let Some(hash) = hash {
        labels.insert("pod_template_hash".to_owned(), hash.to_owned());
    }
    labels
}

/// Linkerd's number for one full endpoint; proxies do not use it to balance.
const WEIGHT: u32 = 10_000;
