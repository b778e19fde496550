//! Tokens checked against published keys, which may change.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use ringmail_identity::review::{ReviewFuture, TokenReview};
use ringmail_identity::token::{JwtVerifier, TokenError};

use crate::reload::{Recipe, Reloaded};

/// The keys of tokens, with the audiences that a token must name.
pub struct TokenKeys(JwtVerifier);

impl TokenKeys {
    /// Follows a JSON Web Key Set in a file.
    pub fn follow(file: PathBuf, audiences: Vec<String>) -> Reloaded<Self> {
        Reloaded::follow(Recipe {
            what: "the keys of tokens",
            files: vec![file],
            make: Box::new(move |contents| {
                let [keys] = contents else { return Err("one file is expected".to_owned()) };
                JwtVerifier::from_jwks(keys, audiences.clone()).map(Self).map_err(|error| error.to_string())
            }),
            outcome: Box::new(|_| {}),
        })
    }
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKeys").field("audiences", &self.0.audiences()).finish_non_exhaustive()
    }
}

impl TokenReview for Reloaded<TokenKeys> {
    fn review<'a>(&'a self, token: &'a [u8], now: SystemTime) -> ReviewFuture<'a> {
        let result = match self.get() {
            Some(keys) => keys.0.verify(token, now),
            None => Err(TokenError::Unavailable("the keys of tokens are not loaded".to_owned())),
        };
        Box::pin(std::future::ready(result))
    }
}
