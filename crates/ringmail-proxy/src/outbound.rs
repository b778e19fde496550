//! Connections of this pod's applications to others.
//!
//! Start here: [`serve`]. Each connection is resolved, an endpoint is chosen and dialled at once, on its own port, and
//! where the endpoint has an identity a TLS handshake follows that must prove it. Nothing waits for the application's
//! first byte, so protocols in which the server speaks first need no setting. Between two meshed ends there is never
//! a fall back to plaintext.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ringmail_vocab::{ClosedBy, Direction, PlaintextReason, RefusalReason, Security};
use tokio::net::{TcpListener, TcpStream};

use crate::accept::{Accepted, Callers, Limits, accept, sized};
use crate::carry::{Facts, Refusal, carry, refuse};
use crate::config::Config;
use crate::discovery::{Destination, Discovery, ResolveError};
use crate::drain::Drain;
use crate::flows::{FlowHandle, Flows};
use crate::metrics::Metrics;
use crate::observe::{ObserveContext, Observer};
use crate::orig_dst::{OriginalDst, unmap};
use crate::report::Code;
use crate::sockets::{Dialer, tune};
use crate::tap::TapHub;
use crate::tls::CredentialsRx;

mod connect;

use connect::{Connected, Upstream};

/// What outbound connections need. Cheap to clone.
#[derive(Clone)]
pub struct OutboundContext {
    /// The settings.
    pub config: Arc<Config>,
    /// The present certificate.
    pub credentials: CredentialsRx,
    /// Where connections are recorded.
    pub flows: Flows,
    /// Who listens in.
    pub hub: TapHub,
    /// Where is counted.
    pub metrics: Metrics,
    /// Who is where.
    pub discovery: Discovery,
    /// When to end.
    pub drain: Drain,
    /// Where connections were meant to go.
    pub original_dst: OriginalDst,
    /// How much at once.
    pub limits: Limits,
}

/// Serves a listener for ever, in draining too: the application decides when it has made its last call.
pub async fn serve(listener: TcpListener, context: OutboundContext) {
    let own = listener.local_addr().map(unmap).ok();
    let outbound = Arc::new(Outbound {
        dialer: Dialer::new(context.config.socket_mark, context.config.outbound_accept_keepalive),
        own,
        context,
    });
    let limits = outbound.context.limits.clone();
    accept(&listener, &limits, Callers::Own, |accepted| {
        let outbound = Arc::clone(&outbound);
        tokio::spawn(sized(async move { outbound.connection(accepted).await }));
    })
    .await;
}

struct Outbound {
    context: OutboundContext,
    dialer: Dialer,
    /// The listener's own address.
    own: Option<SocketAddr>,
}

