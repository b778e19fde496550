//! `InboundServerPolicies` and `OutboundPolicies` over gRPC.

mod common;

use std::net::SocketAddr;

use common::objects::{pod, service, with};
use common::{Mesh, next, validate};
use ringmail_api::linkerd::http_route::path_match;
use ringmail_api::linkerd::http_types::http_method::{Registered, Type};
use ringmail_api::linkerd::inbound::authn::Permit;
use ringmail_api::linkerd::inbound::authn::permit_mesh_tls::Clients;
use ringmail_api::linkerd::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use ringmail_api::linkerd::inbound::proxy_protocol::Kind;
use ringmail_api::linkerd::inbound::{Authz, HttpRoute, PortSpec, Server};
use ringmail_api::linkerd::meta::metadata;
use ringmail_api::linkerd::outbound::outbound_policies_client::OutboundPoliciesClient;
use ringmail_api::linkerd::outbound::{OutboundPolicy, TrafficSpec, backend, proxy_protocol, traffic_spec};
use serde_json::{Value, json};
use tonic::{Code, Status, Streaming};

async fn mesh() -> Mesh {
    let mesh = Mesh::start().await;
    mesh.registry.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    mesh.registry.put(&service("ballot", "web", "10.143.0.5", "web", &json!("http")));
    mesh.ready().await;
    mesh
}

fn spec(workload: &str, port: u32) -> PortSpec {
    PortSpec { workload: workload.to_owned(), port }
}

async fn watch(mesh: &Mesh, workload: &str, port: u32) -> Result<Streaming<Server>, Status> {
    let mut client = InboundServerPoliciesClient::new(mesh.channel("policy").await);
    Ok(client.watch_port(spec(workload, port)).await?.into_inner())
}

/// The next policy, checked by the proxy's rules.
async fn server(stream: &mut Streaming<Server>) -> Server {
    let server = next(stream).await.expect("a policy");
    validate::server(&server).expect("valid");
    server
}

fn annotated(policy: &str) -> Value {
    let value = pod("ballot", "web-1", "web", "10.142.0.9");
    with(value, "/metadata/annotations/config.ringmail.dev~1default-inbound-policy", json!(policy))
}

fn networks(authz: &Authz) -> Vec<String> {
    let net = |network: &ringmail_api::linkerd::inbound::Network| {
        ipnet::IpNet::try_from(network.net.expect("set")).expect("a network").to_string()
    };
    authz.networks.iter().map(net).collect()
}

/// Whether callers need an identity.
fn authenticated(authz: &Authz) -> bool {
    match authz.authentication.as_ref().and_then(|authn| authn.permit.as_ref()).expect("a permit") {
        Permit::Unauthenticated(_) => false,
        Permit::MeshTls(tls) => {
            let Some(Clients::Identities(clients)) = &tls.clients else { panic!("not by identity") };
            assert!(clients.identities.is_empty());
            assert_eq!(
                clients.suffixes.iter().map(|suffix| suffix.parts.len()).collect::<Vec<_>>(),
                [0],
                "every name"
            );
            true
        }
    }
}

