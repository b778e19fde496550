//! The control plane: any set of the roles identity, destination, policy and viz in one process.
//!
//! Start here: [`settings::Arguments`] is the command line, [`run`] starts what it asks for, and each role is a module
//! of [`roles`]. All servers speak HTTP/2 without TLS: TLS is the work of the proxy beside this process, which also
//! enforces who may call.

pub mod admin;
mod control_plane;
pub mod fault;
pub mod log_limit;
pub mod metrics;
pub mod reload;
pub mod roles;
mod server;
pub mod settings;
pub mod stream;

pub use control_plane::{ControlPlane, StartError, run, terminated};
