//! What stands around the byte path: settings, certificates, flows, tap, metrics, the two ports that show them, and the
//! program as it runs.

mod admin;
mod certify;
mod config;
mod control;
mod flows;
mod metrics;
mod program;
mod serve_control;
#[path = "../support/mod.rs"]
mod support;
mod tap;
