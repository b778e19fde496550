//! Serving a port of this machine: each connection goes to a pod that is ready.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::engine::Engine;
use crate::publish::Publication;

/// Accepts connections on a listener of the machine's own network, and passes them to the service's pods.
pub fn serve(engine: Arc<Engine>, publication: Publication, listener: OwnedFd) -> io::Result<()> {
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((client, _)) => {
                    let (engine, publication) = (engine.clone(), publication.clone());
                    tokio::spawn(async move {
                        let _slot = slot;
                        pass(&engine, &publication, client).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, address = %publication.listen, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(())
}

async fn pass(engine: &Engine, publication: &Publication, mut client: TcpStream) {
    let Ok(mut pod) = tokio::time::timeout(PATIENCE, connect(engine, publication)).await else {
        let service = format!("{}.{}", publication.service, publication.namespace);
        tracing::warn!(
            service,
            port = publication.port,
            "no pod is ready; a connection from this machine is reset"
        );
        // A reset, since a clean end would look like an empty answer.
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        return;
    };
    for stream in [&client, &pod] {
        // Small requests would wait for the other end's acknowledgements.
        let _ = stream.set_nodelay(true);
    }
    // How it ended is between the two ends; both have seen it.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
}

/// Tries pods until one accepts: they come and go.
async fn connect(engine: &Engine, publication: &Publication) -> TcpStream {
    loop {
        if let Some(address) = engine.endpoint(&publication.namespace, &publication.service, publication.port)
        {
            match tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return stream,
                Ok(Err(error)) => tracing::debug!(%error, %address, "connecting to a pod"),
                Err(_) => tracing::debug!(%address, "connecting to a pod: no answer"),
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const MOST_CONNECTIONS: usize = 4096;

/// How long a connection from the machine waits for a pod.
const PATIENCE: Duration = Duration::from_secs(5);
