//! The machine as it is: namespaces, processes, pipes.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::{AsyncReadExt as _, AsyncWrite};
use tokio::net::unix::pipe;

use super::{Duplex, ExecHandle, Exit, Machine, MachineError, PodSandbox, Running};
use crate::logs::{Log, Stream};
use crate::sandbox::{
    self, Container, ContainerIo, ContainerSpec, ExecIo, ExecSpec, MeshFacts, Network, SandboxError,
};

/// The machine this daemon runs on.
#[derive(Clone, Debug)]
pub struct RealMachine {
    network: Network,
    facts: MeshFacts,
}

impl RealMachine {
    /// A machine whose mesh has this network.
    pub fn new(network: Network, facts: MeshFacts) -> Self {
        Self { network, facts }
    }
}

impl Machine for RealMachine {
    fn create_pod(
        &self,
        name: String,
        addresses: Vec<IpAddr>,
    ) -> BoxFuture<'_, Result<Arc<dyn PodSandbox>, MachineError>> {
        async move {
            let pod = sandbox::PodSandbox::create(&self.network, &self.facts, &name, &addresses).await?;
            Ok(Arc::new(RealPod(pod)) as Arc<dyn PodSandbox>)
        }
        .boxed()
    }
}

struct RealPod(sandbox::PodSandbox);

impl PodSandbox for RealPod {
    fn start(&self, spec: ContainerSpec, log: Log) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>> {
        async move {
            let broken = |error: io::Error| MachineError {
                message: format!("pipes for its output: {error}"),
                permanent: false,
            };
            let (read_out, stdout) = pipe_pair().map_err(broken)?;
            let (read_err, stderr) = pipe_pair().map_err(broken)?;
            let io = ContainerIo { stdin: None, stdout, stderr };
            let container = self.0.start(spec, io).await?;
            for note in container.notes() {
                tracing::info!(container = self.0.name(), "{note}");
            }
            tokio::spawn(collect(read_out, read_err, log));
            Ok(Arc::new(RealContainer(container)) as Arc<dyn Running>)
        }
        .boxed()
    }

    fn dial(&self, port: u16) -> BoxFuture<'_, io::Result<Box<dyn Duplex>>> {
        async move {
            let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
            let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
            match self.0.dial(v4).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Duplex>),
                // A program may listen on one of the two only.
                Err(error) => match self.0.dial(v6).await {
                    Ok(stream) => Ok(Box::new(stream) as Box<dyn Duplex>),
                    Err(_) => Err(error),
                },
            }
        }
        .boxed()
    }

    fn remove(&self) -> BoxFuture<'_, ()> {
        async move {
            if let Err(error) = self.0.destroy().await {
                tracing::warn!(pod = self.0.name(), %error, "removing a pod");
            }
        }
        .boxed()
    }
}

struct RealContainer(Container);

impl Running for RealContainer {
    fn exited(&self) -> BoxFuture<'_, Exit> {
        self.0.wait().boxed()
    }

    fn signal(&self, signal: i32) {
        if let Err(error) = self.0.signal(signal) {
            tracing::debug!(%error, signal, "sending a signal to a container");
        }
    }

    fn kill(&self) {
        self.0.kill();
    }

    fn exec(
        &self,
        spec: ExecSpec,
        terminal: Option<(u16, u16)>,
    ) -> BoxFuture<'_, Result<ExecHandle, MachineError>> {
        match terminal {
            Some(size) => self.exec_terminal(spec, size).boxed(),
            None => self.exec_streams(spec).boxed(),
        }
    }
}

impl RealContainer {
    async fn exec_streams(&self, spec: ExecSpec) -> Result<ExecHandle, MachineError> {
        let broken = |error: io::Error| MachineError {
            message: format!("pipes for a program: {error}"),
            permanent: false,
        };
        let (stdin, write_in) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| broken(errno.into()))?;
        let write_in = pipe::Sender::from_owned_fd(write_in).map_err(broken)?;
        let (read_out, stdout) = pipe_pair().map_err(broken)?;
        let (read_err, stderr) = pipe_pair().map_err(broken)?;
        let io = ExecIo::Streams(ContainerIo { stdin: Some(stdin), stdout, stderr });
        let process = Arc::new(self.0.exec(spec, io).await?);
        let (waiting, killing) = (process.clone(), process);
        Ok(ExecHandle {
            stdin: Some(Box::new(write_in)),
            stdout: Box::new(read_out),
            stderr: Some(Box::new(read_err)),
            exit: async move { waiting.wait().await }.boxed(),
            resize: Box::new(|_, _| {}),
            kill: Box::new(move || killing.kill()),
        })
    }

    async fn exec_terminal(
        &self,
        spec: ExecSpec,
        (rows, columns): (u16, u16),
    ) -> Result<ExecHandle, MachineError> {
        let process = Arc::new(self.0.exec(spec, ExecIo::Terminal { rows, columns }).await?);
        let broken = |error: io::Error| MachineError {
            message: format!("a program's terminal: {error}"),
            permanent: false,
        };
        let terminal = process.terminal().ok_or_else(|| broken(io::ErrorKind::NotFound.into()))?;
        let duplicate =
            || terminal.try_clone().map(|fd| tokio::fs::File::from_std(File::from(fd))).map_err(broken);
        let (write, read) = (duplicate()?, duplicate()?);
        let (waiting, resizing, killing) = (process.clone(), process.clone(), process.clone());
        Ok(ExecHandle {
            stdin: Some(Box::new(write) as Box<dyn AsyncWrite + Send + Unpin>),
            stdout: Box::new(read),
            stderr: None,
            exit: async move { waiting.wait().await }.boxed(),
            resize: Box::new(move |rows, columns| {
                if let Err(error) = resizing.resize(rows, columns) {
                    tracing::debug!(%error, "resizing a terminal");
                }
            }),
            kill: Box::new(move || killing.kill()),
        })
    }
}

impl From<SandboxError> for MachineError {
    fn from(error: SandboxError) -> Self {
        let permanent = matches!(
            error,
            SandboxError::Program { .. } | SandboxError::NoSuchId { .. } | SandboxError::Spec { .. }
        );
        let cure = error.cure();
        let hint = if cure.is_empty() { String::new() } else { format!(" (hint: {cure})") };
        Self { message: format!("{}: {error}{hint}", error.code()), permanent }
    }
}

/// A pipe: the end to read from here, the end for a program.
fn pipe_pair() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// Reads a container's output until both streams end: its last process is gone.
async fn collect(mut out: pipe::Receiver, mut err: pipe::Receiver, log: Log) {
    let (mut from_out, mut from_err) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        tokio::select! {
            read = out.read(&mut from_out), if out_open => match read {
                Ok(0) => out_open = false,
                Ok(length) => log.write(Stream::Out, &from_out[..length]),
                Err(error) => {
                    tracing::debug!(%error, fd = out.as_raw_fd(), "reading a container's output");
                    out_open = false;
                }
            },
            read = err.read(&mut from_err), if err_open => match read {
                Ok(0) => err_open = false,
                Ok(length) => log.write(Stream::Err, &from_err[..length]),
                Err(error) => {
                    tracing::debug!(%error, fd = err.as_raw_fd(), "reading a container's output");
                    err_open = false;
                }
            },
        }
    }
    log.close();
}
