//! The data plane: moves the bytes between meshed workloads over mutual TLS.
//!
//! Start here: [`proxy`] puts everything together and shows the order in which it starts. [`outbound`] and
//! [`inbound`] are the two ways of a connection, [`relay`] moves its bytes, [`tls`] is the only place that knows
//! rustls. [`discovery`], [`policy`] and [`sources`] are what the control plane says; [`certify`] gets this proxy its
//! certificates through [`control`]. [`flows`] records each connection, [`observe`] reads HTTP in passing for [`tap`]
//! and [`metrics`]; [`serve_control`] (4190) and [`admin`] (4191) show them. [`config`] declares every setting.

pub mod accept;
pub mod admin;
pub mod await_ready;
pub mod balance;
mod cache;
mod carry;
pub mod certify;
pub mod config;
pub mod control;
pub mod discovery;
pub mod drain;
pub mod flows;
pub mod follow;
pub mod inbound;
pub mod init;
pub mod metrics;
pub mod observe;
pub mod orig_dst;
pub mod outbound;
mod places;
pub mod policy;
pub mod proxy;
pub mod relay;
pub mod report;
pub mod serve_control;
pub mod sockets;
pub mod sources;
pub mod tap;
pub mod tls;
