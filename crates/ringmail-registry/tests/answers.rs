//! What the index answers.

mod common;

use std::net::IpAddr;

use common::{controller, index, name, object, owner_reference, pod, service, service_port, with};
use ringmail_registry::{Index, Key, ObjectRef, ProbeAction};
use serde_json::json;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addresses(index: &Index, port: u16) -> Option<Vec<String>> {
    let endpoints = index.endpoints(&service_port("ballot", "web", port))?;
    Some(endpoints.into_iter().map(|endpoint| endpoint.address.to_string()).collect())
}

#[test]
fn a_pod_is_found_by_its_address_and_a_terminated_or_host_network_one_is_not() {
    let mut index = index();
    index.apply(object(pod("ballot", "web-1", "web", "10.142.0.9")));
    assert_eq!(index.pod_by_ip(ip("10.142.0.9")).expect("found").name, name("ballot", "web-1"));
    for (path, value) in [
        ("/status/phase", json!("Succeeded")),
        ("/status/phase", json!("Failed")),
        ("/spec/hostNetwork", json!(true)),
    ] {
        index.apply(object(with(pod("ballot", "web-1", "web", "10.142.0.9"), path, value)));
        assert_eq!(index.pod_by_ip(ip("10.142.0.9")), None, "{path}");
    }
    index.apply(object(pod("ballot", "web-1", "web", "10.142.0.9")));
    assert!(index.pod_by_ip(ip("10.142.0.9")).is_some());
    index.delete(&ObjectRef::Pod(name("ballot", "web-1")));
    assert_eq!(index.pod_by_ip(ip("10.142.0.9")), None);
}

#[test]
fn an_address_that_was_given_on_belongs_to_the_younger_pod_whatever_the_order() {
    let old = pod("ballot", "old", "web", "10.142.0.9");
    let young = with(
        pod("other", "young", "db", "10.142.0.9"),
        "/metadata/creationTimestamp",
        json!("2026-08-01T10:00:01Z"),
    );
    for order in [[&old, &young], [&young, &old]] {
        let mut index = index();
        for value in order {
            index.apply(object(value.clone()));
        }
        assert_eq!(index.pod_by_ip(ip("10.142.0.9")).expect("found").name, name("other", "young"));
        // The old one's last words change nothing for the young one.
        let late = with(old.clone(), "/status/conditions", json!([]));
        assert!(!index.apply(object(late)).contains(&Key::Ip(ip("10.142.0.9"))));
        assert_eq!(index.pod_by_ip(ip("10.142.0.9")).expect("found").name, name("other", "young"));
        index.delete(&ObjectRef::Pod(name("ballot", "old")));
        assert_eq!(index.pod_by_ip(ip("10.142.0.9")).expect("found").name, name("other", "young"));
        // Its twin: without the young one the address is the old one's.
        index.apply(object(old.clone()));
        index.delete(&ObjectRef::Pod(name("other", "young")));
        assert_eq!(index.pod_by_ip(ip("10.142.0.9")).expect("found").name, name("ballot", "old"));
    }
}

#[test]
fn within_the_same_second_the_pod_that_is_not_being_deleted_or_was_seen_later_has_the_address() {
    let mut index = index();
    index.apply(object(pod("ballot", "first", "web", "10.142.0.9")));
    index.apply(object(pod("ballot", "second", "web", "10.142.0.9")));
    assert_eq!(index.pod_by_ip(ip("10.142.0.9")).expect("found").name, name("ballot", "second"));
    // An update is no new arrival.
    index.apply(object(with(pod("ballot", "first", "web", "10.142.0.9"), "/status/conditions", json!([]))));
    assert_eq!(index.pod_by_ip(ip("10.142.0.9")).expect("found").name, name("ballot", "second"));
    let ending = with(
        pod("ballot", "second", "web", "10.142.0.9"),
        "/metadata/deletionTimestamp",
        json!("2026-08-01T10:00:00Z"),
    );
    index.apply(object(ending));
    assert_eq!(index.pod_by_ip(ip("10.142.0.9")).expect("found").name, name("ballot", "first"));
}

