//! The mesh's daemon: how the command line starts it, and what it finds when it runs.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Uid, User};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::channel::Channel;
use super::error::SandboxError;
use super::ids::{IdChoice, Ids, map_user};
use super::mesh_init::STATE;
use super::supervise::{Order, protect_memory, release_signals};
use crate::stage::{self, DaemonMain};

/// A daemon to start.
#[derive(Debug)]
pub struct DaemonSpec {
    /// Which of the functions given to [`stage::run_with`] it is.
    pub entry: String,
    /// What it is told.
    pub payload: Value,
    /// Directories which no container may see, such as that of the control socket.
    pub hide: Vec<PathBuf>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// Descriptors it gets, such as listeners in the machine's own network.
    pub fds: Vec<OwnedFd>,
    /// Its standard output and error.
    pub output: DaemonOutput,
    /// Whether to use the user's id ranges.
    pub ids: IdChoice,
}

/// Where the daemon's standard output and error go.
#[derive(Debug)]
pub enum DaemonOutput {
    /// Where the command line's go.
    Inherit,
    /// To a file.
    To(OwnedFd),
}

/// What becomes of a daemon that was started.
#[derive(Clone, Debug, PartialEq)]
pub enum DaemonEvent {
    /// It says how far it is.
    Progress(String),
    /// It serves; with what it wants to tell.
    Ready(Value),
    /// It gives up, and says why.
    Failed(String),
    /// It has ended, with this exit code, and the mesh with it.
    Exited(i32),
}

/// From the stages and the daemon to the command line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    NeedMap,
    Init { pid: u32 },
    Born { notes: Vec<String> },
    Failed(SandboxError),
    Progress(String),
    Ready(Value),
    GaveUp(String),
    Exited(i32),
}

/// From the command line through the outer stage and the init to the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Handover {
    pub(crate) user_namespace: bool,
    pub(crate) entry: String,
    pub(crate) payload: Value,
    pub(crate) hide: Vec<PathBuf>,
    pub(crate) homes: Vec<PathBuf>,
    pub(crate) environment: Vec<(String, String)>,
}

/// A running daemon. Dropped without [`Self::detach`], everything in the mesh ends, at once.
#[derive(Debug)]
pub struct DaemonProcess {
    channel: Channel,
    /// The outer stage; `None` once detached.
    outer: Option<Child>,
    init: u32,
    notes: Vec<String>,
    /// Events that came before the mesh's birth was reported.
    early: Mutex<VecDeque<DaemonEvent>>,
}

/// Makes the mesh's namespaces and starts the daemon in them. Blocks until they stand, not until the daemon is ready.
pub fn launch_daemon(spec: DaemonSpec) -> Result<DaemonProcess, SandboxError> {
    let broken = |reason: io::Error| SandboxError::ended("the outer process", "the mesh", reason);
    let (stdout, stderr) = match &spec.output {
        DaemonOutput::Inherit => (Stdio::inherit(), Stdio::inherit()),
        DaemonOutput::To(file) => {
            (Stdio::from(file.try_clone().map_err(broken)?), Stdio::from(file.try_clone().map_err(broken)?))
        }
    };
    let handover = Handover {
        user_namespace: !may_make_namespaces(),
        entry: spec.entry,
        payload: spec.payload,
        hide: spec.hide,
        homes: homes(),
        environment: spec.environment,
    };
    let (mut outer, channel) = stage::spawn(stage::OUTER, "mesh", &[], stdout, stderr).map_err(broken)?;
    let born = be_born(&channel, &handover, &spec.fds, outer.id(), spec.ids);
    match born {
        Ok((init, notes, early)) => {
            Ok(DaemonProcess { channel, outer: Some(outer), init, notes, early: Mutex::new(early) })
        }
        Err(error) => {
            channel.shut();
            // Its status says less than the error.
            drop(outer.wait());
            Err(error)
        }
    }
}

type Born = (u32, Vec<String>, VecDeque<DaemonEvent>);

fn be_born(
    channel: &Channel,
    handover: &Handover,
    fds: &[OwnedFd],
    outer: u32,
    ids: IdChoice,
) -> Result<Born, SandboxError> {
    let broken = |reason: io::Error| SandboxError::ended("the mesh's init", "the mesh", reason);
    let passed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    channel.send(handover, &passed).map_err(broken)?;
    let mut init = 0;
    let mut notes = Vec::new();
    let mut early = VecDeque::new();
    loop {
        let Some((report, _)) = channel.receive().map_err(broken)? else {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        };
        match report {
            Report::NeedMap => {
                notes.extend(map_user(outer, ids)?);
                channel.send(&Order::Proceed, &[]).map_err(broken)?;
            }
            Report::Init { pid } => init = pid,
            Report::Born { notes: more } => {
                notes.extend(more);
                return Ok((init, notes, early));
            }
            Report::Failed(error) => return Err(error),
            other => early.extend(event(other)),
        }
    }
}

fn event(report: Report) -> Option<DaemonEvent> {
    match report {
        Report::Progress(text) => Some(DaemonEvent::Progress(text)),
        Report::Ready(value) => Some(DaemonEvent::Ready(value)),
        Report::GaveUp(reason) => Some(DaemonEvent::Failed(reason)),
        Report::Failed(error) => Some(DaemonEvent::Failed(error.to_string())),
        Report::Exited(code) => Some(DaemonEvent::Exited(code)),
        Report::NeedMap | Report::Init { .. } | Report::Born { .. } => None,
    }
}

impl DaemonProcess {
    /// The mesh's init, as this process sees it. When it ends, so does everything in the mesh.
    pub fn pid(&self) -> u32 {
        self.init
    }

