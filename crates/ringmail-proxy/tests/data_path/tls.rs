//! TLS between proxies: what is proven, what is refused, and what both ends can tell of it.

use std::time::{Duration, SystemTime};

use crate::support::Mesh;
use ringmail_identity::Identity;
use ringmail_identity::anchors::TrustAnchors;
use ringmail_proxy::tls::hello::{self, Opening};
use ringmail_proxy::tls::{self, Credentials, CredentialsError, Prefixed, TlsConnection, TlsError};
use ringmail_vocab::{RefusalReason, Security};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

type Served = Result<TlsConnection<DuplexStream>, TlsError>;

/// A server's side from its first byte on.
async fn serve(mut stream: DuplexStream, credentials: &Credentials) -> Served {
    let mut bytes = Vec::new();
    match hello::read(&mut stream, &mut bytes).await.expect("reads") {
        Opening::Tls(hello) => tls::accept(Prefixed::new(bytes, stream), credentials, hello.random).await,
        other => panic!("no ClientHello: {other:?}"),
    }
}

fn pipe() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(1 << 20)
}

async fn handshake(client: &Credentials, server: &Credentials, expected: &Identity) -> (Served, Served) {
    let (near, far) = pipe();
    tokio::join!(client.connect(near, expected, expected.as_str()), serve(far, server))
}

async fn exchange(
    a: &mut (impl AsyncRead + AsyncWrite + Unpin),
    b: &mut (impl AsyncRead + AsyncWrite + Unpin),
) {
    for _ in 0..2 {
        a.write_all(b"ping").await.expect("writes");
        a.flush().await.expect("flushes");
        let mut got = [0; 4];
        b.read_exact(&mut got).await.expect("reads");
        assert_eq!(&got, b"ping");
        b.write_all(b"pong").await.expect("writes");
        b.flush().await.expect("flushes");
        a.read_exact(&mut got).await.expect("reads");
        assert_eq!(&got, b"pong");
    }
}

#[tokio::test]
async fn both_ends_of_a_mutual_handshake_tell_the_same_session() {
    let mesh = Mesh::new();
    let (bot, web) = (mesh.id("bot", "ballot"), mesh.id("web", "ballot"));
    let (client, server) = (mesh.credentials(&bot), mesh.credentials(&web));
    let (near, far) = handshake(&client, &server, &web.identity()).await;
    let (mut near, mut far) = (near.expect("connects"), far.expect("accepts"));
    exchange(&mut near, &mut far).await;
    let (
        Security::Mutual { peer: of_client, tls: at_client },
        Security::Mutual { peer: of_server, tls: at_server },
    ) = (near.security(), far.security())
    else {
        panic!("mutual on both ends: {:?} {:?}", near.security(), far.security())
    };
    assert_eq!((of_client, of_server), (&web.identity(), &bot.identity()));
    assert_eq!(at_client.exporter, at_server.exporter);
    assert_eq!(at_client.exporter.len(), 64);
    assert_eq!(at_client.client_random, at_server.client_random);
    assert_eq!(at_client.client_random.len(), 64);
    assert_eq!((at_client.version.as_str(), at_client.group.as_str()), ("TLSv1.3", "X25519MLKEM768"));
    assert_eq!((&at_client.cipher, &at_client.group), (&at_server.cipher, &at_server.group));
    assert_eq!(at_client.cipher, "TLS13_AES_128_GCM_SHA256");
    assert_eq!(
        (at_client.peer_serial.as_str(), at_server.peer_serial.as_str()),
        (server.serial(), client.serial())
    );

    let (again, _) = handshake(&client, &server, &web.identity()).await;
    assert_ne!(again.expect("connects").security().tls().map(|tls| &tls.exporter), Some(&at_client.exporter));
}

