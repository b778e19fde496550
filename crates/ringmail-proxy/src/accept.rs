//! Taking connections in, as many as this process can hold.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::orig_dst::unmap;
use crate::places::{self, Places};
use crate::report::{Code, trouble};

/// What the connections of both directions share, so that neither can starve the process. Cheap to clone.
///
/// Others may have three quarters of the places, so that this pod can always call, and one address a half of them, so
/// that who opens connections and leaves them shuts nobody out.
#[derive(Clone, Debug)]
pub struct Limits {
    connections: Arc<Semaphore>,
    of_others: Places,
    handshakes: Arc<Semaphore>,
}

impl Limits {
    /// At most so many connections, and so many TLS handshakes at the same time.
    pub fn new(connections: usize, handshakes: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections)),
            of_others: Places::new(connections / 4 * 3, connections / 2),
            handshakes: Arc::new(Semaphore::new(handshakes)),
        }
    }

    /// What this process can hold: raises its bound of open files as far as it may, and leaves some for the rest.
    pub fn of_process() -> Self {
        Self::new(connections_for(raise_open_files()), HANDSHAKES)
    }

    fn place(&self, callers: Callers, peer: SocketAddr) -> Option<Place> {
        let of_others = match callers {
            Callers::Own => None,
            Callers::Others => Some(self.of_others.take(peer.ip())?),
        };
        let of_all = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        Some(Place { _of_all: of_all, _of_others: of_others })
    }

    /// Room for one TLS handshake; waits while there is none.
    pub(crate) async fn handshake(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.handshakes).acquire_owned().await.ok()
    }
}

/// Who connects to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// This pod's own programs.
    Own,
    /// Anybody.
    Others,
}

/// One connection's place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_others: Option<places::Place>,
}

/// A connection that was accepted, with its place, or without one when this proxy is full.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) place: Option<Place>,
}

/// Accepts for ever. A failed accept is told and tried again: a listener that gave up would be a proxy that is dead and
/// looks alive.
pub(crate) async fn accept(
    listener: &TcpListener,
    limits: &Limits,
    callers: Callers,
    mut take: impl FnMut(Accepted),
) -> std::convert::Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let peer = unmap(peer);
                take(Accepted { stream, peer, place: limits.place(callers, peer) });
            }
            Err(error) => {
                let about =
                    listener.local_addr().map_or_else(|_| "a listener".to_owned(), |addr| addr.to_string());
                trouble(Code::AcceptFailed, &about, &error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Passes a connection's future through, and in debug builds holds it to its size: memory for each idle connection.
pub(crate) fn sized<F: Future>(connection: F) -> F {
    debug_assert!(size_of::<F>() <= CONNECTION_BYTES, "{} bytes", size_of::<F>());
    connection
}

fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// Two sockets for each connection, a quarter kept for listeners, the control plane and scrapes.
fn connections_for(files: u64) -> usize {
    usize::try_from(files / 8 * 3).unwrap_or(usize::MAX).clamp(64, CONNECTIONS)
}

const CONNECTIONS: usize = 65_536;
const HANDSHAKES: usize = 4_096;
/// The most that the state of one connection takes, without its buffers and rustls' own.
const CONNECTION_BYTES: usize = 4096;
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_two_files_and_some_are_left() {
        for files in [1024, 65_536, 1_048_576] {
            let connections = connections_for(files) as u64;
            assert!(connections * 2 < files, "{connections} connections of {files} files");
        }
        assert_eq!(connections_for(u64::MAX), CONNECTIONS);
    }

    #[test]
    fn neither_one_address_nor_all_others_together_take_every_place() {
        let limits = Limits::new(8, 1);
        let from = |last: u8| SocketAddr::from(([10, 0, 0, last], 4000));
        let mut held = Vec::new();
        for (address, places) in [(1, 4), (2, 2), (3, 0)] {
            let got: Vec<_> = (0..8).filter_map(|_| limits.place(Callers::Others, from(address))).collect();
            assert_eq!(got.len(), places, "for {address}");
            held.push(got);
        }
        let own: Vec<_> = (0..8).filter_map(|_| limits.place(Callers::Own, from(9))).collect();
        assert_eq!(own.len(), 2, "this pod can call all the same, up to the bound");
        drop((held, own));
        assert!(limits.place(Callers::Others, from(3)).is_some());
    }
}
