//! Serves the count over gRPC. Environment: `PORT`, `BALLOT_NONCE`.

use ballot::shutdown::Shutdown;
use ballot::{health, settings, voting};
use tonic::transport::server::TcpIncoming;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let shutdown = Shutdown::watch()?;
    let listener = settings::listen().await?;
    println!("voting listens on {}", listener.local_addr()?);
    let serve = tonic::transport::Server::builder()
        .add_service(voting::service(settings::nonce()))
        .add_service(health::serving(&["ballot.v1.Votes"]))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.clone().requested(),
        );
    tokio::select! {
        served = serve => served?,
        () = shutdown.overdue() => {}
    }
    Ok(())
}
