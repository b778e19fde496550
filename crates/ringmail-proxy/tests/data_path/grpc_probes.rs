//! Probes by gRPC on a closed port: one call comes through, and nothing beside it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use ringmail_vocab::{RefusalReason, Security};
use tokio::net::{TcpListener, TcpSocket};

use crate::support::plane::{Plane, grpc_probe, server_policy};
use crate::support::rig::Proxy;
use crate::support::{Mesh, until};

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// Five bytes of gRPC's frame, and a message of two.
const MESSAGE: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

type Heard = Arc<Mutex<Vec<(String, Bytes)>>>;

/// A gRPC application that answers every call with `MESSAGE` and the status OK in its trailers.
async fn application() -> (SocketAddr, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has one");
    let heard = Heard::default();
    let record = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let record = Arc::clone(&record);
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let record = Arc::clone(&record);
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.expect("reads").to_bytes();
                    record.lock().push((path, body));
                    let trailers: HeaderMap =
                        [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]
                            .into_iter()
                            .collect();
                    let body = Full::new(Bytes::from_static(MESSAGE))
                        .with_trailers(async move { Some(Ok::<_, Infallible>(trailers)) });
                    Ok::<_, Infallible>(Response::new(body))
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (addr, heard)
}

struct Closed {
    _plane: Plane,
    proxy: Proxy,
    entry: SocketAddr,
    heard: Heard,
}

/// A pod whose port takes the gRPC probe from 127.0.0.2, and nothing else.
async fn closed() -> Closed {
    let (mesh, plane) = (Mesh::new(), Plane::up().await);
    let (app, heard) = application().await;
    plane.policy(app.port(), server_policy(Vec::new(), vec![grpc_probe(&["127.0.0.2/32"])]));
    let proxy = Proxy::new(&mesh, &mesh.id("web", "ballot"), &plane, &[("INBOUND_DEFAULT_POLICY", "deny")]);
    until("the policy is heard", || {
        proxy.policies.port(app.port()).is_some_and(|policy| policy.now().rule().name.as_ref() == "test")
    })
    .await;
    let entry = proxy.inbound(app).await;
    Closed { _plane: plane, proxy, entry, heard }
}

/// Calls over HTTP/2 from 127.0.0.2: the message, and the status from trailers or headers.
async fn call(entry: SocketAddr, method: &str, path: &str, body: Bytes) -> (Bytes, String) {
    let socket = TcpSocket::new_v4().expect("makes");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("binds");
    let stream = socket.connect(entry).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("begins");
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(format!("http://pod{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body))
        .expect("valid");
    let answer = sender.send_request(request).await.expect("an answer");
    let in_headers = answer.headers().get("grpc-status").cloned();
    let collected = answer.into_body().collect().await.expect("reads");
    let in_trailers = collected.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
    let status = in_headers.or(in_trailers).expect("a status");
    (collected.to_bytes(), status.to_str().expect("text").to_owned())
}

#[tokio::test]
async fn a_grpc_probe_comes_through_with_its_message_and_its_trailers() {
    let pod = closed().await;
    let (message, status) = call(pod.entry, "POST", CHECK, Bytes::from_static(MESSAGE)).await;
    assert_eq!((&message[..], status.as_str()), (MESSAGE, "0"));
    assert_eq!(*pod.heard.lock(), [(CHECK.to_owned(), Bytes::from_static(MESSAGE))]);
    assert_eq!(pod.proxy.closed().await.requests, 1, "tap and flows see it");
}

#[tokio::test]
async fn other_calls_are_refused_and_never_reach_the_application() {
    let pod = closed().await;
    for (method, path) in [
        ("POST", "/ballot.v1.Voting/Vote"),
        ("POST", "/grpc.health.v1.Health/Watch"),
        ("POST", "/grpc.health.v1.Health/Check/"),
        ("GET", CHECK),
    ] {
        let (message, status) = call(pod.entry, method, path, Bytes::from_static(MESSAGE)).await;
        assert_eq!((message.len(), status.as_str()), (0, "7"), "{method} {path}");
    }
    assert!(pod.heard.lock().is_empty(), "{:?}", pod.heard.lock());
    let flow = pod.proxy.refused().await;
    assert!(matches!(flow.security, Security::Refused { reason: RefusalReason::PolicyDenied, .. }));
}

#[tokio::test]
async fn a_message_larger_than_any_probes_is_not_passed_on() {
    let pod = closed().await;
    let (_, status) = call(pod.entry, "POST", CHECK, Bytes::from(vec![0; 64 * 1024])).await;
    assert_eq!(status, "14");
    assert!(pod.heard.lock().is_empty());
}
