//! A client that never tires: votes, or looks around, at a steady rate.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rand::seq::IndexedRandom as _;

use crate::emoji::CANDIDATES;
use crate::voting::FAILING;

/// What a bot does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Looks at the list now and then, and votes; one vote in ten is for the candidate that fails.
    Vote,
    /// Only reads.
    Browse,
}

impl FromStr for Mix {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "vote" => Ok(Self::Vote),
            "browse" => Ok(Self::Browse),
            _ => bail!("it must be `vote` or `browse`"),
        }
    }
}

impl Mix {
    /// Path and query of request number `turn`.
    fn path(self, turn: u64) -> String {
        match (self, turn % 10) {
            (Self::Vote, 0) => "/api/list".to_owned(),
            (Self::Vote, 5) => format!("/api/vote?choice={FAILING}"),
            (Self::Vote, _) => {
                let honest: Vec<&str> = CANDIDATES
                    .iter()
                    .map(|(shortcode, _)| *shortcode)
                    .filter(|shortcode| *shortcode != FAILING)
                    .collect();
                format!("/api/vote?choice={}", honest.choose(&mut rand::rng()).unwrap_or(&":ring:"))
            }
            (Self::Browse, 0) => "/".to_owned(),
            (Self::Browse, turn) if turn % 2 == 0 => "/api/list".to_owned(),
            (Self::Browse, _) => "/api/leaderboard".to_owned(),
        }
    }
}

/// A bot at work.
#[derive(Debug)]
pub struct Bot {
    client: Client<HttpConnector, Empty<Bytes>>,
    web: String,
    nonce: String,
    mix: Mix,
    between: Duration,
    answered: AtomicU64,
}

impl Bot {
    /// `rate` is requests per second, above 0 and at most 10,000.
    pub fn new(web: String, mix: Mix, rate: f64, nonce: String) -> anyhow::Result<Self> {
        if !(rate > 0.0 && rate <= 10_000.0) {
            bail!("RATE is {rate}, but must be above 0 and at most 10000 per second");
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let between = Duration::from_secs_f64(1.0 / rate);
        Ok(Self { client, web, nonce, mix, between, answered: AtomicU64::new(0) })
    }

    /// How many requests had an answer, whatever it was.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Goes on until it is dropped; says on standard error when answers cease and when they come again.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(self.between);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut answers = true;
        for turn in 0.. {
            ticks.tick().await;
            let outcome = tokio::time::timeout(TIMEOUT, self.request(&self.mix.path(turn))).await;
            match outcome
                .map_err(|_| anyhow!("no answer within {} s", TIMEOUT.as_secs()))
                .and_then(|answer| answer)
            {
                Ok(_) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    if !std::mem::replace(&mut answers, true) {
                        eprintln!("{} answers again", self.web);
                    }
                }
                Err(error) => {
                    if std::mem::replace(&mut answers, false) {
                        eprintln!("{} does not answer: {error:#}", self.web);
                    }
                }
            }
        }
    }

    async fn request(&self, path: &str) -> anyhow::Result<StatusCode> {
        let nonce = match (self.nonce.as_str(), path.contains('?')) {
            ("", _) => String::new(),
            (nonce, true) => format!("&nonce={nonce}"),
            (nonce, false) => format!("?nonce={nonce}"),
        };
        let request = Request::get(format!("http://{}{path}{nonce}", self.web))
            .header(header::HOST, &self.web)
            .body(Empty::new())
            .context("no valid request")?;
        let response = self.client.request(request).await?;
        let status = response.status();
        // Read to the end, so that the connection is used again.
        Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| anyhow!(error))?;
        Ok(status)
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);
const LARGEST: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voter_votes_for_the_failing_candidate_once_in_ten() {
        let failing = (0..100).filter(|turn| Mix::Vote.path(*turn).ends_with(FAILING)).count();
        assert_eq!(failing, 10);
        assert!((0..100).all(|turn| !Mix::Browse.path(turn).starts_with("/api/vote")));
    }

    #[test]
    fn rates_that_make_no_sense_are_refused() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(Bot::new("web:80".to_owned(), Mix::Vote, rate, String::new()).is_err(), "{rate}");
        }
    }
}
