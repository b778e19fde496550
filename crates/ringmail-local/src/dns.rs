//! The mesh's name server: services and pods, and nothing else.
//!
//! Start here: [`Zone`] is what there is to know, [`answer`] turns a query into a reply, [`serve`] listens on UDP and TCP.

mod answer;
mod server;
mod zone;

pub use answer::{Transport, answer};
pub use server::{SharedZone, serve};
pub use zone::{EndpointRecord, PodRecord, PortRecord, ServiceRecord, Zone};

/// Seconds for which an answer may be kept. Short, since pods come and go while their clients stay.
pub const TTL: u32 = 5;
