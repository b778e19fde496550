//! A container as the daemon sees it: one thread that starts it and waits for its end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::{oneshot, watch};

use super::channel::Channel;
use super::daemon::MeshFacts;
use super::error::SandboxError;
use super::inside::{Handover, Report};
use super::privileges::Privileges;
use super::program::{JOINED, JoinSpec, Outcome, ProgramSpec};
use super::spec::{ContainerSpec, ExecSpec};
use super::supervise::{Exit, Order};
use crate::stage;

/// The standard streams of a program.
#[derive(Debug)]
pub struct ContainerIo {
    /// `None` is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Where standard output goes.
    pub stdout: OwnedFd,
    /// Where standard error goes.
    pub stderr: OwnedFd,
}

/// A container whose program has been started. Clones are the same container.
#[derive(Clone, Debug)]
pub struct Container(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    of: String,
    pid: u32,
    process: OwnedFd,
    channel: Channel,
    exit: watch::Receiver<Option<Exit>>,
    notes: Vec<String>,
    netns: Arc<OwnedFd>,
    pid_namespace: OwnedFd,
    /// In the order of [`JOINED`], then the user namespace if it has its own.
    namespaces: Vec<OwnedFd>,
    has_user_namespace: bool,
    cwd: PathBuf,
    privileges: Privileges,
}

impl Container {
    pub(crate) async fn start(
        of: String,
        netns: Arc<OwnedFd>,
        facts: MeshFacts,
        spec: ContainerSpec,
        io: ContainerIo,
    ) -> Result<Self, SandboxError> {
        let (privileges, notes) = Privileges::of(&spec, &facts.ids)?;
        let handover = Handover { of: of.clone(), spec, privileges, facts };
        let (tell, started) = oneshot::channel();
        thread::Builder::new()
            .name("container".to_owned())
            .spawn(move || keep(&netns, &handover, io, &notes, tell))
            .map_err(|error| SandboxError::ended("its thread", &of, error))?;
        started.await.unwrap_or_else(|_| Err(SandboxError::ended("its thread", &of, "no answer")))
    }

    /// Its init, in the daemon's pid namespace.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// What the user might want to know, such as groups that do not exist in a mesh with a single id.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// Waits until its program has ended, and with it all of its processes.
    pub async fn wait(&self) -> Exit {
        ended(&self.0.exit).await
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.0.exit.borrow()
    }

    /// Sends a signal to its program (1 to 31).
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let signal = Signal::try_from(signal)?;
        self.0.channel.send(&Order::Signal(signal as i32), &[])
    }

    /// Ends all of its processes at once.
    pub fn kill(&self) {
        // Its descriptor names this process even when the pid is in use again.
        let _ = pidfd_send_signal(&self.0.process, rustix::process::Signal::KILL);
    }

    /// Runs another program in it; returns when that has been started.
    pub async fn exec(&self, spec: ExecSpec, io: ExecIo) -> Result<ExecProcess, SandboxError> {
        let container = self.clone();
        let (tell, started) = oneshot::channel();
        thread::Builder::new()
            .name("exec".to_owned())
            .spawn(move || keep_exec(&container.0, spec, io, tell))
            .map_err(|error| SandboxError::ended("its thread", &self.0.of, error))?;
        started.await.unwrap_or_else(|_| Err(SandboxError::ended("its thread", &self.0.of, "no answer")))
    }
}

async fn ended(exit: &watch::Receiver<Option<Exit>>) -> Exit {
    let mut exit = exit.clone();
    match exit.wait_for(Option::is_some).await {
        Ok(found) => found.unwrap_or(Exit::KILLED),
        Err(_) => Exit::KILLED,
    }
}

type Started<T> = oneshot::Sender<Result<T, SandboxError>>;