#[tokio::test]
async fn a_right_chain_with_the_wrong_name_is_refused_with_both_names() {
    let mesh = Mesh::new();
    let (client, server) =
        (mesh.credentials(&mesh.id("bot", "ballot")), mesh.credentials(&mesh.id("voting", "ballot")));
    let expected = mesh.id("web", "ballot").identity();
    let (near, far) = handshake(&client, &server, &expected).await;
    let error = near.err().expect("refused");
    assert!(
        matches!(&error, TlsError::WrongIdentity { expected: e, presented }
        if *e == expected && presented.first() == Some(server.local())),
        "{error}"
    );
    assert_eq!((error.reason(), error.code().id()), (RefusalReason::WrongIdentity, "RM1212"));
    let text = error.to_string();
    assert!(text.contains(expected.as_str()) && text.contains(server.local().as_str()), "{text}");
    assert!(matches!(far.err(), Some(TlsError::RefusedByPeer { .. })), "the server learns of it");
}

#[tokio::test]
async fn a_server_of_another_mesh_is_refused_though_its_root_has_the_same_name() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let web = mesh.id("web", "ballot");
    let (client, server) = (mesh.credentials(&mesh.id("bot", "ballot")), other.credentials(&web));
    let (near, far) = handshake(&client, &server, &web.identity()).await;
    let error = near.err().expect("refused");
    assert_eq!(error.reason(), RefusalReason::UnknownIssuer, "{error}");
    assert_eq!(error.claimed(), Some(&web.identity()), "whom it claimed to be is told");
    assert_eq!(far.err().map(|error| error.reason()), Some(RefusalReason::RefusedByPeer));
}

/// Credentials of `other`'s workload that trust both meshes.
fn stranger(mesh: &Mesh, other: &Mesh, name: &str) -> Credentials {
    let both = TrustAnchors::from_pem(&format!("{}{}", mesh.anchors_pem, other.anchors_pem)).expect("reads");
    let id = other.id(name, "ballot");
    let (chain, key) = crate::support::leaf(other, &id);
    Credentials::new(id.identity(), &both, chain, key).expect("stands")
}

#[tokio::test]
async fn a_client_of_another_mesh_is_refused_and_hears_it_as_its_first_read() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let web = mesh.id("web", "ballot");
    let server = mesh.credentials(&web);
    let client = stranger(&mesh, &other, "bot");
    let (near, far) = handshake(&client, &server, &web.identity()).await;
    let error = far.err().expect("refused");
    assert_eq!(error.reason(), RefusalReason::UnknownIssuer, "{error}");
    assert_eq!(error.claimed(), Some(client.local()));
    // In TLS 1.3 the client is done before the server has looked at its certificate.
    let mut near = near.expect("the client cannot know yet");
    let read = near.read(&mut [0; 16]).await.expect_err("an alert");
    assert_eq!(read.kind(), std::io::ErrorKind::InvalidData, "{read}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_server_only_on_both_ends() {
    let mesh = Mesh::new();
    let web = mesh.id("web", "ballot").identity();
    let server = mesh.credentials(&mesh.id("web", "ballot"));
    let (near, far) = pipe();
    let (near, far) =
        tokio::join!(tls::connect(near, None, &mesh.anchors, &web, web.as_str()), serve(far, &server));
    let (near, far) = (near.expect("connects"), far.expect("accepts"));
    let (
        Security::ServerOnly { peer: Some(peer), tls: at_client },
        Security::ServerOnly { peer: None, tls: at_server },
    ) = (near.security(), far.security())
    else {
        panic!("server only: {:?} {:?}", near.security(), far.security())
    };
    assert_eq!((peer, &at_client.exporter), (&web, &at_server.exporter));
    assert_eq!(at_server.peer_serial, "");
}

#[tokio::test]
async fn without_a_certificate_the_server_is_verified_all_the_same() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let web = mesh.id("web", "ballot");
    let server = mesh.credentials(&web);
    let name = web.identity();
    let (near, far) = pipe();
    let (near, _) =
        tokio::join!(tls::connect(near, None, &other.anchors, &name, name.as_str()), serve(far, &server));
    assert_eq!(near.err().map(|error| error.reason()), Some(RefusalReason::UnknownIssuer));
}

