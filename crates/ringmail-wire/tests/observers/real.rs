//! Bytes that hyper and h2 wrote: the observer must see what the programs at both ends saw.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ringmail_wire::http::{Event, Observer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

use crate::support::line;

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// Answers with a body of the length asked for in the path, in frames, with a trailer when asked.
async fn serve(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let received = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
    let length: usize = path.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or_default();
    let mut frames: Vec<Result<Frame<Bytes>, Infallible>> =
        vec![b'x'; length].chunks(5000).map(|part| Ok(Frame::data(Bytes::copy_from_slice(part)))).collect();
    let mut response = Response::builder().header("x-received", received).header("x-long", "v".repeat(300));
    if path.starts_with("/trailers") {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 14.into());
        frames.push(Ok(Frame::trailers(trailers)));
        response = response.header("trailer", "grpc-status");
    }
    let body = StreamBody::new(tokio_stream::iter(frames));
    Ok(response.body(BodyExt::boxed(body)).expect("valid headers"))
}

/// Copies between two ends in passing, so that an observer sees what is sent. `client` says which side sends.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    observer: Tap,
    client: bool,
) {
    let mut buffer = vec![0; 777];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        observer.feed(&buffer[..length], client);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

#[derive(Clone)]
struct Tap(Arc<Mutex<(Observer, Vec<String>)>>);

impl Tap {
    fn feed(&self, bytes: &[u8], client: bool) {
        let mut guard = self.0.lock().expect("no panic while held");
        let (observer, lines) = &mut *guard;
        let mut note = |event: Event<'_>| lines.push(line(&event));
        if client { observer.client(bytes, &mut note) } else { observer.server(bytes, &mut note) }
    }

    fn lines(&self) -> Vec<String> {
        let mut guard = self.0.lock().expect("no panic while held");
        let (observer, lines) = &mut *guard;
        observer.close(&mut |event: Event<'_>| lines.push(line(&event)));
        lines.clone()
    }
}

/// A client's stream to a server that speaks both versions, with an observer in between.
fn connect() -> (TokioIo<DuplexStream>, Tap) {
    let (client, near) = tokio::io::duplex(4096);
    let (far, server) = tokio::io::duplex(4096);
    let tap = Tap(Arc::new(Mutex::new((Observer::new(), Vec::new()))));
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    tokio::spawn(pass(near_read, far_write, tap.clone(), true));
    tokio::spawn(pass(far_read, near_write, tap.clone(), false));
    tokio::spawn(async move {
        let service = hyper::service::service_fn(serve);
        let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(server), service)
            .await;
    });
    (TokioIo::new(client), tap)
}

fn request(path: &str, length: usize) -> Request<Full<Bytes>> {
    Request::post(format!("http://web.example{path}?query"))
        .header("host", "web.example")
        .header("te", "trailers")
        .header("cookie", "c".repeat(200))
        .body(Full::new(Bytes::from(vec![b'y'; length])))
        .expect("a valid request")
}

/// What is expected of the k-th request in the observer's lines.
fn expect(lines: &[String], index: usize, path: &str, sent: usize, received: usize, grpc: &str) {
    let of = |mark: &str| {
        let start = format!("{index} {mark} ");
        lines.iter().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{start} in {lines:#?}"))
    };
    assert!(of(">").contains(&format!("|web.example|{path} ")), "{}", of(">"));
    assert!(of(">").contains(&format!("cookie={}", "c".repeat(200))), "{}", of(">"));
    assert!(of("<").contains(&format!("x-received={sent} x-long={}", "v".repeat(300))), "{}", of("<"));
    assert_eq!(*of("."), format!("{index} . Complete {sent}/{received}{grpc}"));
}

const CASES: [(&str, usize, usize, &str); 6] = [
    ("/0", 0, 0, ""),
    ("/5", 3, 5, ""),
    ("/trailers/10", 10, 10, " grpc=14 grpc-status=14"),
    ("/100000", 0, 100_000, ""),
    ("/7", 200_000, 7, ""),
    ("/trailers/30000", 30_000, 30_000, " grpc=14 grpc-status=14"),
];

#[tokio::test]
async fn hyper_over_http1_is_seen_as_its_ends_see_it() {
    let (stream, tap) = connect();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("handshake");
    tokio::spawn(connection);
    for (path, sent, ..) in CASES {
        let mut request = request(path, sent);
        *request.uri_mut() = format!("{path}?query").parse().expect("a valid target");
        let response = sender.send_request(request).await.expect("a response");
        response.into_body().collect().await.expect("a whole body");
    }
    drop(sender);
    let lines = tap.lines();
    assert_eq!(lines[0], "Http1");
    for (index, (path, sent, received, grpc)) in CASES.into_iter().enumerate() {
        expect(&lines, index, path, sent, received, grpc);
    }
}

#[tokio::test]
async fn hyper_over_http2_is_seen_as_its_ends_see_it() {
    let (stream, tap) = connect();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("handshake");
    tokio::spawn(connection);
    // Many rounds, so that entries come into HPACK's tables, are used and fall out again.
    for _ in 0..20 {
        for (path, sent, ..) in CASES {
            let response = sender.clone().send_request(request(path, sent)).await.expect("a response");
            response.into_body().collect().await.expect("a whole body");
        }
    }
    let lines = tap.lines();
    assert_eq!(lines[0], "Http2");
    for (index, (path, sent, received, grpc)) in CASES.into_iter().cycle().take(120).enumerate() {
        expect(&lines, index, path, sent, received, grpc);
    }
}

#[tokio::test]
async fn many_http2_requests_at_once_are_told_apart() {
    let (stream, tap) = connect();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("handshake");
    tokio::spawn(connection);
    let mut tasks = tokio::task::JoinSet::new();
    for length in 0..50 {
        let mut sender = sender.clone();
        tasks.spawn(async move {
            let response =
                sender.send_request(request(&format!("/{length}"), 2 * length)).await.expect("a response");
            response.into_body().collect().await.expect("a whole body");
        });
    }
    tasks.join_all().await;
    let lines = tap.lines();
    for length in 0..50_usize {
        let path = format!("|web.example|/{length} ");
        let begun = lines.iter().find(|line| line.contains(&path)).expect("the request was seen");
        let index = begun.split(' ').next().and_then(|word| word.parse().ok()).expect("its index");
        expect(&lines, index, &format!("/{length}"), 2 * length, length, "");
    }
}