#[test]
fn a_pod_of_the_same_name_is_another_one_and_takes_its_own_addresses() {
    let mut index = index();
    index.apply(object(pod("ballot", "db-0", "db", "10.142.0.9")));
    let next = with(pod("ballot", "db-0", "db", "10.142.0.10"), "/metadata/uid", json!("another"));
    let keys = index.apply(object(next));
    assert!(keys.contains(&Key::Ip(ip("10.142.0.9"))) && keys.contains(&Key::Ip(ip("10.142.0.10"))));
    assert_eq!(index.pod_by_ip(ip("10.142.0.9")), None);
    assert_eq!(&*index.pod_by_ip(ip("10.142.0.10")).expect("found").uid, "another");
}

#[test]
fn endpoints_are_the_ready_pods_with_the_target_port() {
    let mut index = index();
    index.apply(object(service("ballot", "web", "10.143.0.5", "web", &json!("http"))));
    assert_eq!(addresses(&index, 80), Some(vec![]));
    assert_eq!(addresses(&index, 81), None, "no such port");
    index.apply(object(pod("ballot", "web-1", "web", "10.142.0.9")));
    let other_number = json!([{ "name": "app", "ports": [{ "name": "http", "containerPort": 9090 }] }]);
    index.apply(object(with(pod("ballot", "web-2", "web", "10.142.0.8"), "/spec/containers", other_number)));
    assert_eq!(addresses(&index, 80).expect("a service"), ["10.142.0.8:9090", "10.142.0.9:8080"]);
    for (path, value) in [
        ("/status/conditions", json!([{ "type": "Ready", "status": "False" }])),
        ("/metadata/deletionTimestamp", json!("2026-08-01T10:00:00Z")),
        ("/status/phase", json!("Failed")),
        ("/metadata/labels/app", json!("voting")),
        ("/spec/containers", json!([{ "name": "app" }])),
        ("/status/podIP", json!("")),
    ] {
        let mut value = with(pod("ballot", "web-1", "web", "10.142.0.9"), path, value);
        if path == "/status/podIP" {
            value = with(value, "/status/podIPs", json!([]));
        }
        let keys = index.apply(object(value));
        assert!(keys.contains(&Key::Endpoints(service_port("ballot", "web", 80))), "{path}");
        assert_eq!(addresses(&index, 80).expect("a service"), ["10.142.0.8:9090"], "{path}");
        index.apply(object(pod("ballot", "web-1", "web", "10.142.0.9")));
        assert_eq!(addresses(&index, 80).expect("a service").len(), 2);
    }
}

#[test]
fn a_numeric_target_port_needs_no_declaration_and_unready_pods_count_where_they_are_published() {
    let mut index = index();
    let value = with(
        service("ballot", "web", "None", "web", &json!(7000)),
        "/spec/publishNotReadyAddresses",
        json!(true),
    );
    index.apply(object(value));
    index.apply(object(with(pod("ballot", "web-1", "web", "10.142.0.9"), "/status/conditions", json!([]))));
    assert_eq!(addresses(&index, 80).expect("a service"), ["10.142.0.9:7000"]);
    let headless = index.service(&name("ballot", "web")).expect("found");
    assert!(headless.headless && headless.cluster_ips.is_empty());
}

#[test]
fn a_service_without_selector_has_no_endpoints_of_ours() {
    let mut index = index();
    index.apply(object(pod("ballot", "web-1", "web", "10.142.0.9")));
    for selector in [json!(null), json!({})] {
        index.apply(object(with(
            service("ballot", "web", "10.143.0.5", "web", &json!(1)),
            "/spec/selector",
            selector,
        )));
        assert_eq!(addresses(&index, 80), Some(vec![]));
        assert!(!index.service(&name("ballot", "web")).expect("found").has_endpoints());
    }
}

