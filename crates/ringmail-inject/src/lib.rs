//! Pod spec in, patch out: a pure function.