async fn one_by_one(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    while let Ok(byte) = from.read_u8().await {
        if to.write_u8(byte).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_hello_that_comes_byte_by_byte_is_a_hello() {
    let mesh = Mesh::new();
    let (bot, web) = (mesh.id("bot", "ballot"), mesh.id("web", "ballot"));
    let (client, server) = (mesh.credentials(&bot), mesh.credentials(&web));
    let (near, between) = pipe();
    let (far, between_too) = pipe();
    // Each byte goes on by itself, and only when the one before it was taken.
    let (mut a, mut b) = (tokio::io::split(between), tokio::io::split(between_too));
    tokio::spawn(async move { tokio::join!(one_by_one(&mut a.0, &mut b.1), one_by_one(&mut b.0, &mut a.1)) });
    let expected = web.identity();
    let (near, far) = tokio::join!(client.connect(near, &expected, expected.as_str()), serve(far, &server));
    let (near, far) = (near.expect("connects"), far.expect("accepts"));
    assert_eq!(near.security().tls().map(|tls| &tls.exporter), far.security().tls().map(|tls| &tls.exporter));
    assert_eq!(
        near.security().tls().map(|tls| &tls.client_random),
        far.security().tls().map(|tls| &tls.client_random)
    );
}

#[tokio::test]
async fn a_client_that_speaks_tls_1_2_only_is_refused() {
    let mesh = Mesh::new();
    let server = mesh.credentials(&mesh.id("web", "ballot"));
    let (mut near, far) = pipe();
    near.write_all(&tls12_hello(server.local().as_str())).await.expect("writes");
    let error = serve(far, &server).await.err().expect("refused");
    assert_eq!(error.reason(), RefusalReason::HandshakeFailed, "{error}");
    let mut alert = [0; 7];
    near.read_exact(&mut alert).await.expect("an alert");
    // Alert record, fatal, protocol_version (RFC 8446 6.2).
    assert_eq!((alert[0], alert[5], alert[6]), (21, 2, 70));
}

/// A ClientHello as a TLS 1.2 client with AES-GCM and ECDSA sends it (RFC 5246 7.4.1.2).
fn tls12_hello(sni: &str) -> Vec<u8> {
    let extension = |kind: u16, body: &[u8]| {
        let mut all = kind.to_be_bytes().to_vec();
        all.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
        all.extend(body);
        all
    };
    let length = u16::try_from(sni.len()).expect("short");
    let mut names = (length + 3).to_be_bytes().to_vec();
    names.push(0);
    names.extend(length.to_be_bytes());
    names.extend(sni.as_bytes());
    let mut extensions = extension(0, &names);
    extensions.extend(extension(10, &[0, 2, 0, 23]));
    extensions.extend(extension(11, &[1, 0]));
    extensions.extend(extension(13, &[0, 2, 4, 3]));
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2c, 1, 0]);
    body.extend(u16::try_from(extensions.len()).expect("short").to_be_bytes());
    body.extend(extensions);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(body.len() + 4).expect("short").to_be_bytes());
    record.extend([1, 0]);
    record.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
    record.extend(body);
    record
}

#[tokio::test]
async fn a_stream_without_close_notify_ends_unexpectedly_and_one_with_it_ends() {
    let mesh = Mesh::new();
    let (bot, web) = (mesh.id("bot", "ballot"), mesh.id("web", "ballot"));
    let (client, server) = (mesh.credentials(&bot), mesh.credentials(&web));
    for orderly in [true, false] {
        let (near, far) = handshake(&client, &server, &web.identity()).await;
        let (mut near, mut far) = (near.expect("connects"), far.expect("accepts"));
        far.write_all(b"all").await.expect("writes");
        far.flush().await.expect("flushes");
        if orderly {
            far.shutdown().await.expect("closes");
        }
        drop(far);
        let mut got = Vec::new();
        let end = near.read_to_end(&mut got).await;
        assert_eq!(got, b"all");
        assert_eq!(
            end.map_err(|error| error.kind()),
            if orderly { Ok(3) } else { Err(std::io::ErrorKind::UnexpectedEof) }
        );
    }
}

#[tokio::test]
async fn a_name_that_no_hello_can_carry_is_refused_before_a_byte_is_sent() {
    let mesh = Mesh::new();
    let client = mesh.credentials(&mesh.id("bot", "ballot"));
    let (near, _far) = pipe();
    let error = client.connect(near, client.local(), "not a name").await.err().expect("refused");
    assert!(matches!(error, TlsError::ServerName(_)), "{error}");
}

