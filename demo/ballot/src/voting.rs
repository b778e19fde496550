//! The count.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tonic::{Request, Response, Status};

use crate::proto::votes_server::{Votes, VotesServer};
use crate::proto::{CastReply, CastRequest, LeaderboardReply, LeaderboardRequest, Standing};

/// The service, whose answers carry `nonce`. The count lives as long as it does.
pub fn service(nonce: String) -> VotesServer<Count> {
    VotesServer::new(Count { nonce, votes: Mutex::default() })
}

/// Counts votes by shortcode.
#[derive(Debug)]
pub struct Count {
    nonce: String,
    votes: Mutex<HashMap<String, u64>>,
}

/// Votes for this one fail, so that there is a failure to look at.
pub const FAILING: &str = ":doughnut:";

#[tonic::async_trait]
impl Votes for Count {
    async fn cast(&self, request: Request<CastRequest>) -> Result<Response<CastReply>, Status> {
        let shortcode = request.into_inner().shortcode;
        if shortcode == FAILING {
            return Err(Status::internal("the counter is full of crumbs"));
        }
        if shortcode.is_empty() || shortcode.len() > LONGEST {
            return Err(Status::invalid_argument("a shortcode has 1 to 64 bytes"));
        }
        let mut votes = self.votes.lock().unwrap_or_else(PoisonError::into_inner);
        if votes.len() >= MOST && !votes.contains_key(&shortcode) {
            return Err(Status::resource_exhausted("too many candidates"));
        }
        let count = votes.entry(shortcode).or_default();
        *count += 1;
        Ok(Response::new(CastReply { votes: *count, nonce: self.nonce.clone() }))
    }

    async fn leaderboard(
        &self,
        _: Request<LeaderboardRequest>,
    ) -> Result<Response<LeaderboardReply>, Status> {
        let votes = self.votes.lock().unwrap_or_else(PoisonError::into_inner);
        let standing =
            |(shortcode, votes): (&String, &u64)| Standing { shortcode: shortcode.clone(), votes: *votes };
        let mut standings: Vec<Standing> = votes.iter().map(standing).collect();
        drop(votes);
        standings.sort_by(|a, b| b.votes.cmp(&a.votes).then_with(|| a.shortcode.cmp(&b.shortcode)));
        Ok(Response::new(LeaderboardReply { standings, nonce: self.nonce.clone() }))
    }
}

const LONGEST: usize = 64;
const MOST: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    async fn cast(count: &Count, shortcode: &str) -> Result<u64, Code> {
        let request = Request::new(CastRequest { shortcode: shortcode.to_owned(), nonce: String::new() });
        count.cast(request).await.map(|reply| reply.into_inner().votes).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn votes_are_counted_and_the_most_wanted_comes_first() {
        let count = Count { nonce: "n".to_owned(), votes: Mutex::default() };
        assert_eq!(cast(&count, ":taco:").await, Ok(1));
        assert_eq!(cast(&count, ":fox:").await, Ok(1));
        assert_eq!(cast(&count, ":fox:").await, Ok(2));
        assert_eq!(cast(&count, FAILING).await, Err(Code::Internal));
        let reply = count
            .leaderboard(Request::new(LeaderboardRequest::default()))
            .await
            .expect("a reply")
            .into_inner();
        let standings: Vec<_> = reply.standings.iter().map(|s| (s.shortcode.as_str(), s.votes)).collect();
        assert_eq!(standings, [(":fox:", 2), (":taco:", 1)]);
        assert_eq!(reply.nonce, "n");
    }

    #[tokio::test]
    async fn the_count_is_bounded() {
        let count = Count { nonce: String::new(), votes: Mutex::default() };
        for number in 0..MOST {
            assert_eq!(cast(&count, &number.to_string()).await, Ok(1));
        }
        assert_eq!(cast(&count, "one more").await, Err(Code::ResourceExhausted));
        assert_eq!(cast(&count, "0").await, Ok(2));
        assert_eq!(cast(&count, &"x".repeat(65)).await, Err(Code::InvalidArgument));
    }
}
