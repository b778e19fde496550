//! `Identity.Certify`: whom it certifies and whom it refuses. Each refusal has a twin that succeeds.

mod common;

use std::time::{Duration, SystemTime};

use common::objects::{pod, with};
use common::{LIMIT, Mesh, claims};
use rcgen::{CertificateParams, KeyPair};
use ringmail_api::linkerd::identity::identity_client::IdentityClient;
use ringmail_api::linkerd::identity::{CertifyRequest, CertifyResponse};
use ringmail_identity::Identity;
use ringmail_identity::anchors::TrustAnchors;
use ringmail_identity::certificate::CertificateInfo;
use ringmail_identity::csr::KeyAndRequest;
use ringmail_identity::root::{Lifetimes, make_root_and_issuer};
use ringmail_identity::token::TokenKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use tonic::{Code, Status};

const WEB: &str = "web.ballot.serviceaccount.identity.ringmail.cluster.local";
const VOTING: &str = "voting.ballot.serviceaccount.identity.ringmail.cluster.local";

/// A mesh with the pods `ballot/web-1` and `ballot/voting-1`.
async fn mesh() -> Mesh {
    let mesh = Mesh::start().await;
    mesh.registry.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    mesh.registry.put(&pod("ballot", "voting-1", "voting", "10.142.0.10"));
    mesh.ready().await;
    mesh
}

async fn certify(mesh: &Mesh, request: CertifyRequest) -> Result<CertifyResponse, Status> {
    let mut client = IdentityClient::new(mesh.channel("identity").await);
    let answer = tokio::time::timeout(LIMIT, client.certify(request)).await.expect("an answer in time");
    answer.map(tonic::Response::into_inner)
}

fn csr(name: &str) -> Vec<u8> {
    let name: Identity = name.parse().expect("a name");
    KeyAndRequest::generate(&name).expect("a request").request
}

/// A request that succeeds.
fn good(mesh: &Mesh) -> CertifyRequest {
    CertifyRequest {
        identity: WEB.to_owned(),
        token: mesh.token("ballot", "web", "web-1", "uid-ballot-web-1"),
        certificate_signing_request: csr(WEB),
    }
}

/// One way to spoil a good request, and how it is refused.
struct Case {
    what: &'static str,
    code: Code,
    error: &'static str,
    /// What else the message has to name.
    names: &'static [&'static str],
    spoil: fn(&Mesh, &mut CertifyRequest),
}

fn signing_request(names: &[&str], key: &KeyPair) -> Vec<u8> {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let params = CertificateParams::new(names).expect("names");
    params.serialize_request(key).expect("a request").der().to_vec()
}

