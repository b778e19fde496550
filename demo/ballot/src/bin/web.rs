//! Serves the page and the JSON API. Environment: `PORT`, `EMOJI_ADDR`, `VOTING_ADDR`, `BALLOT_NONCE`.

use ballot::shutdown::Shutdown;
use ballot::{settings, web};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let shutdown = Shutdown::watch()?;
    let emoji = settings::address("EMOJI_ADDR", "emoji.ballot:8080")?;
    let voting = settings::address("VOTING_ADDR", "voting.ballot:8080")?;
    let backends = web::Backends::new(&emoji, &voting, &settings::nonce())?;
    let listener = settings::listen().await?;
    println!("web listens on {}, asks {emoji} and {voting}", listener.local_addr()?);
    let reaching = backends.clone();
    let reach = tokio::spawn(async move { reaching.reach().await });
    let serve =
        axum::serve(listener, web::router(backends)).with_graceful_shutdown(shutdown.clone().requested());
    tokio::select! {
        served = serve.into_future() => served?,
        () = shutdown.overdue() => {}
    }
    reach.abort();
    Ok(())
}
