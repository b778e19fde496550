//! `Destination` and `Sources` over gRPC.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::objects::{controller, owner_reference, pod, service, with};
use common::{Mesh, next, until, validate};
use ringmail_api::linkerd::destination::destination_client::DestinationClient;
use ringmail_api::linkerd::destination::tls_identity::Strategy;
use ringmail_api::linkerd::destination::{DestinationProfile, GetDestination, Update, WeightedAddr, update};
use ringmail_api::sources::SourceRequest;
use ringmail_api::sources::source::Kind;
use ringmail_api::sources::sources_client::SourcesClient;
use serde_json::json;
use tonic::{Code, Status, Streaming};

const WEB: &str = "web.ballot.serviceaccount.identity.ringmail.cluster.local";

async fn mesh() -> Mesh {
    let mesh = Mesh::start().await;
    mesh.registry.put(&service("ballot", "web", "10.143.0.5", "web", &json!("http")));
    mesh.registry.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    mesh.ready().await;
    mesh
}

fn ask(path: &str) -> GetDestination {
    GetDestination {
        scheme: String::new(),
        path: path.to_owned(),
        context_token: "{\"ns\":\"ballot\", \"nodeName\":\"n\", \"pod\":\"p\"}\n".to_owned(),
    }
}

async fn get(mesh: &Mesh, path: &str) -> Result<Streaming<Update>, Status> {
    let mut client = DestinationClient::new(mesh.channel("destination").await);
    Ok(client.get(ask(path)).await?.into_inner())
}

async fn profile(mesh: &Mesh, path: &str) -> Result<Streaming<DestinationProfile>, Status> {
    let mut client = DestinationClient::new(mesh.channel("destination").await);
    Ok(client.get_profile(ask(path)).await?.into_inner())
}

async fn refused<T>(opened: Result<Streaming<T>, Status>) -> Status {
    match opened {
        Err(status) => status,
        Ok(mut stream) => match next(&mut stream).await {
            Err(status) => status,
            Ok(_) => panic!("answered"),
        },
    }
}

/// The next update, checked by the proxy's rules.
async fn update(stream: &mut Streaming<Update>, first: bool) -> update::Update {
    let message = next(stream).await.expect("a message");
    validate::destination_update(&message, first).expect("valid");
    message.update.expect("set")
}

fn address(addr: &WeightedAddr) -> String {
    SocketAddr::try_from(addr.addr.expect("set")).expect("an address").to_string()
}

fn identity(addr: &WeightedAddr) -> Option<String> {
    let tls = addr.tls_identity.as_ref()?;
    let Some(Strategy::DnsLikeIdentity(name)) = &tls.strategy else { panic!("not a DNS-like name") };
    assert_eq!(tls.server_name.as_ref().expect("set").name, name.name);
    Some(name.name.clone())
}

fn added(update: update::Update) -> Vec<WeightedAddr> {
    match update {
        update::Update::Add(set) => set.addrs,
        other => panic!("not an add: {other:?}"),
    }
}

#[tokio::test]
async fn endpoints_come_as_a_set_and_then_as_differences() {
    let mesh = mesh().await;
    let mut stream = get(&mesh, "web.ballot.svc.cluster.local:80").await.expect("a service");
    let update::Update::Add(set) = update(&mut stream, true).await else { panic!("not an add") };
    assert_eq!(
        (set.metric_labels["namespace"].as_str(), set.metric_labels["service"].as_str()),
        ("ballot", "web")
    );
    let [web] = set.addrs.as_slice() else { panic!("one endpoint") };
    assert_eq!((address(web).as_str(), identity(web).as_deref()), ("10.142.0.9:8080", Some(WEB)));
    assert_eq!(
        (web.metric_labels["pod"].as_str(), web.metric_labels["serviceaccount"].as_str()),
        ("web-1", "web")
    );
    assert_eq!(web.protocol_hint, None, "neither a hint nor an opaque transport between our proxies");

    let second = pod("ballot", "web-2", "web", "10.142.0.10");
    mesh.registry.put(&second);
    let new = added(update(&mut stream, false).await);
    assert_eq!(new.iter().map(address).collect::<Vec<_>>(), ["10.142.0.10:8080"]);
    mesh.registry.remove(&second);
    let update::Update::Remove(gone) = update(&mut stream, false).await else { panic!("not a remove") };
    assert_eq!(SocketAddr::try_from(gone.addrs[0]).expect("an address").to_string(), "10.142.0.10:8080");

    mesh.registry.put(&with(pod("ballot", "web-1", "web", "10.142.0.9"), "/status/conditions", json!([])));
    let update::Update::NoEndpoints(none) = update(&mut stream, false).await else { panic!("not empty") };
    assert!(none.exists);
    mesh.registry.remove(&service("ballot", "web", "10.143.0.5", "web", &json!("http")));
    let update::Update::NoEndpoints(none) = update(&mut stream, false).await else { panic!("not empty") };
    assert!(!none.exists);
    mesh.registry.put(&service("ballot", "web", "10.143.0.5", "web", &json!("http")));
    until(
        &mut stream,
        |message| matches!(message.update, Some(update::Update::NoEndpoints(none)) if none.exists),
    )
    .await;
    mesh.registry.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    assert_eq!(added(update(&mut stream, false).await).len(), 1);
}

