//! Probes: what is asked, how often, and what the answers mean.
//!
//! [`ProbeState`] holds the rules and knows no time of its own; [`check_network`] asks over the network, from the mesh's side of the
//! pod's link, as a kubelet would.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::manifest::check::named_port;

/// A probe with its times.
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// What is done.
    pub action: Action,
    /// Time from the container's start to the first probe.
    pub delay: Duration,
    /// Time between probes.
    pub period: Duration,
    /// Time after which a probe has failed.
    pub timeout: Duration,
    /// Good answers in a row that count as good.
    pub successes: u32,
    /// Bad answers in a row that count as bad.
    pub failures: u32,
    /// Grace for a container that is killed because of this probe.
    pub grace: Option<Duration>,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A request whose answer must be 200 to 399.
    Http {
        /// Where; `None` is the pod.
        host: Option<String>,
        /// Port.
        port: u16,
        /// Path with query.
        path: String,
        /// Headers.
        headers: Vec<(String, String)>,
    },
    /// A connection that is accepted.
    Tcp {
        /// Where; `None` is the pod.
        host: Option<String>,
        /// Port.
        port: u16,
    },
    /// A health check by gRPC (`grpc.health.v1`).
    Grpc {
        /// Port.
        port: u16,
        /// Which service is asked for.
        service: String,
    },
    /// A program in the container that ends with 0.
    Exec(Vec<String>),
}

/// Which of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Has it started?
    Startup,
    /// May it be used?
    Readiness,
    /// Must it be started again?
    Liveness,
}

impl Purpose {
    /// As events name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What the answers so far mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough answers for a change.
    Unchanged,
    /// Good from now on.
    Good,
    /// Bad from now on.
    Bad,
}

/// Counts answers.
#[derive(Clone, Debug)]
pub struct ProbeState {
    purpose: Purpose,
    successes: u32,
    failures: u32,
    needed: u32,
    allowed: u32,
    good_once: bool,
    since_start: Duration,
    patience: Duration,
}

impl ProbePlan {
    /// A container's probe, or what is wrong with it.
    pub fn new(probe: &Probe, container: &Container, purpose: Purpose) -> Result<Self, String> {
        let number = |port: &IntOrString| match port {
            IntOrString::Int(number) => {
                u16::try_from(*number).map_err(|_| format!("port {number} is not a port"))
            }
            IntOrString::String(name) => named_port(container, name)
                .and_then(|port| u16::try_from(port).ok())
                .ok_or_else(|| format!("there is no port named `{name}`")),
        };
        let action = if let Some(get) = &probe.http_get {
            http_action(get, number(&get.port)?)
        } else if let Some(tcp) = &probe.tcp_socket {
            Action::Tcp { host: tcp.host.clone().filter(|h| !h.is_empty()), port: number(&tcp.port)? }
        } else if let Some(grpc) = &probe.grpc {
            let port = u16::try_from(grpc.port).map_err(|_| format!("port {} is not a port", grpc.port))?;
            Action::Grpc { port, service: grpc.service.clone().unwrap_or_default() }
        } else if let Some(exec) = &probe.exec {
            Action::Exec(exec.command.clone().unwrap_or_default())
        } else {
            return Err("the probe has no action".to_owned());
        };
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default).max(1)
        };
        let grace = probe.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok());
        Ok(Self {
            action,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: if purpose == Purpose::Readiness { count(probe.success_threshold, 1) } else { 1 },
            failures: count(probe.failure_threshold, 3),
            grace: grace.map(Duration::from_secs),
        })
    }

    /// A fresh count.
    pub fn state(&self, purpose: Purpose) -> ProbeState {
        ProbeState {
            purpose,
            successes: 0,
            failures: 0,
            needed: self.successes,
            allowed: self.failures,
            good_once: false,
            since_start: Duration::ZERO,
            patience: self.delay + self.period * self.failures,
        }
    }

    /// Time until the next probe. Until a container has started or been ready for the first time it is asked more often than its
    /// spec says, so that nobody waits a whole period for a program that needed a moment.
    pub fn wait(&self, state: &ProbeState, answered: u32) -> Duration {
        if state.good_once || state.purpose == Purpose::Liveness {
            return self.period;
        }
        let quick = Duration::from_millis(50) * 2u32.saturating_pow(answered.min(10));
        quick.min(self.period).min(Duration::from_secs(1))
    }
}

