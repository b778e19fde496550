//! Calls to the control plane: identity, destination and policy.
//!
//! Start here: [`ControlClient::channel`] gives a service that tonic's clients take. It connects on the first call,
//! reconnects with backoff, notices a dead control plane by HTTP/2 pings, and its errors say whom it tried and why it
//! failed. On loopback it speaks plaintext, elsewhere TLS, with this proxy's certificate once there is one.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand::Rng;
use rand::seq::SliceRandom;
use ringmail_identity::Identity;
use ringmail_identity::anchors::TrustAnchors;
use ringmail_identity::certificate::timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::config::{Config, ControlAddress};
use crate::sockets::Dialer;
use crate::tls::{self, CredentialsRx, TlsError};

/// A service of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Signs certificates.
    Identity,
    /// Says where a connection goes.
    Destination,
    /// Says who may call.
    Policy,
}

impl Service {
    /// The service's name in messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Destination => "destination",
            Self::Policy => "policy",
        }
    }
}

/// Makes channels to the control plane. Cheap to clone.
#[derive(Clone)]
pub struct ControlClient(Arc<Client>);

struct Client {
    identity: ControlChannel,
    destination: ControlChannel,
    policy: ControlChannel,
}

/// Whom a channel calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: Service,
    /// Where it is.
    pub address: ControlAddress,
    /// Who must answer; `None` on loopback only.
    pub name: Option<Identity>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} service at {}", self.service.label(), self.address)?;
        match &self.name {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

impl ControlClient {
    /// Clients for the three services. Nothing is dialled yet.
    pub fn new(config: &Config, credentials: CredentialsRx) -> Self {
        let dial = Arc::new(Dial {
            dialer: Dialer::new(config.socket_mark, Some(KEEPALIVE)),
            anchors: config.identity_trust_anchors.clone(),
            credentials,
            connect_timeout: config.outbound_connect_timeout,
            handshake_timeout: config.handshake_timeout,
        });
        let channel = |service, address: &ControlAddress, name: &Option<Identity>| {
            // A name has no meaning where nobody proves one.
            let name = name.clone().filter(|_| !address.is_loopback());
            ControlChannel::new(Target { service, address: address.clone(), name }, Arc::clone(&dial))
        };
        Self(Arc::new(Client {
            identity: channel(Service::Identity, &config.identity_svc_addr, &config.identity_svc_name),
            destination: channel(
                Service::Destination,
                &config.destination_svc_addr,
                &config.destination_svc_name,
            ),
            policy: channel(Service::Policy, &config.policy_svc_addr, &config.policy_svc_name),
        }))
    }

    /// The channel to a service: all its users share one connection.
    pub fn channel(&self, service: Service) -> ControlChannel {
        match service {
            Service::Identity => self.0.identity.clone(),
            Service::Destination => self.0.destination.clone(),
            Service::Policy => self.0.policy.clone(),
        }
    }

    /// A channel with a connection of its own, for a single call: it proves who this proxy is now.
    pub fn fresh(&self, service: Service) -> ControlChannel {
        let shared = self.channel(service);
        ControlChannel::new(shared.0.target.clone(), Arc::clone(&shared.0.dial))
    }
}

/// A service that carries gRPC calls to one service of the control plane. Cheap to clone.
#[derive(Clone)]
pub struct ControlChannel(Arc<Channel>);

struct Channel {
    target: Target,
    dial: Arc<Dial>,
    attempts: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    failures: u32,
    next: Option<Instant>,
    last: Option<Arc<ControlError>>,
}

struct Live {
    sender: http2::SendRequest<tonic::body::Body>,
    proved: bool,
}

/// What dialling needs.
struct Dial {
    dialer: Dialer,
    anchors: TrustAnchors,
    credentials: CredentialsRx,
    connect_timeout: Duration,
    handshake_timeout: Duration,
}

impl ControlChannel {
    fn new(target: Target, dial: Arc<Dial>) -> Self {
        Self(Arc::new(Channel { target, dial, attempts: AtomicU64::new(0), state: Mutex::default() }))
    }

    /// Whom it calls.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    async fn send(
        self,
        mut request: http::Request<tonic::body::Body>,
    ) -> Result<http::Response<Incoming>, Arc<ControlError>> {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.authority = self.0.target.address.to_string().parse().ok();
        *request.uri_mut() = http::Uri::from_parts(parts).map_err(|error| self.0.broken(&error))?;
        let mut sender = self.0.sender().await?;
        sender.send_request(request).await.map_err(|error| self.0.broken(&error))
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for ControlChannel {
    type Response = http::Response<Incoming>;
    type Error = tonic::Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let call = self.clone().send(request);
        Box::pin(async move { call.await.map_err(|error| tonic::Status::unavailable(error.to_string())) })
    }
}

impl Channel {
    /// The living connection, or a new one. Callers who come while one is being made share its fate.
    async fn sender(&self) -> Result<http2::SendRequest<tonic::body::Body>, Arc<ControlError>> {
        let seen = self.attempts.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if let Some(live) = &mut state.live {
            // A connection from before the first certificate does not say who this proxy is.
            let stale =
                !live.proved && self.target.name.is_some() && self.dial.credentials.borrow().is_some();
            if !stale && !live.sender.is_closed() && live.sender.ready().await.is_ok() {
                return Ok(live.sender.clone());
            }
            state.live = None;
        }
        if let (true, Some(error)) = (self.attempts.load(Ordering::Acquire) > seen, &state.last) {
            return Err(Arc::clone(error));
        }
        if let Some(next) = state.next {
            tokio::time::sleep_until(next).await;
        }
        let made = self.dial.connect(&self.target).await;
        self.attempts.fetch_add(1, Ordering::Release);
        match made {
            Ok(live) => {
                let sender = live.sender.clone();
                // A peer that accepts and then closes at once must not be dialled without a pause either.
                *state = State {
                    live: Some(live),
                    failures: 0,
                    next: Some(Instant::now() + FIRST_BACKOFF),
                    last: None,
                };
                Ok(sender)
            }
            Err(error) => {
                let error = Arc::new(error);
                state.next = Some(Instant::now() + backoff(state.failures, FIRST_BACKOFF, MAX_BACKOFF));
                state.failures = state.failures.saturating_add(1);
                state.last = Some(Arc::clone(&error));
                Err(error)
            }
        }
    }

    fn broken(&self, error: &dyn std::error::Error) -> Arc<ControlError> {
        Arc::new(ControlError { target: self.target.clone(), why: Why::Broken(with_sources(error)) })
    }
}

impl Dial {
    async fn connect(&self, target: &Target) -> Result<Live, ControlError> {
        let failed = |why| ControlError { target: target.clone(), why };
        let tcp = self.dial(&target.address).await.map_err(failed)?;
        let (sender, proved) = match &target.name {
            None => (http2_over(tcp).await.map_err(failed)?, false),
            Some(name) => {
                let credentials = self.credentials_for(target.service).await;
                let handshake = tls::connect(tcp, credentials.as_deref(), &self.anchors, name, name.as_str());
                let tls = tokio::time::timeout(self.handshake_timeout, handshake)
                    .await
                    .map_err(|_| failed(Why::HandshakeTimeout(self.handshake_timeout)))?
                    .map_err(|error| failed(Why::of_tls(error)))?;
                (http2_over(tls).await.map_err(failed)?, credentials.is_some())
            }
        };
        Ok(Live { sender, proved })
    }

    /// Only a certificate is asked for by somebody who cannot prove a name: the first one, and the next one where the
    /// last has ended, for with that the identity service would not speak. The other services wait for it.
    async fn credentials_for(&self, service: Service) -> Option<Arc<tls::Credentials>> {
        let mut credentials = self.credentials.clone();
        if service == Service::Identity {
            return credentials.borrow().clone().filter(|present| present.not_after() > SystemTime::now());
        }
        match credentials.wait_for(Option::is_some).await {
            Ok(credentials) => credentials.clone(),
            Err(_) => None,
        }
    }

    async fn dial(&self, address: &ControlAddress) -> Result<TcpStream, Why> {
        let mut addrs = match address {
            ControlAddress::Ip(addr) => vec![*addr],
            // Loopback by its name: no resolver may say otherwise.
            ControlAddress::Name(..) if address.is_loopback() => address.known().into_iter().collect(),
            ControlAddress::Name(name, port) => look_up(name, *port).await?,
        };
        addrs.shuffle(&mut rand::rng());
        let mut failure = None;
        for addr in addrs.into_iter().take(MAX_ADDRESSES) {
            match self.dialer.dial(addr, self.connect_timeout).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = Some(Why::Connect(addr, error)),
            }
        }
        Err(failure.unwrap_or(Why::NoAddress))
    }
}

