//! The last stage before a program: takes on its identity and rights, and becomes it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

use super::channel::Channel;
use super::error::SandboxError;
use super::privileges::Privileges;
use super::spec::DEFAULT_PATH;
use super::supervise::{protect_memory, release_signals};

/// What to become.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProgramSpec {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: PathBuf,
    pub(crate) privileges: Privileges,
}

/// What a stage says that is to become a program; the end of the stream means that it has.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Failed(SandboxError),
    /// The other end of its terminal comes along.
    Terminal,
}

/// Namespaces to enter before, one descriptor for each, and the terminal to make.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinSpec {
    pub(crate) program: ProgramSpec,
    /// Whether the last of the descriptors for namespaces is a user namespace.
    pub(crate) user: bool,
    /// Rows and columns.
    pub(crate) terminal: Option<(u16, u16)>,
}

/// How many descriptors of namespaces come with a [`JoinSpec`], without the user namespace's.
pub(crate) const JOINED: [(&str, CloneFlags); 4] = [
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// In a container that is being made: this process has its namespaces already.
pub(crate) fn run(channel: &Channel) -> ExitCode {
    let Ok(Some((program, mut fds))) = channel.receive::<ProgramSpec>() else { return ExitCode::from(1) };
    let failed = match fds.pop().map_or(Ok(()), |stdin| rustix::stdio::dup2_stdin(&stdin)) {
        Ok(()) => become_program(&program, true),
        Err(errno) => SandboxError::ended("the program", &program.argv.join(" "), errno),
    };
    drop(channel.send(&Outcome::Failed(failed), &[]));
    ExitCode::from(126)
}

/// In a container that runs: this process has its pid and network namespaces already.
pub(crate) fn join_and_run(channel: &Channel) -> ExitCode {
    let Ok(Some((join, fds))) = channel.receive::<JoinSpec>() else { return ExitCode::from(1) };
    let failed = match join_all(channel, &join, fds) {
        Ok(()) => become_program(&join.program, join.terminal.is_none()),
        Err(error) => SandboxError::ended("the program", &join.program.argv.join(" "), error),
    };
    drop(channel.send(&Outcome::Failed(failed), &[]));
    ExitCode::from(126)
}

fn join_all(channel: &Channel, join: &JoinSpec, fds: Vec<OwnedFd>) -> io::Result<()> {
    protect_memory()?;
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or(io::ErrorKind::UnexpectedEof);
    for (_, kind) in JOINED {
        setns(next()?, kind)?;
    }
    if join.user {
        setns(next()?, CloneFlags::CLONE_NEWUSER)?;
    }
    if let Some((rows, columns)) = join.terminal {
        return make_terminal(channel, &join.program.privileges, rows, columns);
    }
    let (stdin, stdout, stderr) = (next()?, next()?, next()?);
    rustix::stdio::dup2_stdin(&stdin)?;
    rustix::stdio::dup2_stdout(&stdout)?;
    rustix::stdio::dup2_stderr(&stderr)?;
    Ok(())
}

/// A terminal of the container's own, so that its name exists in there; its other end goes to the daemon.
fn make_terminal(channel: &Channel, privileges: &Privileges, rows: u16, columns: u16) -> io::Result<()> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    let name = ptsname(&master, Vec::new())?;
    setsid()?;
    let name = name.to_str().map_err(io::Error::other)?;
    let slave = fs::File::options().read(true).write(true).open(name)?;
    // The program may open it again by its name.
    fchown(&slave, Some(privileges.uid), None)?;
    rustix::process::ioctl_tiocsctty(&slave)?;
    rustix::stdio::dup2_stdin(&slave)?;
    rustix::stdio::dup2_stdout(&slave)?;
    rustix::stdio::dup2_stderr(&slave)?;
    channel.send(&Outcome::Terminal, &[master.as_fd()])
}

/// Returns only when it failed.
fn become_program(spec: &ProgramSpec, new_session: bool) -> SandboxError {
    let name = spec.argv.first().map_or("", String::as_str);
    let fail = |reason: String| SandboxError::Program { program: name.to_owned(), reason };
    if name.is_empty() {
        return SandboxError::Spec { field: "argv".to_owned(), reason: "is empty".to_owned() };
    }
    if new_session && let Err(errno) = setsid() {
        return fail(format!("a session of its own: {errno}"));
    }
    umask(Mode::from_bits_truncate(0o022));
    // A volume may lack it; made with the container's rights, or as much of them as it has.
    drop(fs::create_dir_all(&spec.cwd));
    if let Err(reason) = spec.privileges.take() {
        return fail(reason);
    }
    if let Err(error) = std::env::set_current_dir(&spec.cwd) {
        return SandboxError::Spec {
            field: "cwd".to_owned(),
            reason: format!("`{}`: {error}", spec.cwd.display()),
        };
    }
    let path = spec.env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let found = match find(name, path) {
        Ok(found) => found,
        Err(reason) => return fail(reason),
    };
    if let Err(errno) = release_signals() {
        return fail(format!("signals: {errno}"));
    }
    let error = Command::new(&found)
        .arg0(name)
        .args(&spec.argv[1..])
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .exec();
    let missing_interpreter = error.kind() == io::ErrorKind::NotFound && found.exists();
    fail(if missing_interpreter {
        format!("{}: the interpreter in its first line, or its loader, is missing", found.display())
    } else {
        format!("{}: {error}", found.display())
    })
}

/// The program's file, searched for as a shell would.
fn find(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match fs::metadata(name) {
            Ok(metadata) if metadata.is_dir() => Err("it is a directory".to_owned()),
            Ok(_) => Ok(PathBuf::from(name)),
            Err(error) => Err(error.to_string()),
        };
    }
    let mut unusable = None;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        if candidate.is_file() {
            use nix::unistd::{AccessFlags, eaccess};
            if eaccess(&candidate, AccessFlags::X_OK).is_ok() {
                return Ok(candidate);
            }
            unusable = Some(candidate);
        }
    }
    Err(match unusable {
        Some(candidate) => format!("{} is not executable for this user", candidate.display()),
        None => format!("it is not in PATH ({path})"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_program_is_found_in_the_path_and_the_error_names_the_path() {
        assert_eq!(find("sh", "/nowhere:/bin").unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("no-such", "/bin:/usr/bin").unwrap_err(), "it is not in PATH (/bin:/usr/bin)");
        let text = std::env::temp_dir().join(format!("ringmail-text-{}", std::process::id()));
        fs::write(&text, "").unwrap();
        fs::set_permissions(&text, fs::Permissions::from_mode(0o644)).unwrap();
        let name = text.file_name().unwrap().to_str().unwrap();
        let error = find(name, std::env::temp_dir().to_str().unwrap()).unwrap_err();
        assert!(error.ends_with("is not executable for this user"), "{error}");
        fs::remove_file(text).unwrap();
        assert_eq!(find("/etc", "").unwrap_err(), "it is a directory");
    }
}
