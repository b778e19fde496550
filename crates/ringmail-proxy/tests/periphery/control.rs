//! Calls to the control plane: connected, connected again, proven, and never a storm.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringmail_api::linkerd::identity::CertifyRequest;
use ringmail_api::linkerd::identity::identity_client::IdentityClient;
use ringmail_proxy::control::{ControlChannel, ControlClient, Service};
use ringmail_proxy::tls::Credentials;
use ringmail_vocab::Security;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::support::{self, FakeIdentity, Mesh};

struct Caller {
    control: ControlClient,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
}

fn caller(mesh: &Mesh, more: &[(&str, &str)]) -> Caller {
    let local = mesh.id("web", "ballot").identity();
    let config = support::config(mesh, &local, Path::new("token"), more);
    let (credentials, receiver) = watch::channel(None);
    Caller { control: ControlClient::new(&config, receiver), credentials }
}

/// Any call will do: this one is refused for its token once it arrives.
async fn call(channel: ControlChannel) -> tonic::Status {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("makes");
    let request = rcgen::CertificateParams::default().serialize_request(&key).expect("signs");
    let request = CertifyRequest {
        identity: String::new(),
        token: b"bad".to_vec(),
        certificate_signing_request: request.der().to_vec(),
    };
    IdentityClient::new(channel).certify(request).await.expect_err("refused")
}

fn arrived(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::FailedPrecondition
}

#[tokio::test]
async fn calls_share_a_connection_and_a_new_one_follows_a_broken_one() {
    let mesh = Mesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has one").to_string();
    let service = FakeIdentity::start(&mesh, None).await;
    let (connections, cut) = (Arc::<AtomicUsize>::default(), Arc::new(tokio::sync::Notify::new()));
    let (counted, cutting) = (Arc::clone(&connections), Arc::clone(&cut));
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.expect("accepts");
            counted.fetch_add(1, Ordering::Relaxed);
            let mut far = tokio::net::TcpStream::connect(service.addr).await.expect("connects");
            let cutting = Arc::clone(&cutting);
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = cutting.notified() => {}
                }
            });
        }
    });
    let caller = caller(&mesh, &[("DESTINATION_SVC_ADDR", &addr)]);
    for _ in 0..3 {
        let status = call(caller.control.channel(Service::Destination)).await;
        assert!(arrived(&status), "{status}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    cut.notify_waiters();
    // The call that meets the broken connection may fail; one soon after it does not.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let status = call(caller.control.channel(Service::Destination)).await;
        if arrived(&status) {
            break;
        }
        assert!(status.message().starts_with("RM1104: the destination service at "), "{status}");
        assert!(tokio::time::Instant::now() < deadline, "{status}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn many_callers_of_a_service_that_is_away_share_one_attempt() {
    let mesh = Mesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has one").to_string();
    let attempts = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&attempts);
    tokio::spawn(async move {
        // It takes the connection and never says who it is.
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
    });
    let by_name = addr.replace("127.0.0.1", "localhost");
    let name = mesh.id("destination", "ringmail").to_string();
    let more = [
        ("DESTINATION_SVC_ADDR", &*by_name),
        ("DESTINATION_SVC_NAME", &name),
        ("HANDSHAKE_TIMEOUT", "300ms"),
    ];
    let caller = caller(&mesh, &more);
    caller.credentials.send_replace(Some(mesh.credentials(&mesh.id("web", "ballot"))));
    let calls = (0..50).map(|_| call(caller.control.channel(Service::Destination)));
    let failed = futures::future::join_all(calls).await;
    assert_eq!(attempts.load(Ordering::Relaxed), 1);
    let wanted = format!(
        "RM1103: the destination service at {by_name} ({name}): the TLS handshake did not end within 300ms"
    );
    for status in failed {
        assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, &*wanted));
    }
}

#[tokio::test]
async fn destination_is_not_called_before_this_proxy_can_prove_who_it_is() {
    let mesh = Mesh::new();
    let id = mesh.id("destination", "ringmail");
    let service = FakeIdentity::start(&mesh, Some(mesh.credentials(&id))).await;
    let (addr, name) = (format!("localhost:{}", service.addr.port()), id.to_string());
    let caller = caller(&mesh, &[("DESTINATION_SVC_ADDR", &addr), ("DESTINATION_SVC_NAME", &name)]);
    let calling = tokio::spawn(call(caller.control.channel(Service::Destination)));
    let web = mesh.id("web", "ballot");
    caller.credentials.send_replace(Some(mesh.credentials(&web)));
    assert!(arrived(&calling.await.expect("ends")));
    let asked = service.asked.lock().clone();
    let [one] = &asked[..] else { panic!("{asked:?}") };
    assert!(
        matches!(&one.security, Some(Security::Mutual { peer, .. }) if *peer == web.identity()),
        "{one:?}"
    );
}

#[tokio::test]
async fn a_connection_from_before_the_first_certificate_is_not_used_after_it() {
    let mesh = Mesh::new();
    let id = mesh.id("identity", "ringmail");
    let service = FakeIdentity::start(&mesh, Some(mesh.credentials(&id))).await;
    let (addr, name) = (format!("localhost:{}", service.addr.port()), id.to_string());
    let caller = caller(&mesh, &[("IDENTITY_SVC_ADDR", &addr), ("IDENTITY_SVC_NAME", &name)]);
    let channel = caller.control.channel(Service::Identity);
    assert!(arrived(&call(channel.clone()).await));
    caller.credentials.send_replace(Some(mesh.credentials(&mesh.id("web", "ballot"))));
    assert!(arrived(&call(channel).await));
    let kinds: Vec<_> =
        service.asked.lock().iter().map(|asked| asked.security.as_ref().map(Security::is_mutual)).collect();
    assert_eq!(kinds, [Some(false), Some(true)]);
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_not_shown_where_the_next_one_is_asked_for() {
    let mesh = Mesh::new();
    let id = mesh.id("identity", "ringmail");
    let service = FakeIdentity::start(&mesh, Some(mesh.credentials(&id))).await;
    let (addr, name) = (format!("localhost:{}", service.addr.port()), id.to_string());
    let more = [
        ("IDENTITY_SVC_ADDR", &*addr),
        ("IDENTITY_SVC_NAME", &name),
        ("DESTINATION_SVC_ADDR", &addr),
        ("DESTINATION_SVC_NAME", &name),
    ];
    let caller = caller(&mesh, &more);
    caller.credentials.send_replace(Some(mesh.ended_credentials(&mesh.id("web", "ballot")).await));
    let status = call(caller.control.fresh(Service::Identity)).await;
    assert!(arrived(&status), "a machine that slept for a day gets its certificate: {status}");
    let kinds: Vec<_> =
        service.asked.lock().iter().map(|asked| asked.security.as_ref().map(Security::is_mutual)).collect();
    assert_eq!(kinds, [Some(false)]);
    // Its twin: who shows it is refused.
    let status = call(caller.control.fresh(Service::Destination)).await;
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_told_as_that() {
    let mesh = Mesh::new();
    let name = mesh.id("policy", "ringmail").to_string();
    let more = [("POLICY_SVC_ADDR", "no-such-host.invalid:8090"), ("POLICY_SVC_NAME", &*name)];
    let status = call(caller(&mesh, &more).control.channel(Service::Policy)).await;
    assert!(
        status.message().starts_with("RM1101: the policy service at no-such-host.invalid:8090 ("),
        "{status}"
    );
}
