//! What browsers and bots talk to: a page and a JSON API over HTTP/1.1, answered from `emoji` and `voting`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::proto::emojis_client::EmojisClient;
use crate::proto::votes_client::VotesClient;
use crate::proto::{CastRequest, FindRequest, LeaderboardRequest, ListRequest};

/// The rest of the application, over connections that stay open and are made again when they break.
#[derive(Clone, Debug)]
pub struct Backends {
    emojis: EmojisClient<Channel>,
    votes: VotesClient<Channel>,
    nonce: Arc<str>,
    reached: Arc<AtomicBool>,
}

impl Backends {
    /// Connects to `HOST:PORT` of each when first needed. Must be called inside a runtime.
    pub fn new(emoji: &str, voting: &str, nonce: &str) -> anyhow::Result<Self> {
        Ok(Self {
            emojis: EmojisClient::new(channel(emoji)?),
            votes: VotesClient::new(channel(voting)?),
            nonce: nonce.into(),
            reached: Arc::default(),
        })
    }

    /// Asks both until they have answered once; from then on `/readyz` says so.
    pub async fn reach(&self) {
        let mut backends = self.clone();
        while backends.ask_both().await.is_err() {
            tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        }
        self.reached.store(true, Ordering::Release);
    }

    async fn ask_both(&mut self) -> Result<(), tonic::Status> {
        self.emojis.list(ListRequest { nonce: self.nonce() }).await?;
        self.votes.leaderboard(LeaderboardRequest { nonce: self.nonce() }).await?;
        Ok(())
    }

    fn nonce(&self) -> String {
        self.nonce.to_string()
    }
}

/// The page, the API and the probes' paths.
pub fn router(backends: Backends) -> Router {
    Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/api/list", get(list))
        .route("/api/vote", get(vote))
        .route("/api/leaderboard", get(leaderboard))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(backends)
}

fn channel(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("`{address}` is no address to call"))?
        .connect_timeout(Duration::from_secs(3))
        .timeout(Duration::from_secs(5))
        // A backend that vanished without a word is noticed, and another connection made.
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

async fn ready(State(backends): State<Backends>) -> Response {
    if backends.reached.load(Ordering::Acquire) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "emoji and voting have not answered yet\n").into_response()
    }
}

async fn list(State(mut backends): State<Backends>) -> Result<Answer, Failure> {
    let nonce = backends.nonce();
    let reply = backends.emojis.list(ListRequest { nonce }).await?.into_inner();
    let emojis: Vec<Value> = reply
        .emojis
        .iter()
        .map(|emoji| json!({ "shortcode": emoji.shortcode, "character": emoji.character }))
        .collect();
    Ok(backends.answer(json!({ "emojis": emojis })))
}

#[derive(Debug, Deserialize)]
struct Choice {
    choice: String,
}

async fn vote(State(mut backends): State<Backends>, Query(wanted): Query<Choice>) -> Result<Answer, Failure> {
    let nonce = backends.nonce();
    let found =
        backends.emojis.find(FindRequest { shortcode: wanted.choice.clone(), nonce: nonce.clone() }).await?;
    let character = found.into_inner().emoji.unwrap_or_default().character;
    let cast = CastRequest { shortcode: wanted.choice.clone(), nonce };
    let votes = backends.votes.cast(cast).await?.into_inner().votes;
    Ok(backends.answer(json!({ "shortcode": wanted.choice, "character": character, "votes": votes })))
}

async fn leaderboard(State(mut backends): State<Backends>) -> Result<Answer, Failure> {
    let nonce = backends.nonce();
    let reply = backends.votes.leaderboard(LeaderboardRequest { nonce }).await?.into_inner();
    let standings: Vec<Value> = reply
        .standings
        .iter()
        .map(|standing| json!({ "shortcode": standing.shortcode, "votes": standing.votes }))
        .collect();
    Ok(backends.answer(json!({ "standings": standings })))
}

type Answer = ([(header::HeaderName, &'static str); 1], Json<Value>);

impl Backends {
    fn answer(&self, mut body: Value) -> Answer {
        if let Some(object) = body.as_object_mut().filter(|_| !self.nonce.is_empty()) {
            object.insert("nonce".to_owned(), json!(&*self.nonce));
        }
        ([(header::CACHE_CONTROL, "no-store")], Json(body))
    }
}

/// A backend's error, as HTTP says it.
#[derive(Debug)]
struct Failure(tonic::Status);

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self(status)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code() {
            Code::NotFound | Code::InvalidArgument => StatusCode::NOT_FOUND,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({ "error": self.0.message() }))).into_response()
    }
}

const PAGE: &str = include_str!("web/page.html");
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(200);
