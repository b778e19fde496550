//! A control plane on loopback, fed by files, and clients for it.

#![allow(dead_code, reason = "each test file takes what it needs")]

#[path = "../../../ringmail-registry/tests/common/mod.rs"]
pub(crate) mod objects;
pub(crate) mod validate;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use objects::Directory;
use ringmail_controller::ControlPlane;
use ringmail_controller::roles::policy::DefaultPolicy;
use ringmail_controller::settings::{IdentitySettings, Role, Settings};
use ringmail_identity::root::{Lifetimes, RootAndIssuer, make_root_and_issuer};
use ringmail_identity::token::{Claims, PodRef, TokenKey};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Longer than anything here takes: a test that needs it has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const AUDIENCE: &str = "identity.ringmail.dev";

pub(crate) struct Mesh {
    pub(crate) control_plane: ControlPlane,
    pub(crate) registry: Directory,
    pub(crate) secrets: Directory,
    pub(crate) roots: RootAndIssuer,
    pub(crate) key: TokenKey,
}

impl Mesh {
    /// All roles, with an empty registry.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let (registry, secrets) = (Directory::new(), Directory::new());
        let mesh = objects::settings();
        let roots = make_root_and_issuer(&mesh.trust_domain, SystemTime::now(), Lifetimes::default())
            .expect("an issuer");
        let key = TokenKey::generate().expect("a key");
        secrets.put_text("tls.crt", &roots.issuer_cert_pem);
        secrets.put_text("tls.key", &roots.issuer_key_pem);
        secrets.put_text("ca.crt", &roots.root_cert_pem);
        secrets.put_text("keys.json", &key.jwks());
        let local: SocketAddr = ([127, 0, 0, 1], 0).into();
        let file = |name: &str| -> PathBuf { secrets.path().join(name) };
        let mut settings = Settings {
            roles: BTreeSet::from([Role::Identity, Role::Destination, Role::Policy, Role::Viz]),
            registry_dir: registry.path().to_owned(),
            mesh,
            cluster_domain: "cluster.local".to_owned(),
            cluster_networks: vec!["10.0.0.0/8".parse().expect("a network")],
            probe_networks: vec!["0.0.0.0/0".parse().expect("a network"), "::/0".parse().expect("a network")],
            identity: Some(IdentitySettings {
                addr: local,
                issuer_dir: secrets.path().to_owned(),
                trust_anchors: file("ca.crt"),
                token_jwks: file("keys.json"),
                audiences: vec![AUDIENCE.to_owned()],
                lifetime: Duration::from_hours(1),
            }),
            destination_addr: local,
            policy_addr: local,
            default_inbound_policy: DefaultPolicy::AllUnauthenticated,
            viz_addr: local,
            admin_addr: local,
        };
        adjust(&mut settings);
        let control_plane = ControlPlane::start(settings).await.expect("starts");
        Self { control_plane, registry, secrets, roots, key }
    }

    pub(crate) async fn channel(&self, role: &str) -> Channel {
        let addr = self.control_plane.address(role).expect("the role runs");
        Channel::from_shared(format!("http://{addr}")).expect("an address").connect().await.expect("connects")
    }

    /// `GET` on the admin server: the status and the body.
    pub(crate) async fn admin(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let addr = self.control_plane.address("admin").expect("it runs");
        let mut stream = tokio::net::TcpStream::connect(addr).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        let (head, body) = text.split_once("\r\n\r\n").expect("a response");
        (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
    }

    /// Waits until `/ready` says so.
    pub(crate) async fn ready(&self) {
        let ready = async {
            while self.admin("/ready").await.0 != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, ready).await.expect("ready");
    }

    /// A token such as a pod of the service account gets.
    pub(crate) fn token(&self, namespace: &str, account: &str, pod: &str, uid: &str) -> Vec<u8> {
        self.sign(&claims(namespace, account, pod, uid))
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Vec<u8> {
        self.key.sign(claims).expect("signed").into_bytes()
    }
}

pub(crate) fn claims(namespace: &str, account: &str, pod: &str, uid: &str) -> Claims {
    let object = |name: &str, uid: &str| PodRef { name: name.to_owned(), uid: uid.to_owned() };
    let hour = Duration::from_hours(1);
    Claims::new(
        "ringmail",
        AUDIENCE,
        namespace,
        object(account, "sa"),
        Some(object(pod, uid)),
        SystemTime::now(),
        hour,
    )
}

/// The next message of a stream, or how it ended.
pub(crate) async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(LIMIT, stream.message()).await.expect("a message in time")?;
    message.ok_or_else(|| Status::new(Code::Ok, "the stream ended"))
}

/// Messages of a stream until one holds.
pub(crate) async fn until<T>(stream: &mut Streaming<T>, mut holds: impl FnMut(&T) -> bool) -> T {
    loop {
        let message = next(stream).await.expect("a message");
        if holds(&message) {
            return message;
        }
    }
}
