//! What is wrong with what the user gave, where, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong, told to the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable code, `RM15xx`, listed in `docs/errors.md`.
    pub code: String,
    /// Where: `file:line`, an object such as `deployment/web in ballot`, or an option of the command line.
    pub place: String,
    /// What happened, one sentence without a full stop.
    pub what: String,
    /// What to do; empty when `what` says it.
    pub cure: String,
}

impl Problem {
    /// A problem with all its parts.
    pub fn new(
        code: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { code: code.to_owned(), place: place.into(), what: what.into(), cure: cure.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            write!(f, "{}: {}", self.code, self.what)?;
        } else {
            write!(f, "{}: {}: {}", self.code, self.place, self.what)?;
        }
        if !self.cure.is_empty() {
            write!(f, "\n  hint: {}", self.cure)?;
        }
        Ok(())
    }
}

/// Everything that is wrong with one request; never empty when returned as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Ok when nothing is wrong.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
