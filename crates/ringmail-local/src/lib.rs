//! The local mesh: ordinary Kubernetes manifests, run as processes of this machine.
//!
//! Start here. Two halves meet in [`machine`]: [`sandbox`] makes namespaces, mounts, networks and processes and knows no objects;
//! everything else knows objects and leaves those to it.
//!
//! - [`manifest`] reads and checks manifests; [`launch`] takes ports and starts the [`daemon`] in namespaces of its own.
//! - [`engine`] keeps the objects ([`store`]), asks [`controllers`] for the next steps, makes pods, passes them through the injector
//!   ([`meshing`]), and says what services, names ([`dns`]) and the control plane's registry ([`registry_dir`]) look like.
//! - [`pod`] is the life of one pod, as a kubelet leads it: [`volumes`], [`mod@env`], probes, restarts, the end.
//! - [`client`] talks to the daemon by [`protocol`]; the command line is made of it.

pub mod addresses;
pub mod client;
pub mod control_plane;
pub mod controllers;
pub mod daemon;
pub mod dns;
pub mod endpoints;
pub mod engine;
pub mod env;
pub mod events;
pub mod ids;
pub mod launch;
pub mod logs;
pub mod machine;
pub mod manifest;
pub mod meshing;
pub mod pod;
pub mod problem;
pub mod programs;
pub mod protocol;
pub mod publish;
pub mod publishing;
pub mod registry_dir;
pub mod runtime_dir;
pub mod sandbox;
mod server;
pub mod stage;
pub mod store;
pub mod tokens;
pub mod volumes;

/// The seconds since the Unix epoch of an RFC 3339 time, as Kubernetes objects hold it.
pub fn seconds_since_epoch(time: &str) -> Option<u64> {
    time.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_second()).ok())
}

/// Rows and columns of a terminal; `None` where it is none.
pub fn terminal_size(terminal: std::os::fd::BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
