//! This program as its own helper: processes of one thread which enter namespaces, mount and drop rights.
//!
//! A stage is this executable with `__stage NAME` as its first arguments, one end of a socket pair as standard input and
//! an empty environment. [`run_if_asked`] is the first thing `main` calls.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use crate::sandbox::channel::Channel;
use crate::sandbox::{self, DaemonContext};

/// The daemon's main function: gets what the command line handed over, and its return ends the mesh.
pub type DaemonMain = fn(DaemonContext) -> ExitCode;

const MARK: &str = "__stage";

/// The stages, by the name in their process title.
pub(crate) const OUTER: &str = "mesh";
pub(crate) const MESH_INIT: &str = "mesh-init";
pub(crate) const DAEMON: &str = "daemon";
pub(crate) const CONTAINER: &str = "container";
pub(crate) const PROGRAM: &str = "program";
pub(crate) const EXEC: &str = "exec";

/// Runs the stage that this process was started as, if it was. `None`: it is an ordinary run of the program.
pub fn run_if_asked() -> Option<ExitCode> {
    run_with(&[(crate::launch::DAEMON, crate::daemon::main)])
}

/// As [`run_if_asked`], with the daemons that [`sandbox::DaemonSpec::entry`] may name.
pub fn run_with(daemons: &[(&str, DaemonMain)]) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != MARK {
        return None;
    }
    close_inherited();
    let name = arguments.next().unwrap_or_default();
    let channel = match take_channel() {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!(
                "error: this command is for ringmail itself: standard input is not its socket: {error}"
            );
            return Some(ExitCode::from(2));
        }
    };
    Some(match name.to_str() {
        Some(OUTER) => sandbox::outer::run(&channel),
        Some(MESH_INIT) => sandbox::mesh_init::run(&channel),
        Some(DAEMON) => sandbox::daemon::run(&channel, daemons),
        Some(CONTAINER) => sandbox::inside::run(&channel),
        Some(PROGRAM) => sandbox::program::run(&channel),
        Some(EXEC) => sandbox::program::join_and_run(&channel),
        _ => {
            eprintln!("error: there is no stage {}", name.display());
            ExitCode::from(2)
        }
    })
}

/// Starts a stage. `title` is for people who look at the list of processes.
///
/// The child inherits the namespaces of the calling thread; of its environment it has `environment` alone.
pub(crate) fn spawn(
    name: &str,
    title: &str,
    environment: &[(String, String)],
    stdout: Stdio,
    stderr: Stdio,
) -> io::Result<(Child, Channel)> {
    let (ours, theirs) = Channel::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg0("ringmail")
        .args([MARK, name, title])
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(OwnedFd::from(theirs))
        .stdout(stdout)
        .stderr(stderr)
        .spawn()?;
    Ok((child, ours))
}

/// Shells and supervisors leave descriptors open; no container is to have them.
fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<i32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The listing's own is closed already.
        let _ = nix::unistd::close(number);
    }
}

/// Standard input as the socket it is, replaced by `/dev/null`.
fn take_channel() -> io::Result<Channel> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.peer_addr()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(Channel::new(socket))
}
