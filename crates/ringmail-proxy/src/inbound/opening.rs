//! What a connection is, by its first bytes or by their absence.

use std::io;
use std::sync::Arc;

use ringmail_identity::Identity;
use ringmail_vocab::{CloseReason, ClosedBy, PlaintextReason, RefusalReason};
use ringmail_wire::client_hello::ClientHello;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Ends, Inbound};
use crate::carry::Refusal;
use crate::policy::{Client, ClientTls, PortPolicy};
use crate::report::Code;
use crate::sources::Kind;
use crate::tls::hello::{self, Opening};
use crate::tls::{self, Prefixed, TlsConnection, TlsError};

/// How a connection arrived.
pub(super) enum Arrival {
    /// It is known what it is.
    Begun(Begun),
    /// The client left without a byte.
    Gone(CloseReason),
}

/// What a connection is.
pub(super) enum Begun {
    /// A ClientHello for this pod's name.
    Mesh(ClientHello),
    /// A ClientHello for another name: the application's own TLS.
    Other(String),
    /// No TLS.
    Plain(PlaintextReason),
}

impl Inbound {
    /// Reads until it is known what the connection is, or until it is known that nothing comes. The bytes read stay in
    /// `bytes`.
    pub(super) async fn arrival(
        &self,
        client: &mut TcpStream,
        bytes: &mut Vec<u8>,
        ends: Ends,
        policy: &PortPolicy,
        accepted: Instant,
    ) -> Result<Arrival, Refusal> {
        let timeout = self.context.config.handshake_timeout;
        let deadline = accepted + timeout;
        let mut silence = true;
        let opening = loop {
            tokio::select! {
                biased;
                opening = timeout_at(deadline, hello::read(client, bytes)) => break opening,
                () = self.taken_for_plaintext(ends, policy, accepted), if silence => {}
            }
            // The read was dropped half way; what it had brought is here.
            if bytes.is_empty() {
                return Ok(Arrival::Begun(Begun::Plain(PlaintextReason::SilentUnmeshedClient)));
            }
            silence = false;
        };
        match opening {
            Err(_) if bytes.is_empty() => {
                let detail = format!("nothing within {timeout:?}");
                Err(Refusal::by_proxy(RefusalReason::HandshakeTimeout, Code::SilentClient, detail))
            }
            Err(_) => {
                let detail =
                    format!("{} bytes of a ClientHello, and no more within {timeout:?}", bytes.len());
                Err(Refusal::by_proxy(RefusalReason::HandshakeTimeout, Code::HandshakeTimeout, detail))
            }
            Ok(Err(_)) if bytes.is_empty() => Ok(Arrival::Gone(CloseReason::Reset)),
            Ok(Err(error)) => Err(broken_off(bytes, &error)),
            Ok(Ok(Opening::Ended)) if bytes.is_empty() => self.ended_unheard(ends, policy, deadline).await,
            Ok(Ok(Opening::Ended)) => Err(broken_off(bytes, &io::ErrorKind::UnexpectedEof.into())),
            Ok(Ok(Opening::NotTls)) => Ok(Arrival::Begun(Begun::Plain(PlaintextReason::NoTlsFromRemote))),
            Ok(Ok(Opening::Tls(hello))) => Ok(Arrival::Begun(self.begun_with(hello))),
        }
    }

    fn begun_with(&self, mut hello: ClientHello) -> Begun {
        match hello.sni.take() {
            None => Begun::Plain(PlaintextReason::NoTlsFromRemote),
            Some(sni) if sni.eq_ignore_ascii_case(self.context.config.identity_local_name.as_str()) => {
                Begun::Mesh(hello)
            }
            Some(sni) => Begun::Other(sni),
        }
    }

    /// Ends when a client that has said nothing is to be taken for plaintext: its source is known as unmeshed, policy
    /// lets it in without TLS, and the grace is over. For any other client it never ends: a meshed client's lost packet
    /// must not make a server's greeting go out in clear.
    async fn taken_for_plaintext(&self, ends: Ends, policy: &PortPolicy, accepted: Instant) {
        let grace = self.context.config.silent_grace;
        // Most clients speak at once; only about those that do not is the control plane asked.
        sleep_until(accepted + grace / 4).await;
        if !permits_plaintext(ends, policy) || self.kind(ends).await != Kind::Unmeshed {
            return std::future::pending().await;
        }
        sleep_until(accepted + grace).await;
    }

    /// The client has ended its direction and may wait for the server's word (`nc -N`), or it only looked whether the
    /// port is open.
    async fn ended_unheard(
        &self,
        ends: Ends,
        policy: &PortPolicy,
        deadline: Instant,
    ) -> Result<Arrival, Refusal> {
        let unmeshed = async { self.kind(ends).await == Kind::Unmeshed };
        if permits_plaintext(ends, policy) && timeout_at(deadline, unmeshed).await == Ok(true) {
            return Ok(Arrival::Begun(Begun::Plain(PlaintextReason::SilentUnmeshedClient)));
        }
        Ok(Arrival::Gone(CloseReason::Finished))
    }

    async fn kind(&self, ends: Ends) -> Kind {
        self.context.sources.kind(ends.src.ip(), ends.dst.port()).await
    }

    /// Ends mesh TLS. The error comes with the name that the client claimed.
    pub(super) async fn terminate(
        &self,
        client: TcpStream,
        bytes: Vec<u8>,
        random: [u8; 32],
        accepted: Instant,
    ) -> Result<TlsConnection<TcpStream>, (Option<Identity>, Refusal)> {
        let timeout = self.context.config.handshake_timeout;
        let deadline = accepted + timeout;
        let Ok(Some(_room)) = timeout_at(deadline, self.context.limits.handshake()).await else {
            let detail = "no room for another handshake in time";
            return Err((None, Refusal::by_proxy(RefusalReason::Overloaded, Code::Overloaded, detail)));
        };
        let mut credentials = self.context.credentials.clone();
        let present = match timeout_at(deadline, credentials.wait_for(Option::is_some)).await {
            Ok(Ok(present)) => present.as_ref().map(Arc::clone),
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(present) = present else {
            let detail = "the identity service has not certified it";
            return Err((
                None,
                Refusal::by_proxy(RefusalReason::HandshakeFailed, Code::NoCertificate, detail),
            ));
        };
        let error =
            match timeout_at(deadline, tls::accept(Prefixed::new(bytes, client), &present, random)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error,
                Err(_) => TlsError::Timeout(timeout),
            };
        let by = match &error {
            TlsError::RefusedByPeer { .. } | TlsError::Closed | TlsError::Io(_) => ClosedBy::Client,
            _ => ClosedBy::Proxy,
        };
        let refusal = Refusal { reason: error.reason(), code: error.code(), by, detail: error.to_string() };
        Err((error.claimed().cloned(), refusal))
    }
}

fn permits_plaintext(ends: Ends, policy: &PortPolicy) -> bool {
    policy.now().decide(Client { ip: ends.src.ip(), tls: ClientTls::None }).is_some()
}

fn broken_off(bytes: &[u8], error: &io::Error) -> Refusal {
    Refusal {
        reason: RefusalReason::HandshakeFailed,
        code: Code::HandshakeFailed,
        by: ClosedBy::Client,
        detail: format!("the client left after {} bytes of a ClientHello: {error}", bytes.len()),
    }
}
