//! Whose fault a refusal is, in gRPC's terms.

/// The gRPC status that a refusal is answered with (wire.md 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The request is malformed: it can never succeed.
    InvalidArgument,
    /// The request is well formed and not allowed: another token or another name is needed.
    FailedPrecondition,
    /// Our side cannot answer now; trying again later makes sense.
    Unavailable,
    /// Our side failed.
    Internal,
}