#[tokio::test]
async fn a_stream_starts_with_no_endpoints_where_there_are_none() {
    let mesh = mesh().await;
    mesh.registry.put(&service("ballot", "empty", "10.143.0.6", "nobody", &json!(80)));
    for path in ["empty.ballot.svc.cluster.local:80", "web.ballot.svc.cluster.local:81"] {
        let mut stream = loop {
            // The registry may hear of the service a moment later.
            match get(&mesh, path).await {
                Ok(stream) => break stream,
                Err(status) => assert_eq!(status.code(), Code::NotFound),
            }
        };
        let update::Update::NoEndpoints(none) = update(&mut stream, true).await else { panic!("not empty") };
        assert!(none.exists, "{path}");
    }
}

#[tokio::test]
async fn an_endpoint_whose_pod_is_replaced_or_becomes_meshed_is_told_anew() {
    let mesh = mesh().await;
    let mut stream = get(&mesh, "web.ballot.svc.cluster.local:80").await.expect("a service");
    added(update(&mut stream, true).await);
    // It loses its proxy.
    let label = "/metadata/labels/ringmail.dev~1control-plane-ns";
    let unmeshed = with(pod("ballot", "web-1", "web", "10.142.0.9"), label, json!("none"));
    mesh.registry.put(&unmeshed);
    let [web] = added(update(&mut stream, false).await).try_into().expect("one");
    assert_eq!(identity(&web), None);
    mesh.registry.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    let [web] = added(update(&mut stream, false).await).try_into().expect("one");
    assert_eq!(identity(&web).as_deref(), Some(WEB));
    // Another pod of another account takes over name and address.
    let other = with(pod("ballot", "web-1", "web", "10.142.0.9"), "/metadata/uid", json!("another"));
    mesh.registry.put(&with(other, "/spec/serviceAccountName", json!("canary")));
    let [web] = added(update(&mut stream, false).await).try_into().expect("one");
    assert_eq!(identity(&web).expect("meshed"), WEB.replace("web.", "canary."));
}

#[tokio::test]
async fn thousands_of_endpoints_come_in_messages_that_clients_accept() {
    let mesh = mesh().await;
    for number in 0..2500_u16 {
        let [high, low] = number.to_be_bytes();
        mesh.registry.put(&pod("ballot", &format!("many-{number}"), "many", &format!("10.144.{high}.{low}")));
    }
    mesh.registry.put(&service("ballot", "many", "10.143.0.7", "many", &json!(80)));
    let mut stream = loop {
        match get(&mesh, "many.ballot.svc.cluster.local:80").await {
            Ok(stream) => break stream,
            Err(status) => assert_eq!(status.code(), Code::NotFound),
        }
    };
    let mut count = 0;
    while count < 2500 {
        if let update::Update::Add(set) = update(&mut stream, count == 0).await {
            assert!(set.addrs.len() <= 1000);
            count += set.addrs.len();
        }
    }
    assert_eq!(count, 2500);
}

