//! The roles, each with its gRPC services.

pub mod destination;
pub mod identity;
pub mod policy;
pub mod viz;
