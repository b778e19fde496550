//! gRPC servers: their limits and their end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;

use crate::control_plane::StartError;

/// Listens on an address of a role.
pub(crate) async fn listen(role: &'static str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr).await.map_err(|source| StartError::Listen { role, addr, source })
}

/// Serves until `shutdown` is cancelled and the last answers are sent.
pub(crate) async fn serve(
    role: &'static str,
    listener: TcpListener,
    routes: Routes,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let served = tonic::transport::Server::builder()
        // One connection carries all streams of a proxy: more than one may hold (8,192 addresses, as many services, and
        // 1,024 sources), for a stream beyond it would wait for ever and its destination be refused.
        .max_concurrent_streams(20_000)
        .http2_max_header_list_size(16 << 10)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .tcp_keepalive(Some(KEEPALIVE))
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.cancelled_owned(),
        )
        .await;
    served.map_err(|source| StartError::Serve { role, source })
}

/// The largest request: a token and a signing request are a few KiB.
pub(crate) const MAX_REQUEST: usize = 64 << 10;

const KEEPALIVE: Duration = Duration::from_secs(10);
