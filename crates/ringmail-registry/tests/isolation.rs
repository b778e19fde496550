//! An object in one namespace cannot change an answer for another.

mod common;

use std::collections::BTreeSet;

use common::{controller, index, name, object, owner_reference, pod, service, service_port, with};
use proptest::prelude::*;
use ringmail_registry::{Index, Key, Object, ObjectRef};
use serde_json::{Value, json};

const MINE: &str = "mine";
const OTHER: &str = "other";

/// One change to one object of a namespace. All namespaces draw from the same few names, so that they collide.
#[derive(Clone, Debug)]
struct Change {
    namespace: &'static str,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Pod { number: u8, app: u8, ready: bool, address: u8, owner: u8, port: u16 },
    Service { number: u8, app: u8, named: bool },
    Controller { number: u8, owner: Option<u8> },
    Namespace { opaque: u16 },
    DeletePod(u8),
    DeleteService(u8),
    DeleteController(u8),
    DeleteNamespace,
}

fn what() -> impl Strategy<Value = What> {
    let few = 0..3_u8;
    prop_oneof![
        4 => (few.clone(), few.clone(), any::<bool>(), 1..4_u8, few.clone(), 80..82_u16)
            .prop_map(|(number, app, ready, address, owner, port)| What::Pod { number, app, ready, address, owner, port }),
        3 => (few.clone(), few.clone(), any::<bool>()).prop_map(|(number, app, named)| What::Service { number, app, named }),
        2 => (few.clone(), proptest::option::of(few.clone())).prop_map(|(number, owner)| What::Controller { number, owner }),
        1 => (80..82_u16).prop_map(|opaque| What::Namespace { opaque }),
        1 => few.clone().prop_map(What::DeletePod),
        1 => few.clone().prop_map(What::DeleteService),
        1 => few.prop_map(What::DeleteController),
        1 => Just(What::DeleteNamespace),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (prop_oneof![Just(MINE), Just(OTHER)], what())
        .prop_map(|(namespace, what)| Change { namespace, what });
    proptest::collection::vec(change, 1..60)
}

impl Change {
    /// `subnet`: the addresses that pods and services of this namespace get.
    fn apply(&self, index: &mut Index, subnet: u8) -> Vec<Key> {
        let ns = self.namespace;
        let value: Value = match &self.what {
            What::Pod { number, app, ready, address, owner, port } => {
                let value = pod(
                    ns,
                    &format!("p{number}"),
                    &format!("app{app}"),
                    &format!("10.142.{subnet}.{address}"),
                );
                let ready = if *ready { "True" } else { "False" };
                let value = with(value, "/status/conditions/0/status", json!(ready));
                let value = with(
                    value,
                    "/metadata/ownerReferences",
                    json!([owner_reference("ReplicaSet", &format!("r{owner}"))]),
                );
                with(value, "/spec/containers/0/ports/0/containerPort", json!(port))
            }
            What::Service { number, app, named } => {
                let target = if *named { json!("http") } else { json!(80) };
                service(
                    ns,
                    &format!("s{number}"),
                    &format!("10.143.{subnet}.{number}"),
                    &format!("app{app}"),
                    &target,
                )
            }
            What::Controller { number, owner } => {
                let owner = owner.map(|owner| format!("d{owner}"));
                controller(
                    "apps/v1",
                    "ReplicaSet",
                    ns,
                    &format!("r{number}"),
                    owner.as_deref().map(|owner| ("Deployment", owner)),
                )
            }
            What::Namespace { opaque } => json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": ns, "annotations": { "config.ringmail.dev/opaque-ports": opaque.to_string() } },
            }),
            What::DeletePod(number) => return index.delete(&ObjectRef::Pod(name(ns, &format!("p{number}")))),
            What::DeleteService(number) => {
                return index.delete(&ObjectRef::Service(name(ns, &format!("s{number}"))));
            }
            What::DeleteController(number) => {
                return index
                    .delete(&ObjectRef::Controller("replicaset".into(), name(ns, &format!("r{number}"))));
            }
            What::DeleteNamespace => return index.delete(&ObjectRef::Namespace(ns.into())),
        };
        index.apply(object(value))
    }
}

/// Everything that can be asked about one namespace by name.
fn answers_by_name(index: &Index, namespace: &str) -> Vec<String> {
    let mut answers = Vec::new();
    for number in 0..3 {
        let service_name = name(namespace, &format!("s{number}"));
        answers.push(format!("{:?}", index.endpoints(&service_port(namespace, &format!("s{number}"), 80))));
        if let Some(service) = index.service(&service_name) {
            answers.push(format!(
                "{service:?} opaque {} {}",
                index.opaque_service_port(&service, 80),
                index.opaque_service_port(&service, 81)
            ));
        }
        if let Some(pod) = index.pod(&name(namespace, &format!("p{number}"))) {
            answers.push(format!("{pod:?} {:?} {:?}", index.workload(&pod), index.identity(&pod, 80)));
        }
    }
    answers
}

fn answers_by_address(index: &Index, subnet: u8) -> Vec<String> {
    let pods = (0..5).map(|host| format!("{:?}", index.pod_by_ip([10, 142, subnet, host].into())));
    let services = (0..5).map(|host| format!("{:?}", index.service_by_ip([10, 143, subnet, host].into())));
    pods.chain(services).collect()
}

fn keys_of(keys: Vec<Key>, namespace: &str) -> BTreeSet<String> {
    let ours = keys.into_iter().filter(|key| match key {
        Key::Pod(name) | Key::Service(name) => &*name.namespace == namespace,
        Key::Endpoints(port) => &*port.service.namespace == namespace,
        Key::Pods | Key::Ip(_) => false,
    });
    ours.map(|key| format!("{key:?}")).collect()
}