async fn look_up(name: &str, port: u16) -> Result<Vec<SocketAddr>, Why> {
    match tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name, port))).await {
        Ok(Ok(addrs)) => Ok(addrs.collect()),
        Ok(Err(error)) => Err(Why::Lookup(error)),
        Err(_) => Err(Why::Lookup(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {LOOKUP_TIMEOUT:?}"),
        ))),
    }
}

async fn http2_over<IO>(io: IO) -> Result<http2::SendRequest<tonic::body::Body>, Why>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_header_list_size(MAX_HEADERS)
        .handshake(TokioIo::new(io));
    let (sender, connection) = handshake.await.map_err(|error| Why::Broken(with_sources(&error)))?;
    // Its end shows at the sender and in the calls that were open; there is nothing else to do about it.
    tokio::spawn(connection);
    Ok(sender)
}

/// A call that did not reach the control plane: whom, and why.
#[derive(Debug)]
pub struct ControlError {
    target: Target,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("its name cannot be resolved: {0}")]
    Lookup(io::Error),
    #[error("its name has no address")]
    NoAddress,
    #[error("no connection to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    #[error("the TLS handshake failed: {0}")]
    Tls(TlsError),
    // Whose clock is wrong cannot be known here; both times can be told.
    #[error("the TLS handshake failed: {0}; this machine's clock says {now}", now = timestamp(*.1))]
    Expired(TlsError, SystemTime),
    #[error("the TLS handshake did not end within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("the connection broke: {0}")]
    Broken(String),
}