/// The life of a container, on a thread of its own.
fn keep(
    netns: &Arc<OwnedFd>,
    handover: &Handover,
    io: ContainerIo,
    notes: &[String],
    tell: Started<Container>,
) {
    let of = &handover.of;
    let (mut child, channel) = match begin(netns, handover, io) {
        Ok(begun) => begun,
        Err(error) => {
            drop(tell.send(Err(SandboxError::ended("its first process", of, error))));
            return;
        }
    };
    let (publish, exit) = watch::channel(None);
    let mut tell = Some(tell);
    let mut reported = None;
    let mut made = None;
    let outcome = loop {
        match channel.receive::<Report>() {
            Ok(Some((Report::NeedMap, _))) => {
                let privileges = &handover.privileges;
                let mapped = handover.facts.ids.nested(privileges.uid, privileges.gid).write(child.id());
                if let Err(error) = mapped.and_then(|()| channel.send(&Order::Proceed, &[])) {
                    break Err(error);
                }
            }
            Ok(Some((Report::Made, _))) => match container(netns, handover, &child, &channel, exit.clone()) {
                Ok(inner) => {
                    made = Some(inner);
                    if let Err(error) = channel.send(&Order::Proceed, &[]) {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            },
            Ok(Some((Report::Started { notes: more }, _))) => {
                let Some((mut inner, tell)) = made.take().zip(tell.take()) else { continue };
                inner.notes = notes.iter().cloned().chain(more).collect();
                // Whoever asked may have stopped waiting.
                if tell.send(Ok(Container(Arc::new(inner)))).is_err() {
                    break Err(io::ErrorKind::Interrupted.into());
                }
            }
            Ok(Some((Report::Failed(error), _))) => {
                if let Some(tell) = tell.take() {
                    drop(tell.send(Err(error)));
                }
            }
            Ok(Some((Report::Exited(exit), _))) => reported = Some(exit),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if outcome.is_err() {
        // Only what has ended already cannot be killed.
        drop(child.kill());
    }
    let status = child.wait();
    let exit = reported.or_else(|| status.as_ref().ok().copied().map(Exit::from_std)).unwrap_or(Exit::KILLED);
    if let Some(tell) = tell.take() {
        let reason = match outcome {
            Err(error) => error.to_string(),
            Ok(()) => status.map_or_else(|error| error.to_string(), |status| status.to_string()),
        };
        drop(tell.send(Err(SandboxError::ended("its first process", of, reason))));
    }
    publish.send_replace(Some(exit));
}

/// Starts the container's init from inside the pod's network and a new pid namespace.
fn begin(netns: &OwnedFd, handover: &Handover, io: ContainerIo) -> io::Result<(Child, Channel)> {
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    // For this thread's next child alone.
    unshare(CloneFlags::CLONE_NEWPID)?;
    let (mut child, channel) =
        stage::spawn(stage::CONTAINER, &handover.of, &[], io.stdout.into(), io.stderr.into())?;
    let stdin: Vec<BorrowedFd<'_>> = io.stdin.iter().map(AsFd::as_fd).collect();
    if let Err(error) = channel.send(handover, &stdin) {
        drop(child.kill());
        drop(child.wait());
        return Err(error);
    }
    Ok((child, channel))
}

fn container(
    netns: &Arc<OwnedFd>,
    handover: &Handover,
    child: &Child,
    channel: &Channel,
    exit: watch::Receiver<Option<Exit>>,
) -> io::Result<Inner> {
    let pid = child.id();
    let has_user_namespace = !handover.spec.profile.is_trusted();
    let namespaces = JOINED
        .iter()
        .map(|(name, _)| *name)
        .chain(has_user_namespace.then_some("user"))
        .map(|name| namespace(pid, name))
        .collect::<io::Result<_>>()?;
    Ok(Inner {
        of: handover.of.clone(),
        pid,
        process: pidfd(child)?,
        channel: channel.clone(),
        exit,
        notes: Vec::new(),
        netns: netns.clone(),
        pid_namespace: namespace(pid, "pid")?,
        namespaces,
        has_user_namespace,
        cwd: handover.spec.cwd.clone(),
        privileges: handover.privileges.clone(),
    })
}

fn namespace(pid: u32, name: &str) -> io::Result<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from)
}

/// The child has not been waited for, so its pid is its own.
fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The streams of a program that is run in a container.
#[derive(Debug)]
pub enum ExecIo {
    /// These.
    Streams(ContainerIo),
    /// A terminal of this size.
    Terminal {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// A program that was started in a running container.
#[derive(Debug)]
pub struct ExecProcess {
    process: OwnedFd,
    terminal: Option<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl ExecProcess {
    /// The terminal's other end, to read and write, if it has one.
    pub fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal.as_ref()
    }

    /// Changes the terminal's size; nothing without a terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(terminal, size)?)
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> Exit {
        ended(&self.exit).await
    }

    /// Sends it a signal (1 to 31).
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let signal = rustix::process::Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_send_signal(&self.process, signal)?)
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.process, rustix::process::Signal::KILL);
    }
}

/// The life of a program in a container, on a thread of its own.
fn keep_exec(container: &Inner, spec: ExecSpec, io: ExecIo, tell: Started<ExecProcess>) {
    let broken = |error: io::Error| SandboxError::ended("a program", &container.of, error);
    let begun = begin_exec(container, spec, io).map_err(broken);
    let (mut child, channel) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            drop(tell.send(Err(error)));
            return;
        }
    };
    let (publish, exit) = watch::channel(None);
    let mut terminal = None;
    // The stream ends when the program has taken the stage's place, or the stage has been killed.
    let outcome = loop {
        match channel.receive::<Outcome>() {
            Ok(Some((Outcome::Terminal, mut fds))) => terminal = fds.pop(),
            Ok(Some((Outcome::Failed(error), _))) => break Err(error),
            Ok(None) => break Ok(()),
            Err(error) => break Err(broken(error)),
        }
    };
    let started = outcome.and_then(|()| pidfd(&child).map_err(broken)).map(|process| ExecProcess {
        process,
        terminal,
        exit,
    });
    if started.is_err() {
        drop(child.kill());
    }
    drop(channel);
    if let Err(Ok(unwanted)) = tell.send(started) {
        unwanted.kill();
    }
    let status = child.wait();
    publish.send_replace(Some(status.map_or(Exit::KILLED, Exit::from_std)));
}

fn begin_exec(container: &Inner, spec: ExecSpec, io: ExecIo) -> io::Result<(Child, Channel)> {
    setns(&*container.netns, CloneFlags::CLONE_NEWNET)?;
    // For this thread's next child.
    setns(&container.pid_namespace, CloneFlags::CLONE_NEWPID)?;
    let (streams, terminal) = match io {
        ExecIo::Streams(io) => {
            let null = File::open("/dev/null")?;
            (vec![io.stdin.unwrap_or(null.into()), io.stdout, io.stderr], None)
        }
        ExecIo::Terminal { rows, columns } => (Vec::new(), Some((rows, columns))),
    };
    let join = JoinSpec {
        program: ProgramSpec {
            argv: spec.argv,
            env: spec.env,
            cwd: spec.cwd.unwrap_or_else(|| container.cwd.clone()),
            privileges: container.privileges.clone(),
        },
        user: container.has_user_namespace,
        terminal,
    };
    let (mut child, channel) = stage::spawn(stage::EXEC, &container.of, &[], Stdio::null(), Stdio::null())?;
    let fds: Vec<BorrowedFd<'_>> = container.namespaces.iter().chain(&streams).map(AsFd::as_fd).collect();
    if let Err(error) = channel.send(&join, &fds) {
        drop(child.kill());
        drop(child.wait());
        return Err(error);
    }
    Ok((child, channel))
}