impl Outbound {
    async fn connection(&self, Accepted { stream: client, peer: src, place }: Accepted) {
        let context = &self.context;
        let _guard = context.drain.hold();
        let local = client.local_addr().map_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)), unmap);
        let told = context.original_dst.get(&client);
        let original_dst = *told.as_ref().unwrap_or(&local);
        let flow = context.flows.open(Direction::Outbound, src, original_dst, original_dst);
        let facts = self.facts(src, original_dst, original_dst);
        let refusal = if let Err(error) = &told {
            Some(Refusal::by_proxy(RefusalReason::Loop, Code::NoOriginalDestination, error.to_string()))
        } else if self.is_own(original_dst) {
            Some(Refusal::by_proxy(
                RefusalReason::Loop,
                Code::Loop,
                format!("`{original_dst}` is the outbound listener"),
            ))
        } else if place.is_none() {
            Some(Refusal::by_proxy(
                RefusalReason::Overloaded,
                Code::Overloaded,
                "no room for another connection",
            ))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return refuse(flow, &facts, Some(&client), &refusal);
        }
        if tune(&client, context.config.outbound_accept_keepalive).is_err() {
            // The client has gone already.
            return flow.close(ClosedBy::Client, ringmail_vocab::CloseReason::Reset, None);
        }
        // Boxed, for a connection lives in its last phase nearly always, and should have the size of that one.
        match Box::pin(self.connect(src, original_dst)).await {
            Ok(connected) => Box::pin(sized(self.relay(flow, client, src, original_dst, connected))).await,
            Err((addr, peer, refusal)) => {
                let dst = addr.unwrap_or(original_dst);
                flow.set_dst(dst, None);
                let facts =
                    Facts { peer, rule: refusal.rule().to_owned(), ..self.facts(src, dst, original_dst) };
                refuse(flow, &facts, Some(&client), &refusal);
            }
        }
    }

    /// Finds out where to go and goes there.
    async fn connect(&self, src: SocketAddr, original_dst: SocketAddr) -> Result<Connected, connect::Failed> {
        if self.is_this_pod(original_dst.ip()) {
            return self.connect_plain(original_dst, PlaintextReason::Loopback, PLAIN_CONNECT_TIMEOUT).await;
        }
        match self.context.discovery.resolve(original_dst).await {
            Ok(Destination::Outside) => {
                self.connect_plain(original_dst, PlaintextReason::OutsideMesh, PLAIN_CONNECT_TIMEOUT).await
            }
            Ok(Destination::NotMeshed) => {
                let reason = PlaintextReason::NotProvidedByServiceDiscovery;
                self.connect_plain(original_dst, reason, PLAIN_CONNECT_TIMEOUT).await
            }
            Ok(Destination::Known(known)) => self.connect_known(src, original_dst, &known).await,
            Err(error @ ResolveError::Timeout(_)) => {
                let refusal = Refusal::by_proxy(
                    RefusalReason::DiscoveryTimeout,
                    Code::DiscoveryTimeout,
                    error.to_string(),
                );
                Err((None, None, refusal))
            }
            Err(error @ ResolveError::Full) => Err((
                None,
                None,
                Refusal::by_proxy(RefusalReason::Overloaded, Code::Overloaded, error.to_string()),
            )),
        }
    }

    async fn relay(
        &self,
        flow: FlowHandle,
        client: TcpStream,
        src: SocketAddr,
        original_dst: SocketAddr,
        connected: Connected,
    ) {
        let Connected { addr, upstream, labels, opaque, lease } = connected;
        let security = match &upstream {
            Upstream::Plain(_, reason) => Security::Plaintext { reason: *reason },
            Upstream::Tls(stream) => stream.security().clone(),
        };
        flow.set_dst(addr, upstream.tcp().local_addr().ok().map(unmap));
        flow.set_labels(labels.clone());
        flow.set_security(security.clone());
        let observer = if opaque {
            Observer::off()
        } else {
            Observer::new(ObserveContext {
                flow: flow.reference(),
                direction: Direction::Outbound,
                src,
                dst: addr,
                security: security.clone(),
                labels,
                hub: self.context.hub.clone(),
                metrics: self.context.metrics.clone(),
            })
        };
        let facts = Facts { peer: security.proven_peer().cloned(), ..self.facts(src, addr, original_dst) };
        let never = std::future::pending();
        let drain = &self.context.drain;
        match upstream {
            Upstream::Plain(server, _) => carry(flow, facts, client, server, observer, drain, never).await,
            Upstream::Tls(server) => carry(flow, facts, client, server, observer, drain, never).await,
        };
        drop(lease);
    }

    fn facts(&self, src: SocketAddr, dst: SocketAddr, original_dst: SocketAddr) -> Facts<'_> {
        let local = &self.context.config.identity_local_name;
        Facts {
            direction: Direction::Outbound,
            src,
            dst,
            original_dst,
            local,
            peer: None,
            rule: "discovery".to_owned(),
        }
    }

    /// Whether an address leads back into this listener.
    fn is_own(&self, addr: SocketAddr) -> bool {
        self.own.is_some_and(|own| {
            own == addr
                || (own.port() == addr.port() && (addr.ip().is_loopback() || self.is_this_pod(addr.ip())))
        })
    }

    fn is_this_pod(&self, ip: IpAddr) -> bool {
        self.context.config.inbound_ips.contains(&ip)
    }
}

/// How long a destination that is not meshed may take to answer: about what an application would grant itself.
const PLAIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
