//! The sockets of the name server.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::{Transport, Zone, answer};

/// The zone that is served; replaced as a whole when something changes.
#[derive(Clone, Debug, Default)]
pub struct SharedZone(Arc<RwLock<Arc<Zone>>>);

impl SharedZone {
    /// Serves this zone from now on.
    pub fn set(&self, zone: Zone) {
        *self.0.write() = Arc::new(zone);
    }

    fn get(&self) -> Arc<Zone> {
        self.0.read().clone()
    }
}

/// Listens on UDP and TCP of an address of this network namespace; returns once both are bound and serves in the background.
pub async fn serve(address: SocketAddr, zone: SharedZone) -> io::Result<()> {
    let udp = UdpSocket::bind(address).await?;
    let tcp = TcpListener::bind(address).await?;
    tokio::spawn(serve_udp(udp, zone.clone()));
    tokio::spawn(serve_tcp(tcp, zone));
    Ok(())
}

async fn serve_udp(socket: UdpSocket, zone: SharedZone) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An unreachable client's ICMP comes back here; it says nothing about the socket.
                tracing::debug!(%error, "receiving a DNS query");
                continue;
            }
        };
        if let Some(reply) = answer(&zone.get(), &buffer[..length], Transport::Udp)
            && let Err(error) = socket.send_to(&reply, peer).await
        {
            tracing::debug!(%error, %peer, "sending a DNS reply");
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: SharedZone) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let zone = zone.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    // A client that stops asking or talks nonsense loses its connection, no more.
                    let _ = tokio::time::timeout(CONNECTION_LIFE, converse(stream, zone)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, zone: SharedZone) -> io::Result<()> {
    loop {
        let length = usize::from(stream.read_u16().await?);
        let mut query = vec![0; length];
        stream.read_exact(&mut query).await?;
        let Some(reply) = answer(&zone.get(), &query, Transport::Tcp) else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let mut message = length.to_be_bytes().to_vec();
        message.extend_from_slice(&reply);
        stream.write_all(&message).await?;
    }
}

/// TCP is for long answers only; more clients than this wait.
const MOST_CONNECTIONS: usize = 128;

const CONNECTION_LIFE: Duration = Duration::from_secs(30);
