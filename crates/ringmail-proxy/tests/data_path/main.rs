//! The data path: TLS, relay, outbound, inbound. One binary, because linking it takes longer than running it.

#[path = "../support/mod.rs"]
mod support;

mod grpc_probes;
mod inbound;
mod outbound;
mod probes;
mod relay;
mod tls;
