//! The voting application: `web` shows the candidates and takes votes, `emoji` knows the candidates, `voting` counts.
//!
//! Start here: each program is in `src/bin`; what they share is here. [`web`] speaks HTTP/1.1 to browsers and gRPC to
//! [`emoji`] and [`voting`]. Nobody here knows of TLS or of a mesh: addresses are names, connections are plain.

pub mod emoji;
pub mod health;
pub mod settings;
pub mod shutdown;
pub mod vote_bot;
pub mod voting;
pub mod web;

/// The application's own services and messages, as in `proto/ballot.proto`.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated from documented .proto files")]
pub mod proto {
    tonic::include_proto!("ballot.v1");
}

/// The health protocol of gRPC, as in `proto/health.proto`.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated from documented .proto files")]
pub mod health_proto {
    tonic::include_proto!("grpc.health.v1");
}
