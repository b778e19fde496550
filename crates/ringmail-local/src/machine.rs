//! What the engine needs of the machine: pods with a network, containers in them, programs beside those.
//!
//! A seam: the daemon uses the real namespaces of [`crate::sandbox`], tests of the pods' life use a machine that only pretends.

mod real;

use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::logs::Log;
use crate::sandbox::{ContainerSpec, ExecSpec};

pub use crate::sandbox::Exit;
pub use real::RealMachine;

/// Why the machine did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MachineError {
    /// One sentence, with a code where there is one.
    pub message: String,
    /// Whether trying again cannot help: the specification is wrong, or the program is missing.
    pub permanent: bool,
}

/// Makes pods.
pub trait Machine: Send + Sync + 'static {
    /// A pod with its network; nothing runs in it yet.
    fn create_pod(
        &self,
        name: String,
        addresses: Vec<IpAddr>,
    ) -> BoxFuture<'_, Result<Arc<dyn PodSandbox>, MachineError>>;
}

/// A pod's network, in which containers run.
pub trait PodSandbox: Send + Sync + 'static {
    /// Starts a container; its output goes to `log`, which is closed at its end. Returns once the program runs.
    fn start(&self, spec: ContainerSpec, log: Log) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>>;

    /// Connects to a port at the pod's loopback.
    fn dial(&self, port: u16) -> BoxFuture<'_, std::io::Result<Box<dyn Duplex>>>;

    /// Ends everything in it and takes its network away.
    fn remove(&self) -> BoxFuture<'_, ()>;
}

/// A running container.
pub trait Running: Send + Sync + 'static {
    /// Waits for its end; may be asked any number of times.
    fn exited(&self) -> BoxFuture<'_, Exit>;

    /// Sends a signal to its program.
    fn signal(&self, signal: i32);

    /// Ends all of its processes at once.
    fn kill(&self);

    /// Runs a program beside the container's own.
    fn exec(
        &self,
        spec: ExecSpec,
        terminal: Option<(u16, u16)>,
    ) -> BoxFuture<'_, Result<ExecHandle, MachineError>>;
}

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A program that runs beside a container's own.
pub struct ExecHandle {
    /// Its input; dropped, its end.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its error output; none where it has a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its end.
    pub exit: BoxFuture<'static, Exit>,
    /// Changes the size of its terminal: rows, columns.
    pub resize: Box<dyn Fn(u16, u16) + Send + Sync>,
    /// Ends it.
    pub kill: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for ExecHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecHandle").finish_non_exhaustive()
    }
}