impl Why {
    fn of_tls(error: TlsError) -> Self {
        match error {
            TlsError::Expired { .. } => Self::Expired(error, SystemTime::now()),
            other => Self::Tls(other),
        }
    }
}

impl ControlError {
    /// The stable code, such as `RM1102`.
    pub fn code(&self) -> &'static str {
        match self.why {
            Why::Lookup(_) | Why::NoAddress => "RM1101",
            Why::Connect(..) => "RM1102",
            Why::Tls(_) | Why::Expired(..) | Why::HandshakeTimeout(_) => "RM1103",
            Why::Broken(_) => "RM1104",
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.code(), self.target, self.why)
    }
}

impl std::error::Error for ControlError {}

/// The time to wait after a number of failures: doubling from `first` to `max`, up to a quarter more by chance, so that
/// a fleet does not come back in step.
pub(crate) fn backoff(failures: u32, first: Duration, max: Duration) -> Duration {
    let doubled = first.saturating_mul(1_u32.checked_shl(failures.min(20)).unwrap_or(u32::MAX));
    doubled.min(max).mul_f64(1.0 + rand::rng().random_range(0.0..0.25))
}

/// An error with what caused it, in one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Addresses of a name that are tried in one attempt.
const MAX_ADDRESSES: usize = 4;
const MAX_HEADERS: u32 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_bound_and_never_shrinks() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(10));
        for failures in 0..100 {
            let wait = backoff(failures, first, max);
            assert!(
                wait >= first.saturating_mul(1 << failures.min(6)).min(max) && wait < max.mul_f64(1.26),
                "{failures}: {wait:?}"
            );
        }
    }
}