#[tokio::test]
async fn what_is_no_service_has_no_endpoints() {
    let mesh = mesh().await;
    let external =
        with(service("ballot", "outside", "10.143.0.8", "x", &json!(80)), "/spec/selector", json!(null));
    mesh.registry.put(&external);
    for (path, code, error) in [
        ("10.143.0.5:80", Code::InvalidArgument, "RM1612"),
        ("example.com:80", Code::InvalidArgument, "RM1611"),
        ("web.ballot.svc.cluster.local", Code::InvalidArgument, "RM1611"),
        ("none.ballot.svc.cluster.local:80", Code::NotFound, "RM1613"),
        ("web.other.svc.cluster.local:80", Code::NotFound, "RM1613"),
        ("outside.ballot.svc.cluster.local:80", Code::NotFound, "RM1613"),
    ] {
        let status = refused(get(&mesh, path).await).await;
        assert_eq!(status.code(), code, "{path}: {status}");
        assert!(
            status.message().starts_with(error)
                && status.message().contains(path.split(':').next().expect("a name")),
            "{status}"
        );
    }
    get(&mesh, "web.ballot.svc.cluster.local:80").await.expect("its twin is answered");
}

#[tokio::test]
async fn a_services_address_has_its_full_name_and_a_pods_its_endpoint() {
    let mesh = mesh().await;
    for path in ["10.143.0.5:80", "web.ballot.svc.cluster.local:80"] {
        let mut stream = profile(&mesh, path).await.expect("known");
        let service = next(&mut stream).await.expect("a profile");
        assert_eq!(service.fully_qualified_name, "web.ballot.svc.cluster.local");
        assert!(service.endpoint.is_none() && !service.opaque_protocol);
    }
    let mut stream = profile(&mesh, "10.142.0.9:8080").await.expect("known");
    let endpoint = next(&mut stream).await.expect("a profile").endpoint.expect("a pod");
    validate::endpoint(&endpoint).expect("valid");
    assert_eq!((address(&endpoint).as_str(), identity(&endpoint).as_deref()), ("10.142.0.9:8080", Some(WEB)));
    assert_eq!(endpoint.metric_labels["namespace"], "ballot");
    // A port that the service does not have: an empty profile, and the stream stays.
    let mut stream = profile(&mesh, "10.143.0.5:81").await.expect("known");
    assert_eq!(next(&mut stream).await.expect("a profile"), DestinationProfile::default());
    let more = json!([{ "name": "web", "port": 80 }, { "name": "more", "port": 81 }]);
    mesh.registry.put(&with(service("ballot", "web", "10.143.0.5", "web", &json!(80)), "/spec/ports", more));
    assert_eq!(
        next(&mut stream).await.expect("a profile").fully_qualified_name,
        "web.ballot.svc.cluster.local"
    );
}

#[tokio::test]
async fn the_control_port_has_the_pods_identity_and_admin_and_skipped_ports_have_none() {
    let mesh = mesh().await;
    for (port, expected) in [(8080, Some(WEB)), (4190, Some(WEB)), (4191, None), (9000, None)] {
        let mut stream = profile(&mesh, &format!("10.142.0.9:{port}")).await.expect("known");
        let endpoint = next(&mut stream).await.expect("a profile").endpoint.expect("a pod");
        assert_eq!(identity(&endpoint).as_deref(), expected, "{port}");
    }
}

#[tokio::test]
async fn labels_name_the_workload_at_the_top() {
    let mesh = mesh().await;
    mesh.registry.put(&controller("apps/v1", "ReplicaSet", "ballot", "web-abc", Some(("Deployment", "web"))));
    let owned = with(
        pod("ballot", "web-1", "web", "10.142.0.9"),
        "/metadata/ownerReferences",
        json!([owner_reference("ReplicaSet", "web-abc")]),
    );
    mesh.registry.put(&with(owned, "/metadata/labels/pod-template-hash", json!("abc")));
    let mut stream = profile(&mesh, "10.142.0.9:8080").await.expect("known");
    let told = until(&mut stream, |profile| {
        profile.endpoint.as_ref().is_some_and(|e| e.metric_labels.contains_key("deployment"))
    })
    .await;
    let labels = told.endpoint.expect("a pod").metric_labels;
    let expected = [
        ("deployment", "web"),
        ("pod", "web-1"),
        ("namespace", "ballot"),
        ("serviceaccount", "web"),
        ("control_plane_ns", "ringmail"),
        ("pod_template_hash", "abc"),
    ];
    for (label, value) in expected {
        assert_eq!(labels[label], value);
    }
}

