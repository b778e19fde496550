//! What both directions do with a connection: refuse it, or carry it to its end, and tell what became of it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use ringmail_identity::Identity;
use ringmail_vocab::{CloseReason, ClosedBy, Direction, RefusalReason, Security};
use tokio::net::TcpStream;

use crate::drain::Drain;
use crate::flows::FlowHandle;
use crate::observe::Observer;
use crate::relay::{End, Wire, cut, relay};
use crate::report::{Code, Ended};
use crate::sockets::close_with_reset;
use crate::tls;

/// A connection in the words of the log.
pub(crate) struct Facts<'a> {
    pub(crate) direction: Direction,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) original_dst: SocketAddr,
    pub(crate) local: &'a Identity,
    /// The name that the other end has proven, claims or is expected to have.
    pub(crate) peer: Option<Identity>,
    /// What decided.
    pub(crate) rule: String,
}

impl Facts<'_> {
    pub(crate) fn log(&self, code: Code, by: ClosedBy, detail: &dyn fmt::Display) {
        let peer = self.peer.as_ref().map(|peer| peer as &dyn fmt::Display);
        let Self { direction, src, dst, original_dst, local, ref rule, .. } = *self;
        Ended { code, direction, src, dst, original_dst, local, peer, rule, by, detail }.log();
    }
}

/// Why a connection carries nothing.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: RefusalReason,
    pub(crate) code: Code,
    pub(crate) by: ClosedBy,
    pub(crate) detail: String,
}

impl Refusal {
    pub(crate) fn by_proxy(reason: RefusalReason, code: Code, detail: impl Into<String>) -> Self {
        Self { reason, code, by: ClosedBy::Proxy, detail: detail.into() }
    }

    /// What decided, on the way out.
    pub(crate) fn rule(&self) -> &'static str {
        match self.reason {
            RefusalReason::UnknownIssuer
            | RefusalReason::CertificateExpired
            | RefusalReason::WrongIdentity
            | RefusalReason::RefusedByPeer
            | RefusalReason::HandshakeFailed
            | RefusalReason::HandshakeTimeout => "tls",
            RefusalReason::ConnectFailed => "tcp",
            RefusalReason::Loop | RefusalReason::Overloaded => "admission",
            RefusalReason::DiscoveryTimeout | RefusalReason::NoEndpoints | RefusalReason::PolicyDenied => {
                "discovery"
            }
        }
    }
}

/// Ends a connection that carries nothing: a reset, a record, a line in the log.
pub(crate) fn refuse(flow: FlowHandle, facts: &Facts<'_>, client: Option<&TcpStream>, refusal: &Refusal) {
    if let Some(client) = client {
        close_with_reset(client);
    }
    facts.log(refusal.code, refusal.by, &refusal.detail);
    flow.set_security(Security::Refused { reason: refusal.reason, peer: facts.peer.clone() });
    flow.close(refusal.by, CloseReason::Refused, Some(refusal.code.id()));
}

/// Moves the bytes of a connection until it ends, until `revoked` says that policy ended it, or until the proxy's time
/// is over. `revoked` gives the rule that ended it.
pub(crate) async fn carry<C: Wire, S: Wire>(
    flow: FlowHandle,
    mut facts: Facts<'_>,
    mut client: C,
    mut server: S,
    mut observer: Observer,
    drain: &Drain,
    revoked: impl Future<Output = String>,
) -> CloseReason {
    let counters = std::sync::Arc::clone(flow.counters());
    let end = tokio::select! {
        biased;
        end = relay(&mut client, &mut server, &counters, &mut observer) => end,
        rule = revoked => {
            facts.rule = rule;
            End { by: ClosedBy::Proxy, reason: CloseReason::PolicyChanged, error: None }
        }
        () = drain.forced() => End { by: ClosedBy::Proxy, reason: CloseReason::Drained, error: None },
    };
    observer.finish();
    if end.by == ClosedBy::Proxy {
        cut(&client, &server);
    }
    let refused = refusal_after_handshake(&facts, &end, counters.received.load(Ordering::Relaxed));
    if let Some(alert) = refused {
        facts.log(
            Code::RefusedByPeer,
            ClosedBy::Server,
            &format_args!("the alert `{alert}` came as the first answer"),
        );
        flow.set_security(Security::Refused { reason: RefusalReason::RefusedByPeer, peer: facts.peer });
        flow.close(ClosedBy::Server, CloseReason::Refused, Some(Code::RefusedByPeer.id()));
        return CloseReason::Refused;
    }
    let code = code_of(&end);
    match (code, &end.error) {
        (Some(code), Some(error)) => facts.log(code, end.by, error),
        (Some(code), None) => facts.log(code, end.by, &"cut by this proxy"),
        (None, error) => {
            let error = error.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::debug!(src = %facts.src, dst = %facts.dst, by = end.by.label(), reason = end.reason.label(), error, "closed");
        }
    }
    flow.close(end.by, end.reason, code.map(Code::id));
    end.reason
}

/// In TLS 1.3 the client is done before the server has looked at its certificate: a fatal alert as the server's first
/// word means that the handshake failed after all.
fn refusal_after_handshake(facts: &Facts<'_>, end: &End, received: u64) -> Option<String> {
    if facts.direction != Direction::Outbound || end.by != ClosedBy::Server || received > 0 {
        return None;
    }
    end.error.as_ref().and_then(tls::refusal_in)
}

fn code_of(end: &End) -> Option<Code> {
    match end.reason {
        CloseReason::Truncated => Some(Code::Truncated),
        CloseReason::Error => Some(Code::BrokenStream),
        CloseReason::PolicyChanged => Some(Code::PolicyChanged),
        CloseReason::Drained => Some(Code::Drained),
        _ => None,
    }
}
