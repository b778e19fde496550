//! Port 4190: tap and flows, over mutual TLS, to one identity.
//!
//! Start here: [`serve`] takes each connection through the same steps: read its first bytes, end TLS, decide who the
//! caller is, then serve HTTP/2. The decision is made once a connection, before any service sees a request; whoever is
//! not the one gets `Unauthenticated` with both names for every call. Each connection is recorded as an inbound flow.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ringmail_api::flows::flows_server::FlowsServer;
use ringmail_api::linkerd::tap::tap_server::TapServer;
use ringmail_identity::Identity;
use ringmail_vocab::{CloseReason, ClosedBy, Direction, PlaintextReason, Protocol, RefusalReason, Security};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::Service as _;

use crate::flows::{FlowHandle, FlowRef, Flows};
use crate::metrics::Metrics;
use crate::places::Places;
use crate::sockets;
use crate::tap::{TapHub, TapService};
use crate::tls::hello::{self, Opening};
use crate::tls::{self, CredentialsRx, Prefixed};

mod counted;
mod refusal;
mod watch;

use counted::Counted;
use watch::FlowsService;

/// What the control server needs.
#[derive(Clone)]
pub struct ControlContext {
    /// This proxy's certificate.
    pub credentials: CredentialsRx,
    /// This proxy's name.
    pub local: Identity,
    /// The one that may call.
    pub allowed: Option<Identity>,
    /// The addresses of this pod.
    pub own_ips: Arc<BTreeSet<IpAddr>>,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// What is served, and where these connections are recorded.
    pub flows: Flows,
    /// What is served.
    pub hub: TapHub,
    /// Where refusals are counted.
    pub metrics: Metrics,
}

/// Who is at the other end, as far as it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Caller {
    /// The one that may call.
    Allowed,
    /// Somebody else; the text says who and who may.
    Refused(String),
}

/// Serves until the listener is gone.
pub async fn serve(listener: TcpListener, context: ControlContext) {
    let context = Arc::new(context);
    let strangers = Places::new(MAX_STRANGERS, MAX_STRANGERS_OF_ONE);
    let callers = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted on the control port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Until it proved who it is, a connection counts as a stranger's: strangers cannot shut the caller out.
        let Some(slot) = strangers.take(peer.ip()) else {
            context.metrics.bounds().control_connections_refused.inc();
            sockets::close_with_reset(&stream);
            continue;
        };
        let (context, callers) = (Arc::clone(&context), Arc::clone(&callers));
        tokio::spawn(async move {
            let Ok(local) = stream.local_addr() else { return };
            let flow = context.flows.open(Direction::Inbound, peer, local, local);
            flow.set_quiet();
            let (mut slot, mut better) = (Some(slot), None);
            let admit = |caller: &Caller| match caller {
                Caller::Refused(_) => true,
                Caller::Allowed => {
                    slot = None;
                    better = Arc::clone(&callers).try_acquire_owned().ok();
                    better.is_some()
                }
            };
            context.connection(stream, peer, local, flow, admit).await;
            drop((slot, better));
        });
    }
}

impl ControlContext {
    async fn connection(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        local: SocketAddr,
        flow: FlowHandle,
        admit: impl FnOnce(&Caller) -> bool,
    ) {
        // The answer to a stalled peer is a reset either way; failing to tune the socket changes nothing here.
        let _ = sockets::tune(&stream, Some(KEEPALIVE));
        let deadline = tokio::time::Instant::now() + self.handshake_timeout;
        let mut bytes = Vec::new();
        let opening = match tokio::time::timeout_at(deadline, hello::read(&mut stream, &mut bytes)).await {
            Ok(Ok(opening)) => opening,
            Ok(Err(_)) => return flow.close(ClosedBy::Client, CloseReason::Reset, None),
            Err(_) => {
                flow.set_security(Security::Refused { reason: RefusalReason::HandshakeTimeout, peer: None });
                return flow.close(ClosedBy::Proxy, CloseReason::Refused, Some("RM1125"));
            }
        };
        match opening {
            Opening::Ended => flow.close(ClosedBy::Client, CloseReason::Finished, None),
            Opening::NotTls if self.may_speak_plainly(peer, local) => {
                flow.set_security(Security::Plaintext { reason: PlaintextReason::Loopback });
                let caller = Caller::Allowed;
                let admitted = admit(&caller);
                self.speak(Prefixed::new(bytes, stream), caller, admitted, flow).await;
            }
            Opening::NotTls => {
                let text = format!("RM1121: {} in plaintext: {}", peer, self.rule());
                refusal::complain(&text);
                flow.set_security(Security::Refused { reason: RefusalReason::PolicyDenied, peer: None });
                refusal::plaintext(stream, &bytes, &text).await;
                flow.close(ClosedBy::Proxy, CloseReason::Refused, Some("RM1121"));
            }
            Opening::Tls(hello) => {
                let refuse = |reason, code| {
                    flow.set_security(Security::Refused { reason, peer: None });
                    code
                };
                let credentials = self.credentials.borrow().clone();
                let wrong_name =
                    hello.sni.as_deref().is_some_and(|sni| !sni.eq_ignore_ascii_case(self.local.as_str()));
                let code = match (&credentials, wrong_name) {
                    (_, true) => {
                        // A caller's own words: short and without line ends.
                        let asked: String =
                            hello.sni.iter().flat_map(|sni| sni.chars()).take(MAX_SNI).collect();
                        let asked = asked.escape_debug();
                        refusal::complain(&format!(
                            "RM1122: {peer} asked for `{asked}`, and this is `{}`",
                            self.local
                        ));
                        refusal::alert(stream, refusal::UNRECOGNIZED_NAME).await;
                        refuse(RefusalReason::HandshakeFailed, "RM1122")
                    }
                    (None, false) => {
                        refusal::alert(stream, refusal::INTERNAL_ERROR).await;
                        refuse(RefusalReason::HandshakeFailed, "RM1123")
                    }
                    (Some(credentials), false) => {
                        let handshake = tls::accept(Prefixed::new(bytes, stream), credentials, hello.random);
                        match tokio::time::timeout_at(deadline, handshake).await {
                            Ok(Ok(tls)) => {
                                let security = tls.security().clone();
                                let caller = self.caller(&security, peer);
                                flow.set_security(security);
                                let admitted = admit(&caller);
                                return self.speak(tls, caller, admitted, flow).await;
                            }
                            Ok(Err(error)) => {
                                let local = &self.local;
                                refusal::complain(&format!(
                                    "RM1124: no TLS between {peer} and `{local}`: {error}"
                                ));
                                let claimed = error.claimed().cloned();
                                flow.set_security(Security::Refused {
                                    reason: error.reason(),
                                    peer: claimed,
                                });
                                "RM1124"
                            }
                            Err(_) => refuse(RefusalReason::HandshakeTimeout, "RM1125"),
                        }
                    }
                };
                flow.close(ClosedBy::Proxy, CloseReason::Refused, Some(code));
            }
        }
    }