#[test]
fn the_family_of_endpoints_is_the_services() {
    let mut index = index();
    let both = json!([{ "ip": "10.142.0.9" }, { "ip": "fd00::9" }]);
    index.apply(object(with(pod("ballot", "web-1", "web", "10.142.0.9"), "/status/podIPs", both)));
    index.apply(object(service("ballot", "web", "10.143.0.5", "web", &json!(80))));
    assert_eq!(addresses(&index, 80).expect("a service"), ["10.142.0.9:80"]);
    index.apply(object(service("ballot", "web", "fd00:1::5", "web", &json!(80))));
    assert_eq!(addresses(&index, 80).expect("a service"), ["[fd00::9]:80"]);
    assert!(index.pod_by_ip(ip("fd00::9")).is_some());
}

#[test]
fn the_older_service_keeps_a_virtual_address() {
    let mut index = index();
    index.apply(object(service("ballot", "web", "10.143.0.5", "web", &json!(80))));
    let thief = with(
        service("evil", "web", "10.143.0.5", "web", &json!(80)),
        "/metadata/creationTimestamp",
        json!("2026-08-02T00:00:00Z"),
    );
    assert!(!index.apply(object(thief.clone())).contains(&Key::Ip(ip("10.143.0.5"))));
    assert_eq!(index.service_by_ip(ip("10.143.0.5")).expect("found").name, name("ballot", "web"));
    index.delete(&ObjectRef::Service(name("ballot", "web")));
    assert_eq!(index.service_by_ip(ip("10.143.0.5")).expect("found").name, name("evil", "web"));
}

#[test]
fn the_top_owner_is_found_through_replicasets_and_jobs_and_directly() {
    let mut index = index();
    let owned = |kind, owner| {
        with(
            pod("ballot", "p", "web", "10.142.0.9"),
            "/metadata/ownerReferences",
            json!([owner_reference(kind, owner)]),
        )
    };
    let top = |index: &Index| {
        let workload = index.workload(&index.pod(&name("ballot", "p")).expect("found"));
        format!("{}/{}", workload.owner_kind, workload.owner)
    };
    index.apply(object(pod("ballot", "p", "web", "10.142.0.9")));
    assert_eq!(top(&index), "/");
    index.apply(object(owned("Deployment", "web")));
    assert_eq!(top(&index), "deployment/web");
    index.apply(object(owned("ReplicaSet", "web-abc")));
    assert_eq!(top(&index), "replicaset/web-abc", "what is not known is not guessed");
    let keys = index.apply(object(controller(
        "apps/v1",
        "ReplicaSet",
        "ballot",
        "web-abc",
        Some(("Deployment", "web")),
    )));
    assert!(keys.contains(&Key::Pod(name("ballot", "p"))) && keys.contains(&Key::Ip(ip("10.142.0.9"))));
    assert_eq!(top(&index), "deployment/web");
    index.apply(object(controller("batch/v1", "Job", "ballot", "tally-1", Some(("CronJob", "tally")))));
    index.apply(object(owned("Job", "tally-1")));
    assert_eq!(top(&index), "cronjob/tally");
    index.apply(object(owned("StatefulSet", "db")));
    assert_eq!(top(&index), "statefulset/db");
}

#[test]
fn an_owner_of_another_namespace_or_uid_is_none() {
    let mut index = index();
    let owner = json!([owner_reference("ReplicaSet", "web-abc")]);
    index.apply(object(with(pod("ballot", "p", "web", "10.142.0.9"), "/metadata/ownerReferences", owner)));
    index.apply(object(controller(
        "apps/v1",
        "ReplicaSet",
        "other",
        "web-abc",
        Some(("Deployment", "evil")),
    )));
    let namesake = controller("apps/v1", "ReplicaSet", "ballot", "web-abc", Some(("Deployment", "gone")));
    index.apply(object(with(namesake, "/metadata/uid", json!("of an earlier one"))));
    assert_eq!(index.workload(&index.pod(&name("ballot", "p")).expect("found")).owner, "web-abc");
}