#[tokio::test]
async fn opaque_ports_are_marked_by_annotation_and_by_default() {
    let mesh = mesh().await;
    let mut stream = profile(&mesh, "10.142.0.9:3306").await.expect("known");
    let told = next(&mut stream).await.expect("a profile");
    assert!(told.opaque_protocol, "by default");
    let hint = told.endpoint.expect("a pod").protocol_hint.expect("a hint");
    assert_eq!(hint.opaque_transport, None, "our proxies terminate TLS on the port itself");
    let path = "/metadata/annotations/config.ringmail.dev~1opaque-ports";
    mesh.registry.put(&with(pod("ballot", "web-1", "web", "10.142.0.9"), path, json!("8080")));
    assert!(
        !next(&mut stream).await.expect("a profile").opaque_protocol,
        "the annotation replaces the default"
    );
}

#[tokio::test]
async fn an_address_of_nobody_has_an_empty_profile_until_it_is_somebodys() {
    let mesh = mesh().await;
    let external =
        with(service("ballot", "outside", "10.143.0.8", "x", &json!(80)), "/spec/selector", json!(null));
    mesh.registry.put(&external);
    // The gateway, as the pods' status names it; a service's address that nobody has; a service whose endpoints the
    // cluster knows and the registry does not.
    for path in ["192.168.7.1:53", "10.143.0.10:53", "93.184.216.34:443", "[fd00::1]:80", "10.143.0.8:80"] {
        let mut stream = profile(&mesh, path).await.expect("answered");
        assert_eq!(next(&mut stream).await.expect("a profile"), DestinationProfile::default(), "{path}");
    }
    let mut stream = profile(&mesh, "10.142.0.78:8080").await.expect("answered");
    assert_eq!(next(&mut stream).await.expect("a profile"), DestinationProfile::default());
    mesh.registry.put(&pod("ballot", "later", "web", "10.142.0.78"));
    let told = next(&mut stream).await.expect("a profile").endpoint.expect("a pod");
    assert!(told.tls_identity.is_some(), "without asking again: until then it would get plaintext");
}

#[tokio::test]
async fn a_name_of_nobody_is_refused() {
    let mesh = mesh().await;
    for (path, code) in [("none.ballot.svc.cluster.local:80", "RM1614"), ("example.com:80", "RM1611")] {
        let status = refused(profile(&mesh, path).await).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status}");
        assert!(status.message().starts_with(code), "{status}");
    }
}

#[tokio::test]
async fn a_pod_that_appears_a_moment_later_is_not_taken_for_nobody() {
    let mesh = mesh().await;
    let mut opening = std::pin::pin!(profile(&mesh, "10.142.0.77:8080"));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut opening).await.is_err(), "held");
    mesh.registry.put(&pod("ballot", "late", "web", "10.142.0.77"));
    let mut stream = opening.await.expect("known");
    assert!(next(&mut stream).await.expect("a profile").endpoint.expect("a pod").tls_identity.is_some());
}

