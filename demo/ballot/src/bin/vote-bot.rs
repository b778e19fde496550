//! Keeps voting through `web`. Environment: `WEB_ADDR`, `RATE` (requests per second), `MIX` (`vote` or `browse`), `PORT` (for
//! probes), `BALLOT_NONCE`.

use axum::Router;
use axum::routing::get;
use ballot::settings;
use ballot::shutdown::Shutdown;
use ballot::vote_bot::{Bot, Mix};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let shutdown = Shutdown::watch()?;
    let web = settings::address("WEB_ADDR", "web.ballot:80")?;
    let mix = settings::number("MIX", Mix::Vote)?;
    let bot = Bot::new(web.clone(), mix, settings::number("RATE", 2.0)?, settings::nonce())?;
    let listener = settings::listen().await?;
    println!("vote-bot asks {web}, is probed on {}", listener.local_addr()?);
    let probes = Router::new().route("/healthz", get(|| async { "ok\n" }));
    let serve = axum::serve(listener, probes).with_graceful_shutdown(shutdown.clone().requested());
    tokio::select! {
        served = serve.into_future() => served?,
        () = bot.run() => {}
        () = shutdown.overdue() => {}
    }
    println!("vote-bot had {} answers", bot.answered());
    Ok(())
}
