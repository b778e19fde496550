//! The role viz: answers what is secured. The service itself is the crate `ringmail-viz`.

use ringmail_registry::Registry;
use ringmail_viz::names::RegistryNames;
use ringmail_viz::server::{ServeError, Settings, VizServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Collects from the pods of `registry` and answers on `listener` until `shutdown` is cancelled.
pub async fn serve(
    registry: Registry,
    control_plane_namespace: String,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    tokio::select! {
        // Before that, every pod would be a stranger.
        () = registry.synced() => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    let server = VizServer::new(RegistryNames::new(registry), Settings::new(&control_plane_namespace));
    server.serve(listener, shutdown.cancelled_owned()).await
}