#[tokio::test]
async fn each_policy_by_annotation_has_its_networks_and_its_authentication() {
    let mesh = mesh().await;
    let mut stream = watch(&mesh, "{\"ns\":\"ballot\",\"pod\":\"web-1\"}\n", 8080).await.expect("known");
    let first = server(&mut stream).await;
    assert_eq!(first.labels["name"], "all-unauthenticated", "the controller's default");
    let (all, cluster) = (["0.0.0.0/0", "::/0"].as_slice(), ["10.0.0.0/8"].as_slice());
    for (policy, expected) in [
        ("all-authenticated", Some((all, true))),
        ("all-unauthenticated", Some((all, false))),
        ("cluster-authenticated", Some((cluster, true))),
        ("cluster-unauthenticated", Some((cluster, false))),
        ("deny", None),
        ("audit", Some((all, false))),
    ] {
        mesh.registry.put(&annotated(policy));
        let server = server(&mut stream).await;
        let labels = ["group", "kind", "name"].map(|label| server.labels[label].as_str());
        assert_eq!(labels, ["", "default", policy]);
        let Some((networks, authentication)) = expected else {
            assert!(server.authorizations.is_empty(), "nobody");
            continue;
        };
        let [authz] = server.authorizations.as_slice() else { panic!("one authorization") };
        assert_eq!(self::networks(authz), networks, "{policy}");
        assert_eq!(authenticated(authz), authentication, "{policy}");
        assert_eq!(authz.labels["name"], policy);
        assert_eq!(
            authz.metadata.as_ref().expect("set").kind,
            Some(metadata::Kind::Default(policy.to_owned()))
        );
    }
    mesh.registry.put(&annotated("all-authentcated"));
    assert_eq!(server(&mut stream).await.labels["name"], "deny", "a typing error opens nothing");
}

fn routes(server: &Server) -> &[HttpRoute] {
    match server.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref()).expect("a kind") {
        Kind::Detect(detect) => &detect.http_routes,
        other => panic!("not detect: {other:?}"),
    }
}

fn route_name(route: &HttpRoute) -> &str {
    match route.metadata.as_ref().and_then(|metadata| metadata.kind.as_ref()).expect("metadata") {
        metadata::Kind::Default(name) => name,
        metadata::Kind::Resource(_) => panic!("no object stands behind it"),
    }
}

#[tokio::test]
async fn probes_have_a_route_of_their_own_on_their_port_and_only_there() {
    let mesh = mesh().await;
    let containers = json!([{
        "name": "app", "ports": [{ "name": "http", "containerPort": 8080 }],
        "livenessProbe": { "httpGet": { "path": "/live", "port": "http" } },
        "readinessProbe": { "httpGet": { "path": "/ready?verbose", "port": 8080 } },
        "startupProbe": { "grpc": { "port": 8080 } },
    }]);
    mesh.registry.put(&with(annotated("all-authenticated"), "/spec/containers", containers));
    let mut stream = watch(&mesh, "ballot:web-1", 8080).await.expect("known");
    let server = loop {
        let server = server(&mut stream).await;
        if routes(&server).len() == 2 {
            break server;
        }
    };
    assert!(authenticated(&server.authorizations[0]), "everything else needs an identity");
    let [probe, rest] = routes(&server) else { panic!("two routes") };
    assert_eq!((route_name(probe), route_name(rest)), ("probe", "default"));
    assert!(rest.authorizations.is_empty(), "it has the port's own");
    let [authz] = probe.authorizations.as_slice() else { panic!("one authorization") };
    assert!(!authenticated(authz));
    assert_eq!(networks(authz), ["0.0.0.0/0", "::/0"]);
    let matches: Vec<_> = probe
        .rules
        .iter()
        .flat_map(|rule| &rule.matches)
        .map(|one| {
            let path = match one.path.as_ref().and_then(|path| path.kind.as_ref()).expect("a path") {
                path_match::Kind::Exact(path) => path.as_str(),
                other => panic!("not exact: {other:?}"),
            };
            match one.method.as_ref().and_then(|method| method.r#type.as_ref()).expect("a method") {
                Type::Registered(method) => (Registered::try_from(*method).expect("registered"), path),
                Type::Unregistered(other) => panic!("{other}"),
            }
        })
        .collect();
    let expected = [
        (Registered::Get, "/live"),
        (Registered::Get, "/ready"),
        (Registered::Post, "/grpc.health.v1.Health/Check"),
    ];
    assert_eq!(matches, expected);
    let mut other = watch(&mesh, "ballot:web-1", 8081).await.expect("known");
    let server = self::server(&mut other).await;
    assert_eq!(routes(&server).iter().map(route_name).collect::<Vec<_>>(), ["default"]);
}