impl ProbeState {
    /// Takes an answer that came `since_start` after the container's start.
    pub fn answer(&mut self, good: bool, since_start: Duration) -> Verdict {
        self.since_start = since_start;
        if good {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.needed {
                self.good_once = true;
                return Verdict::Good;
            }
            return Verdict::Unchanged;
        }
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        // The quick probes of the beginning are not counted, its time is.
        let bad = match self.purpose {
            Purpose::Startup => since_start >= self.patience,
            Purpose::Readiness => !self.good_once || self.failures >= self.allowed,
            Purpose::Liveness => self.failures >= self.allowed,
        };
        if bad { Verdict::Bad } else { Verdict::Unchanged }
    }
}

/// Asks over the network; `pod` is the pod's address. The error says what was wrong.
pub async fn check_network(action: &Action, pod: IpAddr, timeout: Duration) -> Result<(), String> {
    let asked = async {
        match action {
            Action::Http { host, port, path, headers } => {
                http(target(host.as_deref(), pod, *port)?, path, headers).await
            }
            Action::Tcp { host, port } => connect(target(host.as_deref(), pod, *port)?).await.map(drop),
            Action::Grpc { port, service } => grpc(SocketAddr::new(pod, *port), service).await,
            Action::Exec(_) => Err("an exec probe does not use the network".to_owned()),
        }
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", timeout.as_secs())),
    }
}

/// An `httpGet` of a probe or a lifecycle hook.
pub fn http_action(get: &HTTPGetAction, port: u16) -> Action {
    let path = get.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".to_owned());
    Action::Http {
        host: get.host.clone().filter(|h| !h.is_empty()),
        port,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers: get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    }
}

fn target(host: Option<&str>, pod: IpAddr, port: u16) -> Result<SocketAddr, String> {
    let Some(host) = host else { return Ok(SocketAddr::new(pod, port)) };
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    address.map(|ip| SocketAddr::new(ip, port)).map_err(|_| format!("host `{host}` is not an address"))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream =
        TcpStream::connect(address).await.map_err(|error| format!("connecting to {address}: {error}"))?;
    // A gRPC probe writes in small pieces, which would otherwise wait for one another's acknowledgement.
    stream.set_nodelay(true).map_err(|error| format!("preparing the connection to {address}: {error}"))?;
    Ok(stream)
}

