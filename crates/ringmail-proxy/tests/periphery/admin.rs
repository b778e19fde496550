//! The admin port: alive, ready, metrics, and what only this machine may change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use ringmail_proxy::admin::{self, AdminContext, LogFilter};
use ringmail_proxy::certify::CertifyStatus;
use ringmail_proxy::drain::{Drain, DrainTrigger};
use ringmail_proxy::flows::Flows;
use ringmail_proxy::metrics::Metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Default)]
struct Filter(Mutex<String>);

impl LogFilter for Filter {
    fn get(&self) -> String {
        self.0.lock().clone()
    }

    fn set(&self, filter: &str) -> Result<(), String> {
        if filter == "bad" {
            return Err("`bad` is no filter".to_owned());
        }
        filter.clone_into(&mut self.0.lock());
        Ok(())
    }
}

struct Admin {
    context: AdminContext,
    certify: watch::Sender<CertifyStatus>,
    drain: DrainTrigger,
    filter: Arc<Filter>,
}

fn admin() -> Admin {
    let (certify, certify_rx) = watch::channel(CertifyStatus::Waiting { attempts: 0, error: None });
    let (trigger, drain) = Drain::new();
    let metrics = Metrics::new();
    let filter = Arc::<Filter>::default();
    let context = AdminContext {
        certify: certify_rx,
        drain,
        flows: Flows::new("run", metrics.clone()),
        metrics,
        log: filter.clone(),
    };
    Admin { context, certify, drain: trigger, filter }
}

const HERE: &str = "127.0.0.1:9";
const ELSEWHERE: &str = "10.142.0.9:9";

async fn ask(
    admin: &Admin,
    from: &str,
    method: Method,
    path: &str,
    body: &'static str,
) -> (StatusCode, String) {
    let from: SocketAddr = from.parse().expect("an address");
    let request =
        Request::builder().method(method).uri(path).body(Full::new(Bytes::from(body))).expect("valid");
    let response = admin::respond(&admin.context, from, request).await;
    let status = response.status();
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn live(not_after: SystemTime) -> CertifyStatus {
    CertifyStatus::Live { not_after, error: Some("RM1102: nobody there".to_owned()) }
}

#[tokio::test]
async fn ready_follows_the_certificate_and_the_drain() {
    let admin = admin();
    assert_eq!(ask(&admin, ELSEWHERE, Method::GET, "/live", "").await, (StatusCode::OK, "live\n".to_owned()));
    let (status, body) = ask(&admin, ELSEWHERE, Method::GET, "/ready", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.starts_with("not ready: the first certificate"), "{body}");

    admin
        .certify
        .send_replace(CertifyStatus::Waiting { attempts: 3, error: Some("RM1102: whom: why".to_owned()) });
    let (_, body) = ask(&admin, ELSEWHERE, Method::GET, "/ready", "").await;
    assert!(body.contains("after 3 attempt(s), and trying on: RM1102: whom: why"), "{body}");

    admin.certify.send_replace(live(SystemTime::now() + Duration::from_mins(1)));
    assert_eq!(
        ask(&admin, ELSEWHERE, Method::GET, "/ready", "").await,
        (StatusCode::OK, "ready\n".to_owned())
    );

    admin.certify.send_replace(live(SystemTime::now() - Duration::from_secs(1)));
    let (status, body) = ask(&admin, ELSEWHERE, Method::GET, "/ready", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("RM1115") && body.contains("RM1102: nobody there"), "{body}");

    admin.certify.send_replace(live(SystemTime::now() + Duration::from_mins(1)));
    admin.drain.start();
    let (status, body) = ask(&admin, ELSEWHERE, Method::GET, "/ready", "").await;
    assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "not ready: draining\n"));
    assert_eq!(ask(&admin, ELSEWHERE, Method::GET, "/live", "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_log_is_for_this_machine_alone() {
    let admin = admin();
    for method in [Method::GET, Method::PUT] {
        let (status, _) = ask(&admin, ELSEWHERE, method, "/proxy-log-level", "debug").await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    assert_eq!(admin.filter.get(), "", "nothing was changed");
    assert_eq!(ask(&admin, HERE, Method::PUT, "/proxy-log-level", "debug\n").await.0, StatusCode::NO_CONTENT);
    let mapped = ask(&admin, "[::ffff:127.0.0.1]:9", Method::GET, "/proxy-log-level", "").await;
    assert_eq!(mapped, (StatusCode::OK, "debug\n".to_owned()));
    let (status, body) = ask(&admin, HERE, Method::PUT, "/proxy-log-level", "bad").await;
    assert_eq!((status, body.as_str()), (StatusCode::BAD_REQUEST, "`bad` is no filter\n"));
    assert_eq!(
        ask(&admin, HERE, Method::DELETE, "/proxy-log-level", "").await.0,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn there_is_no_environment_and_no_shutdown() {
    let admin = admin();
    for path in ["/env.json", "/shutdown", "/", "/metrics/", "/debug/pprof/profile.pb.gz"] {
        assert_eq!(ask(&admin, HERE, Method::GET, path, "").await.0, StatusCode::NOT_FOUND, "{path}");
    }
    assert_eq!(ask(&admin, HERE, Method::POST, "/ready", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn metrics_are_open_metrics() {
    let admin = admin();
    let (status, body) = ask(&admin, ELSEWHERE, Method::GET, "/metrics", "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("proxy_build_info{") && body.ends_with("# EOF\n"), "{body}");
}

async fn serve(admin: &Admin) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has one");
    tokio::spawn(admin::serve(listener, admin.context.clone()));
    addr
}

#[tokio::test]
async fn it_answers_over_http_and_refuses_large_heads() {
    let admin = admin();
    let addr = serve(&admin).await;
    for (request, answer) in [
        ("GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), "HTTP/1.1 200 OK"),
        (format!("GET /live HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(64 * 1024)), "HTTP/1.1 431 "),
        (format!("GET /live HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100)), "HTTP/1.1 431 "),
    ] {
        let mut stream = TcpStream::connect(addr).await.expect("connects");
        // The server may refuse before it has read all.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with(answer), "{text}");
    }
}

#[tokio::test]
async fn connections_are_bounded_and_counted() {
    let admin = admin();
    let addr = serve(&admin).await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(TcpStream::connect(addr).await.expect("connects"));
    }
    let mut one_more = TcpStream::connect(addr).await.expect("connects");
    let mut byte = [0];
    assert!(matches!(one_more.read(&mut byte).await, Ok(0) | Err(_)), "turned away");
    let refused = "ringmail_control_connections_refused_total 1\n";
    assert!(admin.context.metrics.encode().expect("encodes").contains(refused));
    drop(held);
    // The slots come back.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let mut stream = TcpStream::connect(addr).await.expect("connects");
        let _ = stream.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut text = String::new();
        if stream.read_to_string(&mut text).await.is_ok() && text.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the slots do not come back");
    }
}