#[tokio::test]
async fn an_opaque_port_is_told_so_and_a_port_may_require_identity() {
    let mesh = mesh().await;
    let annotations = json!({
        "config.ringmail.dev/opaque-ports": "3306",
        "config.ringmail.dev/proxy-require-identity-inbound-ports": "8080",
    });
    mesh.registry.put(&with(
        pod("ballot", "db-0", "db", "10.142.0.12"),
        "/metadata/annotations",
        annotations,
    ));
    let kind = |server: &Server| {
        server.protocol.as_ref().and_then(|protocol| protocol.kind.clone()).expect("a kind")
    };
    let opaque = server(&mut watch(&mesh, "ballot:db-0", 3306).await.expect("known")).await;
    assert!(matches!(kind(&opaque), Kind::Opaque(_)));
    assert_eq!(opaque.labels["name"], "all-unauthenticated");
    let strict = server(&mut watch(&mesh, "ballot:db-0", 8080).await.expect("known")).await;
    assert!(matches!(kind(&strict), Kind::Detect(_)));
    assert_eq!(strict.labels["name"], "all-authenticated");
}

#[tokio::test]
async fn a_workload_that_is_malformed_or_unknown_is_refused_and_one_that_goes_ends_its_stream() {
    let mesh = mesh().await;
    for (workload, port, code, error) in [
        ("{", 80, Code::InvalidArgument, "RM1620"),
        ("{\"ns\":\"ballot\"}", 80, Code::InvalidArgument, "RM1620"),
        ("ballot:web-1", 0, Code::InvalidArgument, "RM1622"),
        ("ballot:web-1", 65536, Code::InvalidArgument, "RM1622"),
        ("ballot:nobody", 80, Code::NotFound, "RM1621"),
        ("other:web-1", 80, Code::NotFound, "RM1621"),
    ] {
        let status = watch(&mesh, workload, port).await.expect_err(workload);
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().starts_with(error), "{status}");
    }
    let mut stream = watch(&mesh, "ballot:web-1", 8080).await.expect("known");
    server(&mut stream).await;
    mesh.registry.remove(&pod("ballot", "web-1", "web", "10.142.0.9"));
    let ended = next(&mut stream).await.expect_err("the pod is gone");
    assert_eq!(ended.code(), Code::NotFound);
}

#[tokio::test]
async fn a_question_without_a_stream_has_the_same_answer() {
    let mesh = mesh().await;
    let mut client = InboundServerPoliciesClient::new(mesh.channel("policy").await);
    let once = client.get_port(spec("ballot:web-1", 8080)).await.expect("answered").into_inner();
    let streamed = server(&mut watch(&mesh, "ballot:web-1", 8080).await.expect("known")).await;
    assert_eq!(once, streamed);
    let mut client = OutboundPoliciesClient::new(mesh.channel("policy").await);
    let once = client.get(to("10.143.0.5:80")).await.expect("answered").into_inner();
    assert_eq!(once, outbound(&mesh, to("10.143.0.5:80")).await.expect("answered"));
}

fn to(addr: &str) -> TrafficSpec {
    let target = match addr.parse::<SocketAddr>() {
        Ok(addr) => traffic_spec::Target::Addr(addr.into()),
        Err(_) => traffic_spec::Target::Authority(addr.to_owned()),
    };
    TrafficSpec { source_workload: "ballot:bot".to_owned(), target: Some(target) }
}

async fn outbound(mesh: &Mesh, spec: TrafficSpec) -> Result<OutboundPolicy, Status> {
    let mut client = OutboundPoliciesClient::new(mesh.channel("policy").await);
    let mut stream = client.watch(spec).await?.into_inner();
    let policy = next(&mut stream).await?;
    validate::outbound_policy(&policy).expect("valid");
    Ok(policy)
}