#[tokio::test]
async fn an_open_stream_follows_its_address_to_the_next_pod() {
    let mesh = mesh().await;
    let old = pod("ballot", "web-1", "web", "10.142.0.9");
    let mut stream = profile(&mesh, "10.142.0.9:8080").await.expect("known");
    next(&mut stream).await.expect("a profile");
    mesh.registry.remove(&old);
    // Nobody has it now: the last answer stands, so that whoever answers must still prove the old name.
    let quiet = tokio::time::timeout(Duration::from_millis(300), stream.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    mesh.registry.put(&pod("other", "db-0", "db", "10.142.0.9"));
    let endpoint = next(&mut stream).await.expect("a profile").endpoint.expect("a pod");
    assert_eq!(
        identity(&endpoint).expect("meshed"),
        "db.other.serviceaccount.identity.ringmail.cluster.local"
    );
}

#[tokio::test]
async fn a_source_is_meshed_unmeshed_or_unknown_and_changes_are_told() {
    let mesh = mesh().await;
    let label = "/metadata/labels/ringmail.dev~1control-plane-ns";
    mesh.registry.put(&with(pod("ballot", "legacy", "legacy", "10.142.0.20"), label, json!("")));
    let skips = json!({ "config.ringmail.dev/skip-outbound-ports": "25" });
    mesh.registry.put(&with(
        pod("ballot", "mailer", "mailer", "10.142.0.21"),
        "/metadata/annotations",
        skips,
    ));
    let channel = mesh.channel("destination").await;
    let watch = |ip: &str, port: u32| {
        let (mut client, ip) = (SourcesClient::new(channel.clone()), ip.to_owned());
        async move { client.watch(SourceRequest { ip, port }).await.map(tonic::Response::into_inner) }
    };
    let mailer = "mailer.ballot.serviceaccount.identity.ringmail.cluster.local";
    for (ip, port, kind, name) in [
        ("10.142.0.9", 3306, Kind::Meshed, WEB),
        ("10.142.0.20", 3306, Kind::Unmeshed, ""),
        ("10.142.0.21", 3306, Kind::Meshed, mailer),
        ("10.142.0.21", 25, Kind::Unmeshed, ""),
        ("192.168.7.1", 3306, Kind::Unmeshed, ""),
        ("93.184.216.34", 3306, Kind::Unmeshed, ""),
        ("::ffff:10.142.0.9", 3306, Kind::Meshed, WEB),
    ] {
        let mut stream = watch(ip, port).await.expect("answered");
        let source = until(&mut stream, |source| source.kind() != Kind::Unknown).await;
        assert_eq!((source.kind(), source.identity.as_str()), (kind, name), "{ip}:{port}");
    }
    // An address of the cluster's networks of which nothing is known may be a meshed pod's.
    let mut stream = watch("10.142.0.30", 3306).await.expect("answered");
    assert_eq!(next(&mut stream).await.expect("a source").kind(), Kind::Unknown);
    mesh.registry.put(&pod("ballot", "new", "web", "10.142.0.30"));
    assert_eq!(next(&mut stream).await.expect("a source").kind(), Kind::Meshed);
    for (ip, port) in [("x", 80), ("10.142.0.9", 0), ("10.142.0.9", 65536)] {
        assert_eq!(refused(watch(ip, port).await).await.code(), Code::InvalidArgument, "{ip}:{port}");
    }
}

#[tokio::test]
async fn before_the_registry_is_synced_nothing_is_said_that_could_be_wrong() {
    let mesh =
        Mesh::start_with(|settings| settings.registry_dir = settings.registry_dir.join("not-yet")).await;
    let status = refused(profile(&mesh, "10.142.0.9:80").await).await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().starts_with("RM1610") && status.message().contains("10.142.0.9:80"), "{status}");
    let mut client = SourcesClient::new(mesh.channel("destination").await);
    let request = SourceRequest { ip: "93.184.216.34".to_owned(), port: 80 };
    let mut stream = client.watch(request).await.expect("answered").into_inner();
    assert_eq!(next(&mut stream).await.expect("a source").kind(), Kind::Unknown);
    let directory = mesh.registry.path().join("not-yet");
    std::fs::create_dir(&directory).expect("made");
    assert_eq!(next(&mut stream).await.expect("a source").kind(), Kind::Unmeshed, "synced");
}

#[tokio::test]
async fn an_object_elsewhere_wakes_nobody() {
    let mesh = mesh().await;
    let mut stream = get(&mesh, "web.ballot.svc.cluster.local:80").await.expect("a service");
    update(&mut stream, true).await;
    mesh.registry.put(&pod("other", "web-1", "web", "10.142.9.9"));
    mesh.registry.put(&service("other", "web", "10.143.9.5", "web", &json!("http")));
    // Its twin shows that it has been read.
    let mut twin = loop {
        if let Ok(stream) = get(&mesh, "web.other.svc.cluster.local:80").await {
            break stream;
        }
    };
    until(&mut twin, |message| matches!(message.update, Some(update::Update::Add(_)))).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), stream.message()).await.is_err());
}