/// A mesh of one root, whose leaves may be as wrong as a test wants.
struct Bare {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Bare {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("makes");
        Self { issuer: rcgen::CertifiedIssuer::self_signed(params, key).expect("signs") }
    }

    fn anchors(&self) -> TrustAnchors {
        TrustAnchors::from_der([self.issuer.der().clone()]).expect("takes")
    }

    fn leaf(
        &self,
        names: &[&str],
        ended: Option<Duration>,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("valid");
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_hours(24)).into();
        params.not_after = ended.map_or(now + Duration::from_hours(1), |ago| now - ago).into();
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("makes");
        let leaf = params.signed_by(&key, &self.issuer).expect("signs");
        (vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// A server that does not look at its own certificate, as a peer of another make would not.
    fn server(&self, names: &[&str], ended: Option<Duration>) -> rustls::ServerConfig {
        let (chain, key) = self.leaf(names, ended);
        rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("known")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("fits")
    }
}

async fn against(bare: &Bare, server: rustls::ServerConfig, expected: &str) -> Served {
    let (near, far) = pipe();
    let name: Identity = expected.parse().expect("an identity");
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server));
    let anchors = bare.anchors();
    let (near, _far) =
        tokio::join!(tls::connect(near, None, &anchors, &name, "web.example"), acceptor.accept(far));
    near
}

#[tokio::test]
async fn an_expired_server_is_refused_and_its_valid_twin_is_not() {
    let bare = Bare::new();
    assert!(against(&bare, bare.server(&["web.example"], None), "web.example").await.is_ok());
    let expired = bare.server(&["web.example"], Some(Duration::from_mins(1)));
    let error = against(&bare, expired, "web.example").await.err().expect("refused");
    assert_eq!((error.reason(), error.code().id()), (RefusalReason::CertificateExpired, "RM1211"), "{error}");
    assert_eq!(error.claimed().map(Identity::as_str), Some("web.example"));
}

#[tokio::test]
async fn names_are_compared_exactly() {
    let bare = Bare::new();
    for (names, expected, right) in [
        (&["other.example", "web.example"][..], "web.example", true),
        (&["WEB.example"], "web.example", true),
        (&["*.example"], "web.example", false),
        (&["web.example.evil"], "web.example", false),
        (&["a.web.example"], "web.example", false),
    ] {
        let result = against(&bare, bare.server(names, None), expected).await;
        assert_eq!(result.is_ok(), right, "{names:?} for {expected}");
    }
}

#[test]
fn credentials_are_checked_before_they_are_used() {
    let bare = Bare::new();
    let name: Identity = "web.example".parse().expect("an identity");
    let make = |bare: &Bare, anchors: &TrustAnchors, names: &[&str], ended| {
        let (chain, key) = bare.leaf(names, ended);
        Credentials::new(name.clone(), anchors, chain, key)
    };
    assert!(make(&bare, &bare.anchors(), &["web.example"], None).is_ok());
    let hour = Some(Duration::from_hours(1));
    assert!(matches!(
        make(&bare, &bare.anchors(), &["web.example"], hour),
        Err(CredentialsError::NotValid { .. })
    ));
    assert!(matches!(
        make(&bare, &bare.anchors(), &["bot.example"], None),
        Err(CredentialsError::WrongName { .. })
    ));
    let other = Bare::new().anchors();
    assert!(matches!(make(&bare, &other, &["web.example"], None), Err(CredentialsError::Untrusted { .. })));
    let ((chain, _), (_, key)) = (bare.leaf(&["web.example"], None), bare.leaf(&["web.example"], None));
    assert!(matches!(
        Credentials::new(name.clone(), &bare.anchors(), chain, key),
        Err(CredentialsError::Tls(_))
    ));
    let (_, key) = bare.leaf(&["web.example"], None);
    assert_eq!(
        Credentials::new(name.clone(), &bare.anchors(), Vec::new(), key).err(),
        Some(CredentialsError::Empty)
    );
}