fn backend_of(policy: &OutboundPolicy) -> backend::Kind {
    use ringmail_api::linkerd::outbound::opaque_route::distribution::Kind;
    let opaque = match policy.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref()).expect("a kind") {
        proxy_protocol::Kind::Detect(detect) => detect.opaque.as_ref().expect("set"),
        proxy_protocol::Kind::Opaque(opaque) => opaque,
        other => panic!("{other:?}"),
    };
    let distribution =
        opaque.routes[0].rules[0].backends.as_ref().and_then(|backends| backends.kind.as_ref());
    let Some(Kind::FirstAvailable(first)) = distribution else { panic!("no backend: {distribution:?}") };
    first.backends[0].backend.as_ref().and_then(|backend| backend.kind.clone()).expect("a backend")
}

#[tokio::test]
async fn a_service_is_balanced_and_an_address_outside_is_forwarded() {
    let mesh = mesh().await;
    for target in ["10.143.0.5:80", "web.ballot.svc.cluster.local:80"] {
        let policy = outbound(&mesh, to(target)).await.expect("answered");
        let backend::Kind::Balancer(balancer) = backend_of(&policy) else { panic!("not balanced") };
        let backend::endpoint_discovery::Kind::Dst(dst) =
            balancer.discovery.and_then(|found| found.kind).expect("set");
        assert_eq!(dst.path, "web.ballot.svc.cluster.local:80");
    }
    let policy = outbound(&mesh, to("93.184.216.34:443")).await.expect("answered");
    let backend::Kind::Forward(addr) = backend_of(&policy) else { panic!("not forwarded") };
    assert_eq!(
        SocketAddr::try_from(addr.addr.expect("set")).expect("an address").to_string(),
        "93.184.216.34:443"
    );
    assert_eq!(addr.tls_identity, None);
}

#[tokio::test]
async fn an_opaque_service_is_opaque_and_a_port_it_lacks_is_forbidden() {
    use ringmail_api::linkerd::outbound::opaque_route::filter::Kind;
    let mesh = mesh().await;
    let annotation = json!({ "config.linkerd.io/opaque-ports": "80" });
    mesh.registry.put(&with(
        service("ballot", "raw", "10.143.0.9", "web", &json!(80)),
        "/metadata/annotations",
        annotation,
    ));
    let policy = loop {
        match outbound(&mesh, to("10.143.0.9:80")).await {
            Ok(policy) => break policy,
            Err(status) => assert_eq!(status.code(), Code::NotFound),
        }
    };
    assert!(matches!(policy.protocol.as_ref().expect("set").kind, Some(proxy_protocol::Kind::Opaque(_))));
    assert!(matches!(backend_of(&policy), backend::Kind::Balancer(_)));
    let policy = outbound(&mesh, to("10.143.0.5:81")).await.expect("answered");
    let Some(proxy_protocol::Kind::Opaque(opaque)) = policy.protocol.and_then(|protocol| protocol.kind)
    else {
        panic!()
    };
    assert!(matches!(opaque.routes[0].rules[0].filters[0].kind, Some(Kind::Forbidden(_))));
}

#[tokio::test]
async fn pods_and_unknown_addresses_are_left_to_the_profile_and_malformed_targets_refused() {
    let mesh = mesh().await;
    for target in ["10.142.0.9:8080", "10.143.0.200:80", "none.ballot.svc.cluster.local:80"] {
        assert_eq!(outbound(&mesh, to(target)).await.expect_err(target).code(), Code::NotFound);
    }
    for target in ["example.com:80", "web.ballot"] {
        assert_eq!(outbound(&mesh, to(target)).await.expect_err(target).code(), Code::InvalidArgument);
    }
    let nothing = TrafficSpec { source_workload: String::new(), target: None };
    assert!(outbound(&mesh, nothing).await.expect_err("no target").message().starts_with("RM1623"));
    let port_0 = outbound(&mesh, to("93.184.216.34:0")).await.expect_err("port 0");
    assert_eq!(port_0.code(), Code::InvalidArgument);
}
