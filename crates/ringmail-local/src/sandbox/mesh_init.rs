//! The stage with pid 1 in the mesh: mounts what the daemon needs, starts it, and ends everything when it ends.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::channel::Channel;
use super::daemon::{Handover, Report};
use super::error::SandboxError;
use super::refusal::Machine;
use super::rootfs;
use super::supervise::{protect_memory, supervise, take_signals};
use crate::stage;

/// Where the mesh's private memory file system is, in its own mount namespace. A directory of the mesh's own would do
/// worse: whoever removes it outside takes the mount away inside. This one is a mount on every Linux, so it stays, and
/// nobody in here needs what it covers.
pub(crate) const STATE: &str = "/dev/shm";
/// Where each container mounts what it writes to, inside the state directory.
pub(crate) const SCRATCH: &str = ".scratch";
/// Where protected copies of the mesh's own programs are, inside the state directory.
pub(crate) const PROGRAMS: &str = ".programs";

pub(crate) fn run(lifeline: &Channel) -> ExitCode {
    let received = prctl::set_pdeathsig(Signal::SIGKILL)
        .and_then(|()| protect_memory())
        .map_err(io::Error::from)
        .and_then(|()| lifeline.receive::<Handover>());
    // Without instructions the outer stage is gone, and nobody is there to tell.
    let Ok(Some((handover, mut fds))) = received else { return ExitCode::from(1) };
    if fds.is_empty() {
        return ExitCode::from(1);
    }
    let orders = Channel::new(fds.remove(0).into());
    let outcome = take_signals().map_err(|errno| ended(&errno.into())).and_then(|signals| {
        let notes = set_up()?;
        let (child, to_daemon) =
            stage::spawn(stage::DAEMON, "daemon", &handover.environment, Stdio::inherit(), Stdio::inherit())
                .map_err(|error| ended(&error))?;
        let mut passed: Vec<BorrowedFd<'_>> = vec![orders.as_fd()];
        passed.extend(fds.iter().map(AsFd::as_fd));
        to_daemon.send(&handover, &passed).map_err(|error| ended(&error))?;
        orders.send(&Report::Born { notes }, &[]).map_err(|error| ended(&error))?;
        fds.clear();
        Ok(supervise(&signals, Pid::from_raw(child.id().cast_signed()), &orders, Some(lifeline)))
    });
    let (report, code) = match outcome {
        Ok(exit) => (Report::Exited(exit.code), exit.code as u8),
        Err(error) => (Report::Failed(error), 1),
    };
    // A detached mesh has nobody to tell.
    drop(orders.send(&report, &[]));
    ExitCode::from(code)
}

fn ended(reason: &io::Error) -> SandboxError {
    SandboxError::ended("the init", "the mesh", reason)
}

fn set_up() -> Result<Vec<String>, SandboxError> {
    // Mounts of the machine still come and go in here, so that none is kept busy; ours never go out.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|errno| ended(&errno.into()))?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), plain, None::<&str>)
        .map_err(|errno| Machine::this().proc_file_system(errno))?;
    let state = Path::new(STATE);
    let refused = |reason: io::Error| SandboxError::StateDirectory {
        path: state.display().to_string(),
        reason: reason.to_string(),
    };
    mount(Some("ringmail"), state, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0711"))
        .map_err(|errno| refused(errno.into()))?;
    for directory in [SCRATCH, PROGRAMS] {
        fs::create_dir(state.join(directory)).map_err(refused)?;
    }
    try_overlay(&state.join(SCRATCH))?;
    nix::unistd::sethostname("ringmail").map_err(|errno| ended(&errno.into()))?;
    Ok(Vec::new())
}

/// Fails now, with the reason, rather than when the first container starts.
fn try_overlay(at: &Path) -> Result<(), SandboxError> {
    let lower = Path::new("/usr");
    let failed = |errno: nix::errno::Errno| Machine::this().overlay(lower, errno);
    if rootfs::has_mounts_below(lower).map_err(|error| ended(&error))? {
        return Ok(());
    }
    let made = ["upper", "work", "merged"].map(|name| fs::create_dir(at.join(name)));
    made.into_iter().collect::<io::Result<()>>().map_err(|error| ended(&error))?;
    rootfs::mount_overlay(lower, at, &at.join("merged")).map_err(failed)?;
    umount2(&at.join("merged"), MntFlags::empty()).map_err(failed)?;
    for name in ["upper", "work", "merged"] {
        fs::remove_dir_all(at.join(name)).map_err(|error| ended(&error))?;
    }
    Ok(())
}
