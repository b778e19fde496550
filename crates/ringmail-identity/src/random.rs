//! Randomness as a parameter.

use std::fmt;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// A source of unpredictable bytes. Tests put a predictable one in its place.
pub trait Random: Send + Sync + fmt::Debug {
    /// Fills `bytes`, or says that the source has failed.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError>;
}

/// The source of randomness has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system's source of randomness failed")]
pub struct RandomError;

/// The system's source.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Random for System {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RandomError> {
        SystemRandom::new().fill(bytes).map_err(|_| RandomError)
    }
}
