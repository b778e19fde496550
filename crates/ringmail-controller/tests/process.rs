//! The process around the roles: its admin server, its start and its end.

mod common;

use common::objects::{pod, service};
use common::{LIMIT, Mesh, next};
use ringmail_api::linkerd::destination::GetDestination;
use ringmail_api::linkerd::destination::destination_client::DestinationClient;
use ringmail_controller::StartError;
use ringmail_controller::settings::Role;
use serde_json::json;
use tonic::Code;

#[tokio::test]
async fn it_is_live_at_once_and_ready_when_everything_is_read() {
    let mesh =
        Mesh::start_with(|settings| settings.registry_dir = settings.registry_dir.join("not-yet")).await;
    assert_eq!(mesh.admin("/live").await, (200, "live\n".to_owned()));
    let (status, text) = mesh.admin("/ready").await;
    assert!(status == 503 && text.contains("the registry is not synced"), "{text}");
    std::fs::create_dir(mesh.registry.path().join("not-yet")).expect("made");
    mesh.ready().await;
    assert_eq!(mesh.admin("/nothing").await.0, 404);
}

#[tokio::test]
async fn metrics_tell_of_the_issuer_the_registry_and_open_streams() {
    let mesh = Mesh::start().await;
    mesh.registry.put(&service("ballot", "web", "10.143.0.5", "web", &json!(80)));
    mesh.registry.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    mesh.ready().await;
    let mut client = DestinationClient::new(mesh.channel("destination").await);
    let ask = GetDestination { path: "10.142.0.9:80".to_owned(), ..GetDestination::default() };
    let mut stream = client.get_profile(ask).await.expect("known").into_inner();
    next(&mut stream).await.expect("a profile");
    let (status, text) = mesh.admin("/metrics").await;
    assert_eq!(status, 200);
    let value = |name: &str| {
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse::<i64>().ok())
    };
    let year = 365 * 24 * 3600;
    assert!(
        value("issuer_cert_ttl_seconds").is_some_and(|left| left > year - 3600 && left <= year),
        "{text}"
    );
    assert_eq!((value("registry_synced"), value("registry_pods")), (Some(1), Some(1)));
    assert_eq!((value("grpc_streams_open"), value("grpc_stream_messages_sent_total")), (Some(1), Some(1)));
    assert!(text.ends_with("# EOF\n"));
    drop(stream);
    let closed = async {
        while !mesh.admin("/metrics").await.1.contains("grpc_streams_open{rpc=\"GetProfile\"} 0") {}
    };
    tokio::time::timeout(LIMIT, closed).await.expect("counted down");
}

#[tokio::test]
async fn at_its_end_streams_are_told_and_the_process_does_not_wait_for_them() {
    let mesh = Mesh::start().await;
    mesh.registry.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    mesh.ready().await;
    let mut client = DestinationClient::new(mesh.channel("destination").await);
    let ask = GetDestination { path: "10.142.0.9:80".to_owned(), ..GetDestination::default() };
    let mut stream = client.get_profile(ask).await.expect("known").into_inner();
    next(&mut stream).await.expect("a profile");
    tokio::time::timeout(LIMIT, mesh.control_plane.end()).await.expect("ends");
    let status = next(&mut stream).await.expect_err("ended");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("RM1609"), "{status}");
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_role() {
    let mesh = Mesh::start().await;
    let taken = mesh.control_plane.address("destination").expect("it runs");
    let mut settings = None;
    // The same address for another process.
    let twin = Mesh::start_with(|given| settings = Some(given.clone())).await;
    let mut settings = settings.expect("set");
    settings.destination_addr = taken;
    settings.roles = [Role::Destination].into();
    settings.identity = None;
    let error = ringmail_controller::ControlPlane::start(settings).await.expect_err("in use");
    assert!(matches!(error, StartError::Listen { role: "destination", .. }));
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    drop(twin);
}

#[test]
fn the_binary_refuses_the_role_injector_and_names_what_is_missing() {
    let run = |arguments: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_ringmail-controller")).args(arguments).output();
        let output = output.expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (well, text) = run(&["--roles", "injector", "--registry-dir", "/nowhere"]);
    assert!(!well && text.contains("needs Kubernetes"), "{text}");
    let (well, text) = run(&["--roles", "identity", "--registry-dir", "/nowhere"]);
    assert!(!well && text.contains("--issuer-dir"), "{text}");
}

#[test]
fn the_binary_ends_in_order_when_it_is_asked_to() {
    use std::io::{BufRead as _, BufReader};
    let directory = common::objects::Directory::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_ringmail-controller"))
        .args(["--roles", "destination,policy", "--registry-dir"])
        .arg(directory.path())
        .args([
            "--destination-addr",
            "127.0.0.1:0",
            "--policy-addr",
            "127.0.0.1:0",
            "--admin-addr",
            "127.0.0.1:0",
        ])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("registry synced")));
    let killed = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    assert!(lines.any(|line| line.contains("asked to end")));
    assert!(child.wait().expect("it ends").success());
}

#[tokio::test]
async fn the_role_viz_answers_on_its_address() {
    use ringmail_api::viz::EdgesRequest;
    use ringmail_api::viz::viz_client::VizClient;
    let mesh = Mesh::start().await;
    mesh.ready().await;
    let mut client = VizClient::new(mesh.channel("viz").await);
    let ask = |kind: &str| EdgesRequest { kind: kind.to_owned(), ..EdgesRequest::default() };
    let answer = tokio::time::timeout(LIMIT, client.edges(ask("deployment"))).await.expect("in time");
    assert!(answer.expect("answered").into_inner().edges.is_empty());
    assert_eq!(client.edges(ask("service")).await.expect_err("no such kind").code(), Code::InvalidArgument);
}
