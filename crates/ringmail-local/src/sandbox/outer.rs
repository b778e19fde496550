//! The stage that makes the mesh's namespaces; it stays as the parent of the mesh's init.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};

use super::channel::Channel;
use super::daemon::{Handover, Report};
use super::error::SandboxError;
use super::refusal::Machine;
use super::supervise::{Exit, Order, protect_memory, stop_ignoring_signals};
use crate::stage;

pub(crate) fn run(orders: &Channel) -> ExitCode {
    match start(orders) {
        Ok(exit) => ExitCode::from(exit.code as u8),
        Err(error) => {
            // Whoever started this may be gone; the exit code tells as well.
            drop(orders.send(&Report::Failed(error), &[]));
            ExitCode::from(1)
        }
    }
}

fn start(orders: &Channel) -> Result<Exit, SandboxError> {
    let broken = |reason: io::Error| SandboxError::ended("the outer process", "the mesh", reason);
    let (handover, fds) = orders
        .receive::<Handover>()
        .map_err(broken)?
        .ok_or_else(|| broken(io::ErrorKind::UnexpectedEof.into()))?;
    stop_ignoring_signals().map_err(broken)?;
    // The terminal's Ctrl-C is for the command line alone, which ends the mesh in order.
    setsid().map_err(|errno| broken(errno.into()))?;
    let uid = Uid::effective().as_raw();
    let machine = Machine::this();
    if handover.user_namespace {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| machine.user_namespaces(uid, errno))?;
        orders.send(&Report::NeedMap, &[]).map_err(broken)?;
        match orders.receive().map_err(broken)? {
            Some((Order::Proceed, _)) => {}
            _ => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
        }
        // AppArmor grants the namespace, and then takes the rights in it.
        become_root().map_err(|errno| machine.namespaces(uid, "user", errno, false))?;
    }
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .map_err(|errno| {
        machine.namespaces(uid, "network, mount, pid, ipc and uts", errno, !handover.user_namespace)
    })?;
    protect_memory().map_err(|errno| broken(errno.into()))?;
    let (mut child, lifeline) =
        stage::spawn(stage::MESH_INIT, "init", &[], Stdio::inherit(), Stdio::inherit()).map_err(broken)?;
    orders.send(&Report::Init { pid: child.id() }, &[]).map_err(broken)?;
    let mut passed: Vec<BorrowedFd<'_>> = vec![orders.as_fd()];
    passed.extend(fds.iter().map(AsFd::as_fd));
    lifeline.send(&handover, &passed).map_err(broken)?;
    drop(fds);
    let status = child.wait().map_err(broken)?;
    drop(lifeline);
    Ok(Exit::from_std(status))
}

/// The ids of a fresh user namespace's root; without ranges the kernel refuses to change groups, and none are needed.
fn become_root() -> nix::Result<()> {
    if std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "allow") {
        setgroups(&[])?;
    }
    let (gid, uid) = (Gid::from_raw(0), Uid::from_raw(0));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}
