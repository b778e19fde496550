//! The loop of a process with pid 1: passes signals on, reaps, and ends when its program or its master ends.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{self, SignalKind};

use super::channel::Channel;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code; `128 + n` when signal `n` ended it, as Kubernetes reports it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl Exit {
    /// Ended by `SIGKILL`.
    pub const KILLED: Self = Self { code: 137, signal: Some(9) };

    fn from_status(status: WaitStatus) -> Self {
        match status.terminating_signal() {
            Some(signal) => Self { code: 128 + signal, signal: Some(signal) },
            None => Self { code: status.exit_status().unwrap_or(1), signal: None },
        }
    }

    pub(crate) fn from_std(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        match status.signal() {
            Some(signal) => Self { code: 128 + signal, signal: Some(signal) },
            None => Self { code: status.code().unwrap_or(1), signal: None },
        }
    }
}

/// What a process with pid 1 is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// What it asked for has been done.
    Proceed,
    /// Send this signal to the program.
    Signal(i32),
    /// End everything at once.
    Kill,
    /// The end of this stream is no longer the end of everything.
    Detach,
}

/// Blocks all signals, so that none is lost before [`supervise`] reads them.
pub(crate) fn take_signals() -> nix::Result<SignalFd> {
    let all = SigSet::all();
    all.thread_block()?;
    SignalFd::with_flags(&all, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Undoes what [`take_signals`] of the parent did; it is inherited across exec.
pub(crate) fn release_signals() -> nix::Result<()> {
    SigSet::all().thread_unblock()
}

/// Programs that are started from here on have all signals at their default, even when `nohup` or a shell's background job
/// made this process ignore some: what is caught is set back by an exec, what is ignored is not.
pub(crate) fn stop_ignoring_signals() -> io::Result<()> {
    let ignored = fs::read_to_string("/proc/self/status")?
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    for number in (1..=31).filter(|number| ignored & (1 << (number - 1)) != 0) {
        // A handler that does nothing. This language ignores SIGPIPE itself, and sets it back itself.
        if number != Signal::SIGPIPE as i32 {
            drop(unix::signal(SignalKind::from_raw(number))?);
        }
    }
    Ok(())
}

/// Keeps this process's memory from others, and out of core files. Children of another program start without it.
pub(crate) fn protect_memory() -> nix::Result<()> {
    prctl::set_dumpable(false)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, hard)
}

/// Runs until the program `main` ends, or whoever gives orders is gone. The caller then exits, and with pid 1 the kernel
/// ends all processes of the namespace.
pub(crate) fn supervise(signals: &SignalFd, main: Pid, orders: &Channel, lifeline: Option<&Channel>) -> Exit {
    let mut detached = false;
    loop {
        if let Some(exit) = reap(main) {
            return exit;
        }
        let mut watched = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(lifeline) = lifeline {
            watched.push(PollFd::new(lifeline.as_fd(), PollFlags::POLLIN));
        }
        if !detached {
            watched.push(PollFd::new(orders.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Exit::KILLED,
        }
        let happened = |index: usize| {
            watched.get(index).and_then(PollFd::revents).is_some_and(|events| !events.is_empty())
        };
        let (lifeline_ended, ordered) = match lifeline {
            Some(_) => (happened(1), happened(2)),
            None => (false, happened(1)),
        };
        // Nothing is ever sent on the lifeline: it can only end.
        if lifeline_ended {
            return Exit::KILLED;
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            pass_on(main, signal.ssi_signo.cast_signed());
        }
        if ordered {
            match orders.receive() {
                Ok(Some((Order::Signal(signal), _))) => pass_on(main, signal),
                Ok(Some((Order::Detach, _))) => detached = true,
                Ok(Some((Order::Proceed, _))) => {}
                Ok(Some((Order::Kill, _)) | None) | Err(_) => return Exit::KILLED,
            }
        }
    }
}

fn pass_on(main: Pid, signal: i32) {
    let Ok(signal) = Signal::try_from(signal) else { return };
    if signal != Signal::SIGCHLD {
        // It may have ended just now; then the next round of the loop reaps it.
        let _ = kill(main, signal);
    }
}

/// Takes the status of every child that has ended; the exit of `main` if it is among them.
fn reap(main: Pid) -> Option<Exit> {
    let mut exit = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get() == main.as_raw() {
            exit = Some(Exit::from_status(status));
        }
    }
    exit
}
