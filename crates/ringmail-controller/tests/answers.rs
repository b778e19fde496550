//! Whatever the objects, every message is one that a proxy accepts.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use common::objects::{self, name, pod, service, with};
use common::validate;
use proptest::prelude::*;
use ringmail_api::linkerd::destination::update;
use ringmail_api::linkerd::outbound::{TrafficSpec, traffic_spec};
use ringmail_controller::roles::destination::{Endpoints, Names, Profile, Target};
use ringmail_controller::roles::policy::{DefaultPolicy, Inbound, InboundSettings, Outbound, Traffic};
use ringmail_controller::stream::View as _;
use ringmail_registry::{Index, ServicePort};
use serde_json::{Value, json};

#[derive(Clone, Debug)]
struct Shape {
    app: u8,
    ip: u8,
    ready: bool,
    meshed: bool,
    policy: String,
    opaque: String,
    probe: Option<String>,
    grpc: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let policy = prop_oneof![
        Just("deny"),
        Just("all-authenticated"),
        Just("cluster-unauthenticated"),
        Just("audit"),
        Just("?")
    ];
    let opaque = prop_oneof![Just(""), Just("80"), Just("http"), Just("1-65535"), Just("x,y")];
    let probe = proptest::option::of("/?[a-z/?#%é ]{0,12}");
    (0..2_u8, 0..6_u8, any::<bool>(), any::<bool>(), policy, opaque, probe, any::<bool>()).prop_map(
        |(app, ip, ready, meshed, policy, opaque, probe, grpc)| Shape {
            app,
            ip,
            ready,
            meshed,
            policy: policy.to_owned(),
            opaque: opaque.to_owned(),
            probe,
            grpc,
        },
    )
}

fn built(number: usize, shape: &Shape) -> Value {
    let app = format!("app{}", shape.app);
    let mut container = json!({ "name": "app", "ports": [{ "name": "http", "containerPort": 80 }] });
    if let Some(path) = &shape.probe {
        container["livenessProbe"] = json!({ "httpGet": { "path": path, "port": 80 } });
    }
    if shape.grpc {
        container["readinessProbe"] = json!({ "grpc": { "port": 80 } });
    }
    let annotations = json!({
        "config.ringmail.dev/default-inbound-policy": shape.policy,
        "config.ringmail.dev/opaque-ports": shape.opaque,
    });
    let value = pod("ballot", &format!("p{number}"), &app, &format!("10.142.0.{}", shape.ip));
    let value =
        with(with(value, "/spec/containers", json!([container])), "/metadata/annotations", annotations);
    let value = with(
        value,
        "/metadata/labels/ringmail.dev~1control-plane-ns",
        json!(if shape.meshed { "ringmail" } else { "" }),
    );
    if shape.ready { value } else { with(value, "/status/conditions", json!([])) }
}

fn settings() -> Arc<InboundSettings> {
    Arc::new(InboundSettings {
        default: DefaultPolicy::AllUnauthenticated,
        cluster_networks: vec!["10.0.0.0/8".parse().expect("a network")],
        probe_networks: vec!["0.0.0.0/0".parse().expect("a network")],
    })
}

fn outbound(index: &Index, target: traffic_spec::Target) -> Result<(), String> {
    let names = Names::new("cluster.local");
    let spec = TrafficSpec { source_workload: String::new(), target: Some(target) };
    let Ok(traffic) = Traffic::read(&spec, &names) else { return Ok(()) };
    let networks = settings().cluster_networks.as_slice().into();
    match Outbound::new(traffic, names, networks).update(index, true) {
        Ok(policies) => policies.iter().try_for_each(validate::outbound_policy),
        Err(_) => Ok(()),
    }
}

proptest! {
    #[test]
    fn every_answer_is_valid_by_the_proxys_rules(shapes in proptest::collection::vec(shape(), 1..8), port in 1..100_u16) {
        let mut index = objects::index();
        for app in 0..2 {
            let value = service("ballot", &format!("s{app}"), &format!("10.143.0.{app}"), &format!("app{app}"), &json!("http"));
            index.apply(objects::object(value));
        }
        for (number, shape) in shapes.iter().enumerate() {
            index.apply(objects::object(built(number, shape)));
        }
        for number in 0..shapes.len() {
            for port in [80, port] {
                let mut view = Inbound::new(name("ballot", &format!("p{number}")), port, settings());
                for server in view.update(&index, true).expect("a pod") {
                    prop_assert_eq!(validate::server(&server), Ok(()));
                }
            }
        }
        for host in 0..6_u8 {
            for ip in [[10, 142, 0, host], [10, 143, 0, host], [93, 184, 216, host]] {
                let address = SocketAddr::from((ip, port));
                prop_assert_eq!(outbound(&index, traffic_spec::Target::Addr(address.into())), Ok(()));
                if let Ok(profiles) = Profile::new(Target::Address(address), Names::new("cluster.local")).update(&index, true) {
                    for endpoint in profiles.into_iter().filter_map(|profile| profile.endpoint) {
                        prop_assert_eq!(validate::endpoint(&endpoint), Ok(()));
                    }
                }
            }
            let authority = format!("s{host}.ballot.svc.cluster.local:{port}");
            prop_assert_eq!(outbound(&index, traffic_spec::Target::Authority(authority)), Ok(()));
        }
    }

    /// A client that applies every message holds what the registry says, whatever it was told and not told between.
    #[test]
    fn differences_add_up_to_the_set(
        steps in proptest::collection::vec((0..4_usize, proptest::option::of(shape()), any::<bool>()), 1..40),
    ) {
        let mut index = objects::index();
        index.apply(objects::object(service("ballot", "s0", "10.143.0.1", "app0", &json!("http"))));
        let port = ServicePort { service: name("ballot", "s0"), port: 80 };
        let mut view = Endpoints::new(port.clone());
        let mut held = BTreeSet::new();
        let mut first = true;
        for (number, shape, read) in steps {
            match shape {
                Some(shape) => drop(index.apply(objects::object(built(number, &shape)))),
                None => drop(index.delete(&ringmail_registry::ObjectRef::Pod(name("ballot", &format!("p{number}"))))),
            }
            // A slow client misses some states.
            if !read {
                continue;
            }
            for message in view.update(&index, true).expect("a service") {
                prop_assert_eq!(validate::destination_update(&message, first), Ok(()));
                first = false;
                match message.update.expect("set") {
                    update::Update::Add(set) => {
                        for addr in set.addrs {
                            let address = SocketAddr::try_from(addr.addr.expect("set")).expect("an address");
                            held.retain(|(known, _): &(SocketAddr, String)| *known != address);
                            held.insert((address, format!("{:?}", addr.tls_identity)));
                        }
                    }
                    update::Update::Remove(set) => {
                        for addr in set.addrs {
                            let address = SocketAddr::try_from(addr).expect("an address");
                            held.retain(|(known, _)| *known != address);
                        }
                    }
                    update::Update::NoEndpoints(_) => held.clear(),
                }
            }
            let now = index.endpoints(&port).expect("a service");
            let expected: BTreeSet<_> = now.iter().map(|endpoint| {
                let tls = endpoint.identity.as_ref().map(ringmail_controller::roles::destination::tls_identity);
                (endpoint.address, format!("{tls:?}"))
            }).collect();
            prop_assert_eq!(&held, &expected);
        }
    }
}
