//! The environment of the proxy: literal values, and fields of the pod with `$(VAR)` expansion.

use serde_json::{Value, json};

use crate::container::Parts;
use crate::values::{Exemption, port_of};
use crate::{TOKEN_DIRECTORY, TOKEN_VOLUME};

/// The container's `env`. Kubernetes expands `$(VAR)` from variables that stand before it.
pub(crate) fn environment(parts: &Parts<'_>) -> Vec<Value> {
    let (values, settings, identities) = (parts.values, parts.settings, parts.identities);
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut all = vec![
        field("_pod_name", "metadata.name"),
        field("_pod_ns", "metadata.namespace"),
        field("_pod_sa", "spec.serviceAccountName"),
        field("_pod_node", "spec.nodeName"),
    ];
    let mut put =
        |name: &str, value: String| all.push(json!({ "name": format!("{PREFIX}{name}"), "value": value }));
    put("LOG", settings.log_level.clone());
    put("LOG_FORMAT", settings.log_format.clone());
    if let Some(cores) = settings.cores {
        put("CORES", cores.to_string());
    }
    // One socket takes both families where IPv6 is on; on loopback, where redirection leads, each has its own address.
    let (any, loopbacks): (&str, &[&str]) =
        if values.ipv6 { ("[::]", &["127.0.0.1", "[::1]"]) } else { ("0.0.0.0", &["127.0.0.1"]) };
    let listen = |hosts: &[&str], port: u16| {
        hosts.iter().map(|host| format!("{host}:{port}")).collect::<Vec<_>>().join(",")
    };
    put("INBOUND_LISTEN_ADDR", listen(&[any], settings.inbound_port));
    put("OUTBOUND_LISTEN_ADDRS", listen(loopbacks, settings.outbound_port));
    put("CONTROL_LISTEN_ADDR", listen(&[any], settings.control_port));
    put("ADMIN_LISTEN_ADDR", listen(&[any], settings.admin_port));

    for (service, address, component, identity) in [
        ("IDENTITY", &values.identity_address, "identity", &identities.identity),
        ("DESTINATION", &values.destination_address, "destination", &identities.destination),
        ("POLICY", &values.policy_address, "destination", &identities.destination),
    ] {
        // A part of the control plane reaches itself on loopback: its own service would lead to its neighbours as well.
        let own = parts.component == Some(component);
        let local = own.then(|| port_of(address)).flatten().map(|port| format!("127.0.0.1:{port}"));
        put(&format!("{service}_SVC_ADDR"), local.unwrap_or_else(|| address.clone()));
        put(&format!("{service}_SVC_NAME"), identity.clone());
    }
    put("IDENTITY_LOCAL_NAME", format!("$(_pod_sa).$(_pod_ns).{}", values.trust_domain.suffix()));
    put("IDENTITY_TOKEN_FILE", format!("{TOKEN_DIRECTORY}/{TOKEN_VOLUME}"));
    put("IDENTITY_TRUST_ANCHORS", values.trust_anchors.clone());
    put(
        "DESTINATION_CONTEXT",
        r#"{"ns":"$(_pod_ns)","nodeName":"$(_pod_node)","pod":"$(_pod_name)"}"#.to_owned(),
    );
    put("POLICY_WORKLOAD", r#"{"ns":"$(_pod_ns)","pod":"$(_pod_name)"}"#.to_owned());
    if let Some(identity) = &values.tap_identity {
        put("TAP_SVC_NAME", identity.to_string());
    }

    let networks: Vec<String> = values.cluster_networks.iter().map(ToString::to_string).collect();
    put("DESTINATION_PROFILE_NETWORKS", networks.join(","));
    put("POLICY_CLUSTER_NETWORKS", networks.join(","));
    put("INBOUND_PORTS", parts.request.application_ports().to_string());
    put("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", settings.opaque.to_string());
    put("INBOUND_DEFAULT_POLICY", settings.policy.clone());
    put("INBOUND_ACCEPT_KEEPALIVE", KEEPALIVE.to_owned());
    put("OUTBOUND_ACCEPT_KEEPALIVE", KEEPALIVE.to_owned());
    for (name, value) in &settings.durations {
        put(name, value.clone());
    }
    if let Exemption::Mark(mark) = values.exemption {
        put("SOCKET_MARK", format!("{mark:#x}"));
    }
    all.push(field(&format!("{PREFIX}INBOUND_IPS"), "status.podIPs"));
    all.extend(settings.additional.iter().cloned());
    all
}

const PREFIX: &str = "RINGMAIL_PROXY_";
const KEEPALIVE: &str = "10s";