    /// Plaintext is for one case alone: the allowed identity's own proxy, asked from inside its own pod.
    fn may_speak_plainly(&self, peer: SocketAddr, local: SocketAddr) -> bool {
        let ip = peer.ip().to_canonical();
        let from_here = ip.is_loopback() || ip == local.ip().to_canonical() || self.own_ips.contains(&ip);
        from_here && self.allowed.as_ref() == Some(&self.local)
    }

    fn caller(&self, security: &Security, peer: SocketAddr) -> Caller {
        let who = match security {
            Security::Mutual { peer, .. } if self.allowed.as_ref() == Some(peer) => return Caller::Allowed,
            Security::Mutual { peer, .. } => format!("`{peer}`"),
            _ => format!("{peer} without a client certificate"),
        };
        Caller::Refused(format!("RM1120: {who}: {}", self.rule()))
    }

    fn rule(&self) -> String {
        match &self.allowed {
            Some(allowed) => {
                format!("only `{allowed}`, over mutual TLS, may ask `{}` for tap and flows", self.local)
            }
            None => format!("nobody may ask `{}` for tap and flows: TAP_SVC_NAME is unset", self.local),
        }
    }

    /// HTTP/2 until the connection ends.
    async fn speak<IO>(&self, io: IO, caller: Caller, admitted: bool, flow: FlowHandle)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if !admitted {
            self.metrics.bounds().control_connections_refused.inc();
            return flow.close(ClosedBy::Proxy, CloseReason::Refused, Some("RM1126"));
        }
        flow.set_protocol(Protocol::Http2);
        let patience = match &caller {
            Caller::Allowed => None,
            Caller::Refused(text) => {
                refusal::complain(text);
                Some(STRANGERS_LIFE)
            }
        };
        let counters = flow.reference();
        let routes = self.routes();
        let service = hyper::service::service_fn(move |request| {
            answer(routes.clone(), caller.clone(), counters.clone(), request)
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .serve_connection(TokioIo::new(Counted::new(io, flow.reference())), service);
        let ended = match patience {
            None => connection.await,
            Some(life) => match tokio::time::timeout(life, connection).await {
                Ok(ended) => ended,
                Err(_) => return flow.close(ClosedBy::Proxy, CloseReason::Refused, Some("RM1120")),
            },
        };
        match ended {
            Ok(()) => flow.close(ClosedBy::Client, CloseReason::Finished, None),
            Err(error) => {
                tracing::debug!(error = crate::control::with_sources(&error), "control connection");
                let (by, reason) = refusal::end_of(&error);
                flow.close(by, reason, None);
            }
        }
    }

    fn routes(&self) -> tonic::service::Routes {
        let flows = FlowsServer::new(FlowsService::new(self.flows.clone(), self.local.clone()));
        let tap = TapServer::new(TapService(self.hub.clone())).max_decoding_message_size(MAX_REQUEST);
        tonic::service::Routes::new(flows.max_decoding_message_size(MAX_REQUEST)).add_service(tap).prepare()
    }
}

/// The answer to one call. Refusal comes before routing, so that no service can forget it.
async fn answer(
    mut routes: tonic::service::Routes,
    caller: Caller,
    flow: FlowRef,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    flow.counters().requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    match caller {
        Caller::Refused(text) => Ok(tonic::Status::unauthenticated(text).into_http()),
        Caller::Allowed => routes.call(request).await,
    }
}

const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections of those who have not proved that they may call, at a time.
const MAX_STRANGERS: usize = 64;
/// Of these, from one address.
const MAX_STRANGERS_OF_ONE: usize = 16;
/// How long one who may not call is told so.
const STRANGERS_LIFE: Duration = Duration::from_secs(10);
/// Connections of the one who may.
const MAX_CALLERS: usize = 32;
/// Characters of a server name in the log.
const MAX_SNI: usize = 100;
const MAX_STREAMS: u32 = 64;
const MAX_HEADERS: u32 = 16 * 1024;
const MAX_REQUEST: usize = 256 * 1024;