    /// What the user might want to know, such as why there is only one id.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The next event; `None` when the time is over. After [`DaemonEvent::Exited`] nothing more comes.
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Option<DaemonEvent>, SandboxError> {
        if let Some(event) = self.early.lock().pop_front() {
            return Ok(Some(event));
        }
        let broken = |reason: io::Error| SandboxError::ended("the daemon", "the mesh", reason);
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let wait = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
                }
            };
            match poll(&mut [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(None),
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(broken(errno.into())),
            }
            match self.channel.receive().map_err(broken)? {
                // Killed before it could say so.
                None => return Ok(Some(DaemonEvent::Exited(137))),
                Some((report, _)) => {
                    if let Some(event) = event(report) {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    /// Asks the daemon to end in order (`SIGTERM`).
    pub fn terminate(&self) {
        // When it is gone already there is nothing to ask.
        drop(self.channel.send(&Order::Signal(15), &[]));
    }

    /// Ends everything at once.
    pub fn kill(&self) {
        drop(self.channel.send(&Order::Kill, &[]));
    }

    /// Lets it live without this process.
    pub fn detach(mut self) -> Result<(), SandboxError> {
        self.channel
            .send(&Order::Detach, &[])
            .map_err(|reason| SandboxError::ended("the daemon", "the mesh", reason))?;
        self.outer = None;
        Ok(())
    }
}

impl AsFd for DaemonProcess {
    /// Readable when [`DaemonProcess::next_event`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        if let Some(mut outer) = self.outer.take() {
            self.channel.shut();
            // The init ends when this channel does, and the outer stage after it.
            drop(outer.wait());
        }
    }
}

/// Root with the rights of root; in a container it often lacks them.
fn may_make_namespaces() -> bool {
    Uid::effective().is_root()
        && [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN, Capability::CAP_SETUID]
            .into_iter()
            .all(|capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false))
}

/// Directories with people's files, which containers see but never change.
fn homes() -> Vec<PathBuf> {
    let passwd = User::from_uid(Uid::current()).ok().flatten().map(|user| user.dir);
    let mut homes: Vec<PathBuf> = Vec::new();
    let named = std::env::var_os("HOME").map(PathBuf::from).into_iter().chain(passwd);
    for home in ["/root", "/home"].into_iter().map(PathBuf::from).chain(named) {
        if let Ok(home) = home.canonicalize()
            && home.components().count() > 1
            && !homes.iter().any(|known| home.starts_with(known))
        {
            homes.push(home);
        }
    }
    homes
}

/// What holds for the whole mesh; containers are made by it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeshFacts {
    /// The daemon's private memory file system. No container sees it but through [`super::Source::Bind`].
    pub state_dir: PathBuf,
    /// Further directories which no container sees.
    pub hide: Vec<PathBuf>,
    /// Directories with people's files: read-only in containers.
    pub homes: Vec<PathBuf>,
    /// The uids and gids that exist in the mesh.
    pub ids: Ids,
}

impl MeshFacts {
    /// Whether an ordinary user started the mesh.
    pub fn is_rootless(&self) -> bool {
        !self.ids.is_initial()
    }
}

/// What the daemon's main function gets.
#[derive(Debug)]
pub struct DaemonContext {
    /// [`DaemonSpec::payload`].
    pub payload: Value,
    /// [`DaemonSpec::fds`], in the same order.
    pub fds: Vec<OwnedFd>,
    /// What holds for the whole mesh.
    pub facts: MeshFacts,
    reporter: Reporter,
}

impl DaemonContext {
    /// Talks to the command line that started the mesh.
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }
}

/// Talks to the command line that started the mesh, while it is there; later, words go nowhere.
#[derive(Clone, Debug)]
pub struct Reporter(Channel);

impl Reporter {
    /// One step is done.
    pub fn progress(&self, text: &str) {
        self.say(&Report::Progress(text.to_owned()));
    }

    /// The mesh serves.
    pub fn ready(&self, value: Value) {
        self.say(&Report::Ready(value));
    }

    /// The daemon gives up; it should return next.
    pub fn failed(&self, reason: &str) {
        self.say(&Report::GaveUp(reason.to_owned()));
    }

    fn say(&self, report: &Report) {
        // The command line has gone its way after a detach.
        drop(self.0.send(report, &[]));
    }
}

/// The stage: the process in which the daemon's main function runs.
pub(crate) fn run(channel: &Channel, daemons: &[(&str, DaemonMain)]) -> ExitCode {
    let context = match context(channel) {
        Ok(Some(context)) => context,
        // The init ended first.
        Ok(None) => return ExitCode::from(1),
        Err(error) => {
            eprintln!("error: the daemon got no instructions: {error}");
            return ExitCode::from(1);
        }
    };
    let (entry, context) = context;
    let Some((_, main)) = daemons.iter().find(|(name, _)| *name == entry) else {
        context.reporter.failed(&format!("there is no daemon named `{entry}` in this program"));
        return ExitCode::from(1);
    };
    main(context)
}

fn context(channel: &Channel) -> io::Result<Option<(String, DaemonContext)>> {
    protect_memory()?;
    release_signals()?;
    let Some((handover, mut fds)) = channel.receive::<Handover>()? else { return Ok(None) };
    if fds.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no channel to the command line"));
    }
    let reporter = Reporter(Channel::new(fds.remove(0).into()));
    let facts = MeshFacts {
        state_dir: PathBuf::from(STATE),
        hide: handover.hide,
        homes: handover.homes,
        ids: Ids::of_this_process()?,
    };
    Ok(Some((handover.entry, DaemonContext { payload: handover.payload, fds, facts, reporter })))
}
