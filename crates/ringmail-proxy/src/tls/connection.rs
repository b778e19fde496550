//! One TLS connection, from a byte stream to proven ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ringmail_identity::Identity;
use ringmail_identity::certificate::hex;
use ringmail_vocab::security::EXPORTER_LABEL;
use ringmail_vocab::{Security, TlsSession};
use rustls::{ClientConfig, CommonState, ProtocolVersion, RootCertStore, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::error::TlsError;
use super::prefixed::Prefixed;
use super::verify::{self, Presented, ServerVerifier};

/// A byte stream inside TLS, after a handshake that ended well at this end.
///
/// Reading [`io::ErrorKind::UnexpectedEof`] means that the stream ended without `close_notify`.
pub struct TlsConnection<IO> {
    // Boxed: rustls' state is over a kilobyte, and connections wait inside futures.
    stream: Box<Stream<IO>>,
    security: Security,
}

enum Stream<IO> {
    Client(client::TlsStream<RandomKept<IO>>),
    Server(server::TlsStream<Prefixed<IO>>),
}

impl<IO> TlsConnection<IO> {
    /// What the handshake proved: [`Security::Mutual`] or [`Security::ServerOnly`].
    pub fn security(&self) -> &Security {
        &self.security
    }

    /// The stream underneath.
    pub fn get_ref(&self) -> &IO {
        match &*self.stream {
            Stream::Client(stream) => &stream.get_ref().0.io,
            Stream::Server(stream) => stream.get_ref().0.get_ref(),
        }
    }
}

pub(super) async fn connect<IO>(
    io: IO,
    config: &ClientConfig,
    roots: &Arc<RootCertStore>,
    server: &Identity,
    sni: &str,
    mutual: bool,
) -> Result<TlsConnection<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    let name = ServerName::try_from(sni.to_owned()).map_err(|_| TlsError::ServerName(sni.to_owned()))?;
    if !matches!(name, ServerName::DnsName(_)) {
        return Err(TlsError::ServerName(sni.to_owned()));
    }
    let mut config = config.clone();
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(ServerVerifier::new(Arc::clone(roots), server.clone())));
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, RandomKept::new(io)).into_fallible();
    let (result, met) = verify::noting(handshake).await;
    let stream = match result {
        Ok(stream) => stream,
        Err((error, io)) => {
            linger(io).await;
            return Err(TlsError::from_io(error, met));
        }
    };
    let (io, state) = stream.get_ref();
    let random = io.random().ok_or(TlsError::Closed)?;
    let presented = presented(state)?.ok_or(TlsError::Closed)?;
    let mut exporter = [0; EXPORTER_LENGTH];
    state.export_keying_material(&mut exporter, EXPORTER_LABEL, None)?;
    let tls = session(state, exporter, random, Some(&presented));
    let security = if mutual {
        Security::Mutual { peer: server.clone(), tls }
    } else {
        Security::ServerOnly { peer: Some(server.clone()), tls }
    };
    Ok(TlsConnection { stream: Box::new(Stream::Client(stream)), security })
}

pub(super) async fn accept<IO>(
    io: Prefixed<IO>,
    config: Arc<ServerConfig>,
    random: [u8; 32],
) -> Result<TlsConnection<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    let handshake = TlsAcceptor::from(config).accept(io).into_fallible();
    let (result, met) = verify::noting(handshake).await;
    let stream = match result {
        Ok(stream) => stream,
        Err((error, io)) => {
            linger(io).await;
            return Err(TlsError::from_io(error, met));
        }
    };
    let (_, state) = stream.get_ref();
    let presented = presented(state)?;
    let mut exporter = [0; EXPORTER_LENGTH];
    state.export_keying_material(&mut exporter, EXPORTER_LABEL, None)?;
    let tls = session(state, exporter, random, presented.as_ref());
    let security = match presented.and_then(|presented| presented.names.into_iter().next()) {
        Some(peer) => Security::Mutual { peer, tls },
        None => Security::ServerOnly { peer: None, tls },
    };
    Ok(TlsConnection { stream: Box::new(Stream::Server(stream)), security })
}

/// Lets the alert arrive: closing a socket with unread bytes would reset it, and the peer would not learn why.
async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO) {
    let drain = async {
        io.shutdown().await?;
        let mut waste = [0; 512];
        let mut left = LINGER_BYTES;
        while left > 0 {
            match io.read(&mut waste).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

fn presented(state: &CommonState) -> Result<Option<Presented>, TlsError> {
    let Some(leaf) = state.peer_certificates().and_then(<[_]>::first) else { return Ok(None) };
    let presented = Presented::read(leaf)
        .ok_or_else(|| TlsError::Protocol("the peer's certificate cannot be read".to_owned()))?;
    Ok(Some(presented))
}

fn session(
    state: &CommonState,
    exporter: [u8; EXPORTER_LENGTH],
    random: [u8; 32],
    peer: Option<&Presented>,
) -> TlsSession {
    let version = match state.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3".to_owned(),
        other => format!("{other:?}"),
    };
    let text = |part: Option<String>| part.unwrap_or_default();
    TlsSession {
        version,
        cipher: text(state.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()))),
        group: text(state.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()))),
        peer_serial: peer.map(|peer| peer.serial.clone()).unwrap_or_default(),
        exporter: hex(&exporter),
        client_random: hex(&random),
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsConnection<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self.stream {
            Stream::Client(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Server(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsConnection<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self.stream {
            Stream::Client(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Server(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.stream {
            Stream::Client(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Server(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Sends `close_notify` and ends this direction of the stream underneath.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.stream {
            Stream::Client(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Server(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Keeps the random of the ClientHello that is written first. A retry (RFC 8446 4.1.2) repeats it.
struct RandomKept<IO> {
    io: IO,
    head: [u8; HEAD],
    seen: usize,
}

impl<IO> RandomKept<IO> {
    fn new(io: IO) -> Self {
        Self { io, head: [0; HEAD], seen: 0 }
    }

    fn keep(&mut self, written: &[u8]) {
        let part = written.len().min(HEAD - self.seen);
        self.head[self.seen..self.seen + part].copy_from_slice(&written[..part]);
        self.seen += part;
    }

    fn random(&self) -> Option<[u8; 32]> {
        if self.seen < HEAD { None } else { self.head[RANDOM_AT..].try_into().ok() }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for RandomKept<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for RandomKept<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = std::task::ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        if this.seen < HEAD {
            this.keep(&buf[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = std::task::ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            if this.seen == HEAD || left == 0 {
                break;
            }
            let part = left.min(buf.len());
            this.keep(&buf[..part]);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Record header (5), handshake header (4), legacy version (2): RFC 8446 4.1.2, 5.1.
const RANDOM_AT: usize = 11;
const HEAD: usize = RANDOM_AT + 32;
const EXPORTER_LENGTH: usize = 32;
/// How long, and for how many bytes, a refused peer is listened to so that the alert reaches it.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 * 1024;
