//! The stage with pid 1 in a container: makes its root and namespaces, starts its program, and ends with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::channel::Channel;
use super::daemon::MeshFacts;
use super::error::SandboxError;
use super::privileges::{Privileges, keep_all, keep_only_kill};
use super::program::{Outcome, ProgramSpec};
use super::rootfs;
use super::spec::ContainerSpec;
use super::supervise::{Exit, Order, protect_memory, supervise, take_signals};
use crate::stage;

/// From the daemon. With it come a descriptor for the program's standard input, or none.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handover {
    pub(crate) of: String,
    pub(crate) spec: ContainerSpec,
    pub(crate) privileges: Privileges,
    pub(crate) facts: MeshFacts,
}

/// To the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The user namespace is made; its ids are to be mapped.
    NeedMap,
    /// All namespaces are made, and the program does not run yet.
    Made,
    Started {
        notes: Vec<String>,
    },
    Failed(SandboxError),
    Exited(Exit),
}

pub(crate) fn run(channel: &Channel) -> ExitCode {
    // Without instructions the daemon is gone, and everything with it.
    let Ok(Some((handover, fds))) = channel.receive::<Handover>() else { return ExitCode::from(1) };
    let (report, code) = match start(channel, &handover, fds) {
        Ok((signals, main)) => {
            let exit = supervise(&signals, main, channel, None);
            (Report::Exited(exit), exit.code as u8)
        }
        Err(error) => (Report::Failed(error), 1),
    };
    drop(channel.send(&report, &[]));
    ExitCode::from(code)
}

fn start(
    channel: &Channel,
    handover: &Handover,
    stdin: Vec<OwnedFd>,
) -> Result<(SignalFd, Pid), SandboxError> {
    let Handover { of, spec, privileges, facts } = handover;
    let broken = |reason: io::Error| SandboxError::ended("the init", of, reason);
    let refused = |what: &str, errno: nix::Error| {
        SandboxError::ended("the init", of, format!("{what} namespaces: {errno}"))
    };
    let signals = take_signals().map_err(|errno| broken(errno.into()))?;
    protect_memory().map_err(|errno| broken(errno.into()))?;

    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| refused("mount", errno))?;
    let root = rootfs::build(spec, facts, privileges.owner(&facts.ids))?;
    rootfs::enter(&root)?;

    // Mounts made so far are locked by the nested namespace: no right in there can uncover what they hide.
    let own = CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
    if spec.profile.is_trusted() {
        unshare(own).map_err(|errno| refused("ipc, uts and cgroup", errno))?;
    } else {
        unshare(own | CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
            .map_err(|errno| refused("user, mount, ipc, uts and cgroup", errno))?;
        ask(channel, &Report::NeedMap).map_err(broken)?;
        // Its root may have another name than 0 in there, and would lose its rights with the next exec.
        keep_all().map_err(|error| broken(io::Error::other(error)))?;
    }
    ask(channel, &Report::Made).map_err(broken)?;
    nix::unistd::sethostname(&spec.hostname).map_err(|errno| SandboxError::Spec {
        field: "hostname".to_owned(),
        reason: format!("`{}`: {errno}", spec.hostname),
    })?;

    let (child, to_program) =
        stage::spawn(stage::PROGRAM, of, &[], Stdio::inherit(), Stdio::inherit()).map_err(broken)?;
    let program = ProgramSpec {
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        cwd: root.cwd,
        privileges: privileges.clone(),
    };
    let passed: Vec<BorrowedFd<'_>> = stdin.iter().map(AsFd::as_fd).collect();
    to_program.send(&program, &passed).map_err(broken)?;
    drop(stdin);
    // It says nothing when the program has taken its place.
    if let Some((Outcome::Failed(error), _)) = to_program.receive().map_err(broken)? {
        return Err(error);
    }
    // Readers of the output see its end when the program's last process ends.
    let null = File::options().read(true).write(true).open("/dev/null").map_err(broken)?;
    rustix::stdio::dup2_stdout(&null).map_err(|errno| broken(errno.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|errno| broken(errno.into()))?;
    keep_only_kill().map_err(|error| broken(io::Error::other(error)))?;
    channel.send(&Report::Started { notes: root.notes }, &[]).map_err(broken)?;
    Ok((signals, Pid::from_raw(child.id().cast_signed())))
}

/// Waits until the daemon has done what a report asks for.
fn ask(channel: &Channel, report: &Report) -> io::Result<()> {
    channel.send(report, &[])?;
    match channel.receive()? {
        Some((Order::Proceed, _)) => Ok(()),
        _ => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}