async fn http(address: SocketAddr, path: &str, headers: &[(String, String)]) -> Result<(), String> {
    let stream = connect(address).await?;
    let failed = |error: &dyn std::fmt::Display| format!("GET http://{address}{path}: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    let connection = tokio::spawn(connection);
    let mut request =
        Request::get(path).header("User-Agent", concat!("kube-probe/ringmail-", env!("CARGO_PKG_VERSION")));
    let mut host = address.to_string();
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("host") {
            host.clone_from(value);
        } else {
            request = request.header(name, value);
        }
    }
    let request = request
        .header("Host", host)
        .header("Accept", "*/*")
        .header("Connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| failed(&e));
    connection.abort();
    let status = answer?.status();
    if (StatusCode::OK..StatusCode::BAD_REQUEST).contains(&status) {
        Ok(())
    } else {
        Err(format!("GET http://{address}{path}: status {status}"))
    }
}

async fn grpc(address: SocketAddr, service: &str) -> Result<(), String> {
    let stream = connect(address).await?;
    let failed = |error: &dyn std::fmt::Display| format!("health check at {address}: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| failed(&e))?;
    let connection = tokio::spawn(connection);
    let uri = Uri::builder()
        .scheme("http")
        .authority(address.to_string())
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .map_err(|e| failed(&e))?;
    let request = Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(health_request(service))))
        .map_err(|e| failed(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = |headers: &http::HeaderMap| {
            headers.get("grpc-status").and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let early = status(response.headers());
        let body = response.into_body().collect().await.map_err(|e| failed(&e))?;
        let code = early.or_else(|| body.trailers().and_then(status)).unwrap_or_default();
        if code != "0" {
            return Err(failed(&format!("gRPC status {code}")));
        }
        match health_status(&body.to_bytes()) {
            Some(1) => Ok(()),
            other => Err(failed(&format!("serving status {}", other.unwrap_or(0)))),
        }
    }
    .await;
    connection.abort();
    answer
}

/// `grpc.health.v1.HealthCheckRequest { string service = 1; }` in a gRPC frame. Names of services are short.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length as u8 & 0x7f) | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame
}

/// The field `ServingStatus status = 1` of a `HealthCheckResponse` in a gRPC frame; absent is 0.
fn health_status(frame: &[u8]) -> Option<u8> {
    let (header, message) = frame.split_at_checked(5)?;
    if header[0] != 0 {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, value, ..] if *value < 0x80 => Some(*value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn plan(text: &str, purpose: Purpose) -> ProbePlan {
        let probe: Probe = serde_saphyr::from_str(text).unwrap();
        let container =
            serde_saphyr::from_str("{name: c, ports: [{name: http, containerPort: 8080}]}").unwrap();
        ProbePlan::new(&probe, &container, purpose).unwrap()
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_defaults_are_those_of_kubernetes() {
        let plan = plan("{httpGet: {port: http, path: healthz}}", Purpose::Liveness);
        assert_eq!((plan.period, plan.timeout, plan.failures, plan.delay), (at(10), at(1), 3, at(0)));
        let Action::Http { port, path, .. } = plan.action else { panic!("not http") };
        assert_eq!((port, path.as_str()), (8080, "/healthz"));
    }

    #[test]
    fn liveness_fails_after_enough_bad_answers_in_a_row() {
        let mut state = plan("{tcpSocket: {port: 1}}", Purpose::Liveness).state(Purpose::Liveness);
        assert_eq!(state.answer(false, at(1)), Verdict::Unchanged);
        assert_eq!(state.answer(false, at(2)), Verdict::Unchanged);
        assert_eq!(state.answer(true, at(3)), Verdict::Good);
        assert_eq!(state.answer(false, at(4)), Verdict::Unchanged);
        assert_eq!(state.answer(false, at(5)), Verdict::Unchanged);
        assert_eq!(state.answer(false, at(6)), Verdict::Bad);
    }

    #[test]
    fn readiness_needs_its_successes_and_startup_its_time() {
        let mut state =
            plan("{tcpSocket: {port: 1}, successThreshold: 2}", Purpose::Readiness).state(Purpose::Readiness);
        assert_eq!(state.answer(true, at(1)), Verdict::Unchanged);
        assert_eq!(state.answer(true, at(2)), Verdict::Good);
        let startup = plan("{tcpSocket: {port: 1}, periodSeconds: 2, failureThreshold: 3}", Purpose::Startup);
        let mut state = startup.state(Purpose::Startup);
        for _ in 0..50 {
            assert_eq!(state.answer(false, at(5)), Verdict::Unchanged);
        }
        assert_eq!(state.answer(false, at(6)), Verdict::Bad);
    }

    #[test]
    fn the_first_success_is_looked_for_quickly_and_then_the_period_holds() {
        let plan = plan("{tcpSocket: {port: 1}}", Purpose::Readiness);
        let mut state = plan.state(Purpose::Readiness);
        assert!(plan.wait(&state, 1) <= Duration::from_millis(100));
        assert_eq!(plan.wait(&state, 9), at(1));
        state.answer(true, at(1));
        assert_eq!(plan.wait(&state, 10), at(10));
    }

    #[tokio::test]
    async fn statuses_decide_http_probes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                let good = request[..length].starts_with(b"GET /good ");
                let status = if good { "204 No Content" } else { "503 No" };
                stream
                    .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
            }
        });
        let action = |path: &str| Action::Http {
            host: None,
            port: address.port(),
            path: path.into(),
            headers: vec![],
        };
        check_network(&action("/good"), address.ip(), at(5)).await.unwrap();
        let error = check_network(&action("/bad"), address.ip(), at(5)).await.unwrap_err();
        assert!(error.contains("503"), "{error}");
    }

    #[test]
    fn health_messages_are_read_and_written() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("a"), [0, 0, 0, 0, 3, 0x0a, 1, b'a']);
        assert_eq!(health_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(health_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(health_status(&[1, 0]), None);
    }
}