const CASES: [Case; 17] = [
    Case {
        what: "no name",
        code: Code::InvalidArgument,
        error: "RM1006",
        names: &[],
        spoil: |_, request| request.identity.clear(),
    },
    Case {
        what: "no token",
        code: Code::InvalidArgument,
        error: "RM1031",
        names: &[WEB],
        spoil: |_, request| request.token.clear(),
    },
    Case {
        what: "no signing request",
        code: Code::InvalidArgument,
        error: "RM1010",
        names: &[WEB],
        spoil: |_, request| request.certificate_signing_request.clear(),
    },
    Case {
        what: "bytes that are no token",
        code: Code::InvalidArgument,
        error: "RM1031",
        names: &[WEB],
        spoil: |_, request| request.token = vec![0xff; 40],
    },
    Case {
        what: "a token that has expired",
        code: Code::FailedPrecondition,
        error: "RM1037",
        names: &["system:serviceaccount:ballot:web", WEB],
        spoil: |mesh, request| {
            let mut claims = claims("ballot", "web", "web-1", "uid-ballot-web-1");
            claims.exp -= 2 * 3600;
            claims.iat -= 2 * 3600;
            claims.nbf -= 2 * 3600;
            request.token = mesh.sign(&claims);
        },
    },
    Case {
        what: "a token for another audience",
        code: Code::FailedPrecondition,
        error: "RM1036",
        names: &["kubernetes.default.svc", "identity.ringmail.dev"],
        spoil: |mesh, request| {
            let mut claims = claims("ballot", "web", "web-1", "uid-ballot-web-1");
            claims.aud = vec!["kubernetes.default.svc".to_owned()];
            request.token = mesh.sign(&claims);
        },
    },
    Case {
        what: "a token without audience",
        code: Code::FailedPrecondition,
        error: "RM1036",
        names: &[],
        spoil: |mesh, request| {
            let mut claims = claims("ballot", "web", "web-1", "uid-ballot-web-1");
            claims.aud.clear();
            request.token = mesh.sign(&claims);
        },
    },
    Case {
        what: "a token signed by somebody else",
        code: Code::FailedPrecondition,
        error: "RM1033",
        names: &[],
        spoil: |_, request| {
            let stranger = TokenKey::generate().expect("a key");
            let claims = claims("ballot", "web", "web-1", "uid-ballot-web-1");
            request.token = stranger.sign(&claims).expect("signed").into_bytes();
        },
    },
    Case {
        what: "another workload's name",
        code: Code::FailedPrecondition,
        error: "RM1007",
        names: &[WEB, VOTING],
        spoil: |_, request| {
            VOTING.clone_into(&mut request.identity);
            request.certificate_signing_request = csr(VOTING);
        },
    },
    Case {
        what: "another workload's name in the signing request only",
        code: Code::FailedPrecondition,
        error: "RM1008",
        names: &[WEB, VOTING],
        spoil: |_, request| request.certificate_signing_request = csr(VOTING),
    },
    Case {
        what: "a token that is bound to no pod",
        code: Code::FailedPrecondition,
        error: "RM1040",
        names: &["system:serviceaccount:ballot:web"],
        spoil: |mesh, request| {
            let mut claims = claims("ballot", "web", "web-1", "uid-ballot-web-1");
            claims.kubernetes.pod = None;
            request.token = mesh.sign(&claims);
        },
    },
    Case {
        what: "a pod that is gone",
        code: Code::FailedPrecondition,
        error: "RM1041",
        names: &["ballot/web-0", "uid-gone"],
        spoil: |mesh, request| request.token = mesh.token("ballot", "web", "web-0", "uid-gone"),
    },
    Case {
        what: "an earlier pod of the same name",
        code: Code::FailedPrecondition,
        error: "RM1041",
        names: &["ballot/web-1", "uid-earlier"],
        spoil: |mesh, request| request.token = mesh.token("ballot", "web", "web-1", "uid-earlier"),
    },
    Case {
        what: "a pod that runs as another service account",
        code: Code::FailedPrecondition,
        error: "RM1041",
        names: &["ballot/voting-1"],
        spoil: |mesh, request| request.token = mesh.token("ballot", "web", "voting-1", "uid-ballot-voting-1"),
    },
    Case {
        what: "a signing request whose signature is bad",
        code: Code::InvalidArgument,
        error: "RM1011",
        names: &[WEB],
        spoil: |_, request| {
            let last = request.certificate_signing_request.last_mut().expect("bytes");
            *last ^= 1;
        },
    },
    Case {
        what: "a signing request with two names",
        code: Code::FailedPrecondition,
        error: "RM1014",
        names: &[WEB, VOTING],
        spoil: |_, request| {
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
            request.certificate_signing_request = signing_request(&[WEB, VOTING], &key);
        },
    },
    Case {
        what: "a signing request with an RSA key",
        code: Code::FailedPrecondition,
        error: "RM1012",
        names: &[WEB],
        spoil: |_, request| {
            let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
            request.certificate_signing_request = signing_request(&[WEB], &key);
        },
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_spoilt_request_is_refused_with_its_code_and_the_good_one_is_not() {
    let mesh = mesh().await;
    for case in CASES {
        let mut request = good(&mesh);
        (case.spoil)(&mesh, &mut request);
        let refused = certify(&mesh, request).await.expect_err(case.what);
        assert_eq!(refused.code(), case.code, "{}: {refused}", case.what);
        assert!(refused.message().starts_with(case.error), "{}: {}", case.what, refused.message());
        for name in case.names {
            assert!(refused.message().contains(name), "{}: {} lacks {name}", case.what, refused.message());
        }
        certify(&mesh, good(&mesh))
            .await
            .unwrap_or_else(|status| panic!("the twin of `{}`: {status}", case.what));
    }
    let (_, metrics) = mesh.admin("/metrics").await;
    assert!(metrics.contains(&format!("certificates_issued_total {}", CASES.len())), "{metrics}");
    assert!(metrics.contains(r#"certificates_refused_total{code="RM1007"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"certificates_refused_total{code="RM1041"} 3"#), "{metrics}");
}

#[tokio::test]
async fn a_leaf_chains_to_the_root_names_the_workload_and_is_recorded() {
    let mesh = mesh().await;
    let answer = certify(&mesh, good(&mesh)).await.expect("certified");
    let leaf = CertificateDer::from(answer.leaf_certificate);
    let mut chain = vec![leaf.clone()];
    chain.extend(answer.intermediate_certificates.into_iter().map(CertificateDer::from));
    let anchors = TrustAnchors::from_pem(&mesh.roots.root_cert_pem).expect("anchors");
    anchors.verify(&chain, SystemTime::now()).expect("a peer believes it");
    let info = CertificateInfo::read(&leaf).expect("a certificate");
    let names: Vec<_> = info.names.iter().map(Identity::as_str).collect();
    assert_eq!(names, [WEB, "spiffe://cluster.local/ns/ballot/sa/web"]);
    let until = SystemTime::try_from(answer.valid_until.expect("set")).expect("a time");
    let left = until.duration_since(SystemTime::now()).expect("in the future");
    assert!(left > Duration::from_secs(3500) && left <= Duration::from_hours(1), "{left:?}");

    let (status, ledger) = mesh.admin("/issued").await;
    assert_eq!(status, 200);
    let ledger: serde_json::Value = serde_json::from_str(&ledger).expect("JSON");
    assert_eq!(ledger[0]["identity"], WEB);
    assert_eq!(ledger[0]["serial"], info.serial);
    assert_eq!(ledger[0]["sha256"], info.fingerprint);
}

#[tokio::test]
async fn a_pod_may_ask_a_moment_before_the_registry_hears_of_it() {
    let mesh = mesh().await;
    let late = pod("ballot", "web-2", "web", "10.142.0.11");
    let mut request = good(&mesh);
    request.token = mesh.token("ballot", "web", "web-2", "uid-ballot-web-2");
    let mut answer = std::pin::pin!(certify(&mesh, request));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
    assert!(early.is_err(), "it is held, not refused");
    mesh.registry.put(&late);
    answer.await.expect("certified");
}

#[tokio::test]
async fn a_pod_that_has_ended_gets_nothing_though_its_token_is_good() {
    let mesh = mesh().await;
    let running = pod("ballot", "web-1", "web", "10.142.0.9");
    mesh.registry.put(&with(running.clone(), "/status/phase", json!("Succeeded")));
    let refused = async {
        // The registry hears of the end in its own time.
        loop {
            if let Err(refused) = certify(&mesh, good(&mesh)).await {
                return refused;
            }
        }
    };
    let refused = tokio::time::timeout(LIMIT, refused).await.expect("refused in time");
    assert!(refused.message().starts_with("RM1041"), "{refused}");
    mesh.registry.put(&running);
    certify(&mesh, good(&mesh)).await.expect("certified: the pod is back within the patience");
}

#[tokio::test]
async fn without_an_issuer_the_service_is_not_ready_and_says_unavailable_until_there_is_one() {
    let mesh = Mesh::start_with(|settings| {
        let identity = settings.identity.as_mut().expect("set");
        std::fs::remove_file(identity.issuer_dir.join("tls.key")).expect("removed");
    })
    .await;
    mesh.registry.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    let refused = certify(&mesh, good(&mesh)).await.expect_err("no issuer");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().starts_with("RM1051"), "{refused}");
    let (status, text) = mesh.admin("/ready").await;
    assert!(status == 503 && text.contains("the issuer is not loaded"), "{text}");
    mesh.secrets.put_text("tls.key", &mesh.roots.issuer_key_pem);
    mesh.ready().await;
    certify(&mesh, good(&mesh)).await.expect("certified");
}

#[tokio::test]
async fn a_new_issuer_is_taken_over_and_a_bad_one_leaves_the_old_in_use() {
    let mesh = mesh().await;
    let first = certify(&mesh, good(&mesh)).await.expect("certified").intermediate_certificates;
    // A certificate without its key.
    let domain = common::objects::settings().trust_domain;
    let other = make_root_and_issuer(&domain, SystemTime::now(), Lifetimes::default()).expect("an issuer");
    mesh.secrets.put_text("tls.crt", &other.issuer_cert_pem);
    let errors = async {
        while !mesh.admin("/metrics").await.1.contains(r#"issuer_reloads_total{result="error"} 1"#) {}
    };
    tokio::time::timeout(LIMIT, errors).await.expect("noticed");
    assert_eq!(certify(&mesh, good(&mesh)).await.expect("still certified").intermediate_certificates, first);
    // Whole, and under the anchors that workloads have.
    mesh.secrets.put_text("tls.key", &other.issuer_key_pem);
    mesh.secrets.put_text("ca.crt", &format!("{}{}", mesh.roots.root_cert_pem, other.root_cert_pem));
    let second = async {
        loop {
            let answer = certify(&mesh, good(&mesh)).await.expect("certified");
            if answer.intermediate_certificates != first {
                return answer;
            }
        }
    };
    let second = tokio::time::timeout(LIMIT, second).await.expect("taken over");
    let issuer = CertificateDer::from(second.intermediate_certificates[0].clone());
    let expected = CertificateDer::from_pem_slice(other.issuer_cert_pem.as_bytes()).expect("PEM");
    assert_eq!(issuer, expected);
}

#[tokio::test]
async fn a_request_larger_than_any_token_is_cut_off() {
    let mesh = mesh().await;
    let mut request = good(&mesh);
    request.token = vec![b'a'; 100 << 10];
    let refused = certify(&mesh, request).await.expect_err("too large");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    certify(&mesh, good(&mesh)).await.expect("certified");
}