#[test]
fn owners_that_form_a_circle_end() {
    let mut index = index();
    index.apply(object(controller("apps/v1", "ReplicaSet", "ballot", "a", Some(("ReplicaSet", "b")))));
    index.apply(object(controller("apps/v1", "ReplicaSet", "ballot", "b", Some(("ReplicaSet", "a")))));
    let owner = json!([owner_reference("ReplicaSet", "a")]);
    index.apply(object(with(pod("ballot", "p", "web", "10.142.0.9"), "/metadata/ownerReferences", owner)));
    assert_eq!(index.workload(&index.pod(&name("ballot", "p")).expect("found")).owner_kind, "replicaset");
}

#[test]
fn a_meshed_pod_has_its_identity_except_on_skipped_ports_and_the_admin_port() {
    let mut index = index();
    index.apply(object(pod("ballot", "web-1", "web", "10.142.0.9")));
    let identity = |index: &Index, port| {
        let pod = index.pod(&name("ballot", "web-1")).expect("found");
        index.identity(&pod, port).map(|id| id.to_string())
    };
    let web = Some("web.ballot.serviceaccount.identity.ringmail.cluster.local".to_owned());
    assert_eq!(identity(&index, 8080), web);
    assert_eq!(identity(&index, 4190), web, "the control port terminates TLS itself");
    assert_eq!(identity(&index, 9000), None, "skipped");
    assert_eq!(identity(&index, 4191), None, "the admin port is plaintext");
    for label in [json!("another-mesh"), json!("")] {
        let value = with(
            pod("ballot", "web-1", "web", "10.142.0.9"),
            "/metadata/labels/ringmail.dev~1control-plane-ns",
            label,
        );
        index.apply(object(value));
        assert_eq!(identity(&index, 8080), None);
    }
}

#[test]
fn opaque_ports_come_from_the_service_its_namespace_or_the_default() {
    let mut index = index();
    index.apply(object(service("ballot", "web", "10.143.0.5", "web", &json!(80))));
    let opaque = |index: &Index, port| {
        index.opaque_service_port(&index.service(&name("ballot", "web")).expect("found"), port)
    };
    assert!(opaque(&index, 3306) && !opaque(&index, 80));
    let annotated = |text: &str| json!({ "config.linkerd.io/opaque-ports": text });
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "ballot", "annotations": annotated("81") } });
    let keys = index.apply(object(namespace));
    assert!(keys.contains(&Key::Service(name("ballot", "web"))) && keys.contains(&Key::Ip(ip("10.143.0.5"))));
    assert!(opaque(&index, 81) && !opaque(&index, 3306));
    let own = with(
        service("ballot", "web", "10.143.0.5", "web", &json!(80)),
        "/metadata/annotations",
        annotated("web"),
    );
    index.apply(object(own));
    assert!(opaque(&index, 80) && !opaque(&index, 81), "a port's name stands for its number");
}

#[test]
fn probes_have_a_number_and_a_path_without_query() {
    let containers = json!([{
        "name": "app", "ports": [{ "name": "http", "containerPort": 8080 }],
        "livenessProbe": { "httpGet": { "path": "/live?x=1", "port": "http" } },
        "readinessProbe": { "httpGet": { "port": 8081 } },
        "startupProbe": { "httpGet": { "path": "/start", "port": 8443, "scheme": "HTTPS" } },
    }, { "name": "rpc", "livenessProbe": { "grpc": { "port": 9090 } }, "readinessProbe": { "tcpSocket": { "port": 1 } } }]);
    let sidecar = json!([
        { "name": "helper", "restartPolicy": "Always", "livenessProbe": { "httpGet": { "path": "h", "port": 7 } } },
        { "name": "setup", "livenessProbe": { "httpGet": { "path": "/never", "port": 7 } } },
    ]);
    let value = with(
        with(pod("ballot", "p", "web", "10.142.0.9"), "/spec/containers", containers),
        "/spec/initContainers",
        sidecar,
    );
    let mut index = index();
    index.apply(object(value));
    let probes: Vec<_> = index
        .pod(&name("ballot", "p"))
        .expect("found")
        .probes
        .iter()
        .map(|p| (p.port, p.action.clone()))
        .collect();
    let get = |path: &str| ProbeAction::HttpGet(path.to_owned());
    assert_eq!(probes, [(8080, get("/live")), (8081, get("/")), (7, get("/h")), (9090, ProbeAction::Grpc)]);
}