proptest! {
    /// Names, labels, addresses of the other namespace collide with mine; my answers are the same without it.
    #[test]
    fn what_is_asked_by_name_depends_on_its_own_namespace_alone(changes in changes()) {
        let (mut both, mut alone) = (index(), index());
        for change in &changes {
            let keys = change.apply(&mut both, 0);
            if change.namespace == MINE {
                prop_assert_eq!(keys_of(keys, MINE), keys_of(change.apply(&mut alone, 0), MINE));
            } else {
                prop_assert!(keys_of(keys, MINE).is_empty(), "a change elsewhere wakes nobody here");
            }
            prop_assert_eq!(answers_by_name(&both, MINE), answers_by_name(&alone, MINE));
        }
    }

    /// Each namespace's pods and services have the addresses that the cluster gave them.
    #[test]
    fn what_is_asked_by_address_depends_on_its_holder_alone(changes in changes()) {
        let (mut both, mut alone) = (index(), index());
        for change in &changes {
            let keys = change.apply(&mut both, if change.namespace == MINE { 1 } else { 2 });
            if change.namespace == MINE {
                change.apply(&mut alone, 1);
            } else {
                let woken = keys.iter().any(|key| matches!(key, Key::Ip(ip) if ip.to_string().starts_with("10.142.1.") || ip.to_string().starts_with("10.143.1.")));
                prop_assert!(!woken, "a change elsewhere wakes nobody here: {:?}", keys);
            }
            prop_assert_eq!(answers_by_address(&both, 1), answers_by_address(&alone, 1));
        }
    }

    /// A key that is not named has an answer that has not changed.
    #[test]
    fn an_answer_changes_only_with_its_key(changes in changes()) {
        let mut index = index();
        for change in &changes {
            let before: Vec<_> = questions().map(|key| answer(&index, &key)).collect();
            let keys = change.apply(&mut index, 0);
            for (key, before) in questions().zip(before) {
                prop_assert!(keys.contains(&key) || before == answer(&index, &key), "{:?} changed unsaid", key);
            }
        }
    }

    /// Whatever the history, the answers are those of an index that was given the last state of each object.
    #[test]
    fn the_order_of_changes_leaves_no_trace(changes in changes()) {
        let mut index = index();
        for change in &changes {
            change.apply(&mut index, if change.namespace == MINE { 1 } else { 2 });
        }
        let mut fresh = common::index();
        let pods: Vec<_> = index.pods().map(|pod| Object::Pod((**pod).clone())).collect();
        for ns in [MINE, OTHER] {
            for last in changes.iter().rev().filter(|change| change.namespace == ns && !matches!(change.what, What::Pod { .. } | What::DeletePod(_))) {
                // Only the latest change of each object counts; earlier ones were already replaced.
                let later = changes.iter().rev().take_while(|other| !std::ptr::eq(*other, last));
                if !later.filter(|other| other.namespace == ns).any(|other| same_object(&other.what, &last.what)) {
                    last.apply(&mut fresh, if ns == MINE { 1 } else { 2 });
                }
            }
        }
        for pod in pods {
            fresh.apply(pod);
        }
        for ns in [MINE, OTHER] {
            prop_assert_eq!(answers_by_name(&index, ns), answers_by_name(&fresh, ns));
        }
    }
}

fn same_object(a: &What, b: &What) -> bool {
    let id = |what: &What| match what {
        What::Pod { number, .. } | What::DeletePod(number) => (0, *number),
        What::Service { number, .. } | What::DeleteService(number) => (1, *number),
        What::Controller { number, .. } | What::DeleteController(number) => (2, *number),
        What::Namespace { .. } | What::DeleteNamespace => (3, 0),
    };
    id(a) == id(b)
}

fn questions() -> impl Iterator<Item = Key> {
    let named = [MINE, OTHER].into_iter().flat_map(|ns| {
        (0..3).flat_map(move |number| {
            let pod = Key::Pod(name(ns, &format!("p{number}")));
            let service = Key::Service(name(ns, &format!("s{number}")));
            [pod, service, Key::Endpoints(service_port(ns, &format!("s{number}"), 80))]
        })
    });
    let addresses =
        (0..5_u8).flat_map(|host| [Key::Ip([10, 142, 0, host].into()), Key::Ip([10, 143, 0, host].into())]);
    named.chain(addresses).chain([Key::Pods])
}

fn answer(index: &Index, key: &Key) -> String {
    let pod = |pod: Option<std::sync::Arc<ringmail_registry::Pod>>| {
        pod.map(|pod| format!("{pod:?} {:?} {:?}", index.workload(&pod), index.identity(&pod, 80)))
    };
    match key {
        Key::Pods => {
            let mut all: Vec<_> =
                index.pods().map(|pod| format!("{pod:?} {:?}", index.workload(pod))).collect();
            all.sort();
            format!("{all:?}")
        }
        Key::Pod(name) => format!("{:?}", pod(index.pod(name))),
        Key::Service(name) => {
            let service = index.service(name);
            let opaque = service.as_ref().map(|service| {
                (index.opaque_service_port(service, 80), index.opaque_service_port(service, 81))
            });
            format!("{service:?} {opaque:?}")
        }
        Key::Endpoints(port) => format!("{:?}", index.endpoints(port)),
        Key::Ip(ip) => {
            format!("{:?} {:?} {}", pod(index.pod_by_ip(*ip)), index.service_by_ip(*ip), index.is_node(*ip))
        }
    }
}
