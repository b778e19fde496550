//! Choosing an endpoint, dialling it, and proving who it is.

use std::net::SocketAddr;
use std::time::Duration;

use ringmail_identity::Identity;
use ringmail_vocab::{CloseReason, ClosedBy, Direction, PlaintextReason, RefusalReason, Security};
use tokio::net::TcpStream;

use super::Outbound;
use crate::balance::{Endpoint, Lease, PeerName};
use crate::carry::{Facts, Refusal};
use crate::discovery::Known;
use crate::metrics::Labels;
use crate::relay::Wire;
use crate::report::Code;
use crate::tls::{TlsConnection, TlsError};

/// A connection that stands.
pub(super) struct Connected {
    pub(super) addr: SocketAddr,
    pub(super) upstream: Upstream,
    pub(super) labels: Labels,
    pub(super) opaque: bool,
    /// The endpoint's load, while the connection lives.
    pub(super) lease: Option<Lease>,
}

pub(super) enum Upstream {
    Plain(TcpStream, PlaintextReason),
    Tls(TlsConnection<TcpStream>),
}

impl Upstream {
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream, _) => stream,
            Self::Tls(stream) => stream.tcp(),
        }
    }
}

/// Where it failed, whom we expected there or met instead, and why.
pub(super) type Failed = (Option<SocketAddr>, Option<Identity>, Refusal);

impl Outbound {
    pub(super) async fn connect_plain(
        &self,
        addr: SocketAddr,
        reason: PlaintextReason,
        timeout: Duration,
    ) -> Result<Connected, Failed> {
        let stream =
            self.dialer.dial(addr, timeout).await.map_err(|error| (Some(addr), None, unreachable(&error)))?;
        let upstream = Upstream::Plain(stream, reason);
        Ok(Connected { addr, upstream, labels: Labels::default(), opaque: false, lease: None })
    }

    /// Tries endpoints until one stands. One that refuses is left at once; each that fails its proof is recorded.
    pub(super) async fn connect_known(
        &self,
        src: SocketAddr,
        original_dst: SocketAddr,
        known: &Known,
    ) -> Result<Connected, Failed> {
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut last: Option<Failed> = None;
        while tried.len() < ATTEMPTS {
            let Some(lease) = known.endpoints.balancer().pick(&tried, &mut rand::rng()) else { break };
            if let Some(failed) = last.take() {
                self.record(src, original_dst, failed);
            }
            let addr = lease.spec().addr;
            tried.push(addr);
            match self.connect_endpoint(&lease).await {
                Ok(upstream) => {
                    lease.succeeded();
                    let spec = lease.spec();
                    let (labels, opaque) = (spec.labels.clone(), spec.opaque || known.opaque);
                    return Ok(Connected { addr, upstream, labels, opaque, lease: Some(lease) });
                }
                Err((peer, refusal)) => {
                    lease.failed();
                    last = Some((Some(addr), peer, refusal));
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let detail = format!("`{}` has no ready endpoint", known.name);
            (None, None, Refusal::by_proxy(RefusalReason::NoEndpoints, Code::NoEndpoints, detail))
        }))
    }

    async fn connect_endpoint(&self, endpoint: &Endpoint) -> Result<Upstream, (Option<Identity>, Refusal)> {
        let spec = endpoint.spec();
        let timeout = self.context.config.outbound_connect_timeout;
        let expected = || spec.peer.as_ref().map(|peer| peer.identity.clone());
        let dial = async {
            self.dialer.dial(spec.addr, timeout).await.map_err(|error| (expected(), unreachable(&error)))
        };
        match &spec.peer {
            _ if self.is_this_pod(spec.addr.ip()) => {
                Ok(Upstream::Plain(dial.await?, PlaintextReason::Loopback))
            }
            None => Ok(Upstream::Plain(dial.await?, PlaintextReason::NotProvidedByServiceDiscovery)),
            Some(peer) => {
                let stream = dial.await?;
                match self.handshake(stream, peer).await {
                    Ok(stream) => Ok(Upstream::Tls(stream)),
                    Err((met, refusal)) => Err((met.or_else(expected), refusal)),
                }
            }
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        peer: &PeerName,
    ) -> Result<TlsConnection<TcpStream>, (Option<Identity>, Refusal)> {
        let config = &self.context.config;
        let mut credentials = self.context.credentials.clone();
        let present = credentials.borrow().clone();
        let present = match present {
            Some(present) => Some(present),
            // Without a certificate the connection could not be mutual; it waits for one as for discovery.
            None => {
                match tokio::time::timeout(config.discovery_timeout, credentials.wait_for(Option::is_some))
                    .await
                {
                    Ok(Ok(present)) => present.clone(),
                    Ok(Err(_)) | Err(_) => None,
                }
            }
        };
        let Some(present) = present else {
            let detail = "the identity service has not certified it";
            return Err((
                None,
                Refusal::by_proxy(RefusalReason::HandshakeFailed, Code::NoCertificate, detail),
            ));
        };
        let timeout = config.handshake_timeout;
        let connecting = present.connect(stream, &peer.identity, &peer.sni);
        let error = match tokio::time::timeout(timeout, connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => TlsError::Timeout(timeout),
        };
        let by = match &error {
            TlsError::RefusedByPeer { .. } | TlsError::Closed | TlsError::Io(_) => ClosedBy::Server,
            _ => ClosedBy::Proxy,
        };
        let refusal = Refusal { reason: error.reason(), code: error.code(), by, detail: error.to_string() };
        Err((error.claimed().cloned(), refusal))
    }

    /// An endpoint that was tried and left for another: for the application nothing happened, for the truth it did.
    fn record(&self, src: SocketAddr, original_dst: SocketAddr, (addr, peer, refusal): Failed) {
        let dst = addr.unwrap_or(original_dst);
        let rule = refusal.rule().to_owned();
        let facts = Facts { peer: peer.clone(), rule, ..self.facts(src, dst, original_dst) };
        facts.log(refusal.code, refusal.by, &format_args!("{}; another endpoint is tried", refusal.detail));
        let flow = self.context.flows.open(Direction::Outbound, src, dst, original_dst);
        flow.set_security(Security::Refused { reason: refusal.reason, peer });
        flow.close(refusal.by, CloseReason::Refused, Some(refusal.code.id()));
    }
}

fn unreachable(error: &std::io::Error) -> Refusal {
    let by = if error.kind() == std::io::ErrorKind::ConnectionRefused {
        ClosedBy::Server
    } else {
        ClosedBy::Proxy
    };
    Refusal { reason: RefusalReason::ConnectFailed, code: Code::ConnectFailed, by, detail: error.to_string() }
}

/// Endpoints tried for one connection.
const ATTEMPTS: usize = 3;