#[test]
fn a_nodes_address_is_no_pods() {
    let mut index = index();
    assert!(!index.is_node(ip("192.168.7.1")));
    index.apply(object(pod("ballot", "a", "web", "10.142.0.9")));
    let keys = index.apply(object(pod("ballot", "b", "web", "10.142.0.10")));
    assert!(!keys.contains(&Key::Ip(ip("192.168.7.1"))), "nothing new");
    assert!(index.is_node(ip("192.168.7.1")));
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" }, "status": { "addresses": [
        { "type": "InternalIP", "address": "10.142.0.1" }, { "type": "Hostname", "address": "n" } ] } });
    assert_eq!(index.apply(object(node)), [Key::Ip(ip("10.142.0.1"))]);
    index.delete(&ObjectRef::Pod(name("ballot", "a")));
    assert!(index.is_node(ip("192.168.7.1")));
    index.delete(&ObjectRef::Pod(name("ballot", "b")));
    assert!(!index.is_node(ip("192.168.7.1")));
}

#[test]
fn an_equal_object_changes_nothing() {
    let mut index = index();
    let all = [
        pod("ballot", "web-1", "web", "10.142.0.9"),
        service("ballot", "web", "10.143.0.5", "web", &json!(80)),
        controller("apps/v1", "Deployment", "ballot", "web", None),
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "ballot" } }),
    ];
    for value in &all {
        index.apply(object(value.clone()));
    }
    for value in all {
        assert_eq!(index.apply(object(value)), []);
    }
}

#[test]
fn errors_name_the_object_and_the_field() {
    let error = |value| ringmail_registry::Object::from_json(value).expect_err("invalid").to_string();
    let bad = with(
        pod("ballot", "web-1", "web", "10.142.0.9"),
        "/spec/containers",
        json!([{ "name": "a", "ports": [{ "containerPort": 70000 }] }]),
    );
    let text = error(bad);
    assert!(
        text.starts_with("RM1602: Pod ballot/web-1: field `spec.containers[0].ports[0].containerPort`"),
        "{text}"
    );
    let text = error(with(pod("ballot", "web-1", "web", "10.142.0.9"), "/status/podIP", json!("10.0.0")));
    assert_eq!(text, "RM1602: Pod ballot/web-1: field `status.podIPs`: `10.0.0` is no IP address");
    let text = error(with(pod("ballot", "web-1", "web", "10.142.0.9"), "/metadata/uid", json!(null)));
    assert_eq!(text, "RM1602: Pod ballot/web-1: field `metadata.uid`: is missing");
    let text = error(controller("apps/v1beta1", "Deployment", "ballot", "web", None));
    assert_eq!(text, "RM1606: Deployment ballot/web: `apiVersion` is `apps/v1beta1`, expected `apps/v1`");
    let text = error(json!([]));
    assert_eq!(text, "RM1602: object without kind without a name: field `kind`: is missing");
    let kept = ringmail_registry::Object::from_json(json!({ "apiVersion": "v1", "kind": "ConfigMap" }));
    assert_eq!(kept, Ok(None), "a kind that no answer depends on");
}

#[test]
fn an_address_that_two_members_of_a_service_claim_is_listed_once_and_is_the_younger_ones() {
    let mut index = index();
    index.apply(object(service("ballot", "web", "10.143.0.5", "web", &json!("http"))));
    index.apply(object(pod("ballot", "a-old", "web", "10.142.0.9")));
    let young = with(
        pod("ballot", "z-young", "web", "10.142.0.9"),
        "/metadata/creationTimestamp",
        json!("2026-08-01T10:00:01Z"),
    );
    index.apply(object(young));
    let endpoints = index.endpoints(&service_port("ballot", "web", 80)).expect("a service");
    assert_eq!(
        endpoints.iter().map(|endpoint| endpoint.workload.pod.as_str()).collect::<Vec<_>>(),
        ["z-young"]
    );
}
