//! The candidates.

use tonic::{Request, Response, Status};

use crate::proto::emojis_server::{Emojis, EmojisServer};
use crate::proto::{Emoji, FindReply, FindRequest, ListReply, ListRequest};

/// The service, whose answers carry `nonce`.
pub fn service(nonce: String) -> EmojisServer<Candidates> {
    EmojisServer::new(Candidates { nonce })
}

/// Lists and finds the [`CANDIDATES`].
#[derive(Debug)]
pub struct Candidates {
    nonce: String,
}

#[tonic::async_trait]
impl Emojis for Candidates {
    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let emojis = CANDIDATES.iter().map(|candidate| emoji(*candidate)).collect();
        Ok(Response::new(ListReply { emojis, nonce: self.nonce.clone() }))
    }

    async fn find(&self, request: Request<FindRequest>) -> Result<Response<FindReply>, Status> {
        let wanted = &request.get_ref().shortcode;
        let found = CANDIDATES.iter().find(|(shortcode, _)| shortcode == wanted);
        let candidate = found.ok_or_else(|| Status::not_found("no such candidate"))?;
        Ok(Response::new(FindReply { emoji: Some(emoji(*candidate)), nonce: self.nonce.clone() }))
    }
}

fn emoji((shortcode, character): (&str, &str)) -> Emoji {
    Emoji { shortcode: shortcode.to_owned(), character: character.to_owned() }
}

/// Shortcode and character of each candidate.
pub const CANDIDATES: [(&str, &str); 30] = [
    (":taco:", "🌮"),
    (":pizza:", "🍕"),
    (":sushi:", "🍣"),
    (":doughnut:", "🍩"),
    (":avocado:", "🥑"),
    (":cheese:", "🧀"),
    (":pretzel:", "🥨"),
    (":cookie:", "🍪"),
    (":mango:", "🥭"),
    (":chili:", "🌶️"),
    (":fox:", "🦊"),
    (":octopus:", "🐙"),
    (":owl:", "🦉"),
    (":whale:", "🐳"),
    (":penguin:", "🐧"),
    (":hedgehog:", "🦔"),
    (":turtle:", "🐢"),
    (":crab:", "🦀"),
    (":cat:", "🐱"),
    (":dog:", "🐶"),
    (":rocket:", "🚀"),
    (":bicycle:", "🚲"),
    (":sailboat:", "⛵"),
    (":guitar:", "🎸"),
    (":key:", "🔑"),
    (":lock:", "🔒"),
    (":ring:", "💍"),
    (":mailbox:", "📬"),
    (":rainbow:", "🌈"),
    (":snowflake:", "❄️"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidates_are_distinct_and_the_failing_one_is_among_them() {
        let mut shortcodes: Vec<&str> = CANDIDATES.iter().map(|(shortcode, _)| *shortcode).collect();
        assert!(shortcodes.contains(&crate::voting::FAILING));
        shortcodes.sort_unstable();
        shortcodes.dedup();
        assert_eq!(shortcodes.len(), CANDIDATES.len());
    }
}
