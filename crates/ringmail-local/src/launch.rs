//! Starting a mesh: everything that can be known is checked, every port of this machine is taken, and only then the daemon starts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::addresses::Networks;
use crate::control_plane::{CONTROLLER_IMAGE, PROXY_IMAGE};
use crate::engine::refuse_control_plane;
use crate::manifest::check::check;
use crate::manifest::{Document, Object};
use crate::problem::{Problem, Problems};
use crate::programs::Programs;
use crate::protocol::Status;
use crate::publish::{Publication, publications};
use crate::runtime_dir::RuntimeDir;
use crate::sandbox::{DaemonOutput, DaemonProcess, DaemonSpec, IdChoice, SandboxError, launch_daemon};
use crate::store::Store;

/// What a user wants started.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// The mesh's name.
    pub name: String,
    /// The manifests.
    pub documents: Vec<Document>,
    /// Kinds to leave out.
    pub skip_kinds: Vec<String>,
    /// Values of `--run`.
    pub run: Vec<String>,
    /// Values of `--publish`.
    pub publish: Vec<String>,
    /// The networks.
    pub networks: Networks,
    /// The policy of workloads that name none.
    pub default_inbound_policy: String,
    /// Options of the injector, for pods that have no annotation for them.
    pub proxy_options: BTreeMap<String, String>,
    /// Seconds until the mesh says that not everything is ready.
    pub timeout: u64,
    /// Whether to use a single id even where the user has ranges.
    pub single_id: bool,
    /// Log filter of the daemon and the control plane.
    pub log: String,
}

/// What the daemon is told; the descriptors that come along are the control socket, the lock, and a listener for each publication.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    pub(crate) name: String,
    pub(crate) documents: Vec<Document>,
    pub(crate) skip_kinds: Vec<String>,
    pub(crate) programs: Programs,
    pub(crate) publications: Vec<Publication>,
    pub(crate) networks: Networks,
    pub(crate) default_inbound_policy: String,
    pub(crate) proxy_options: BTreeMap<String, String>,
    pub(crate) timeout: u64,
    pub(crate) log: String,
}

/// What the daemon says when it serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// How the mesh is doing.
    pub status: Status,
    /// What is not ready although the time is over.
    pub problem: Option<Problem>,
}

/// A daemon that was started, and its directory.
#[derive(Debug)]
pub struct Started {
    /// The daemon.
    pub daemon: DaemonProcess,
    /// The mesh's directory.
    pub dir: RuntimeDir,
    /// What works differently than written.
    pub warnings: Vec<Problem>,
}

/// The name under which the daemon's main function is known to the stages.
pub const DAEMON: &str = "mesh";

/// Checks everything, takes the ports, and starts the daemon. Nothing is left behind when it fails.
pub fn launch(options: LaunchOptions) -> Result<Started, Problems> {
    let mut programs =
        Programs::parse(&options.run, &std::env::var("PATH").unwrap_or_else(|_| USUAL_PATH.to_owned()))?;
    for (image, program) in [(PROXY_IMAGE, "ringmail-proxy"), (CONTROLLER_IMAGE, "ringmail-controller")] {
        programs.add(image, vec![beside(program)?]);
    }
    let store = Store::new(jiff::Timestamp::now());
    let checked = check(&store, &options.documents, &programs, &options.skip_kinds)?;
    refuse_control_plane(checked.objects.iter().map(Object::key))?;
    let publications = publications(&options.publish, &checked.objects)?;

    let dir = RuntimeDir::of(&options.name)?;
    let held = dir.take()?;
    let result = start(&dir, held.into(), options, programs, publications);
    match result {
        Ok(daemon) => Ok(Started { daemon, dir, warnings: checked.warnings }),
        Err(problems) => {
            dir.clean();
            Err(problems)
        }
    }
}

fn start(
    dir: &RuntimeDir,
    held: OwnedFd,
    options: LaunchOptions,
    programs: Programs,
    publications: Vec<Publication>,
) -> Result<DaemonProcess, Problems> {
    let mut listeners = Vec::new();
    let mut problems = Problems::default();
    let mut publications = publications;
    for publication in &mut publications {
        match listen(publication) {
            Ok(listener) => listeners.push(OwnedFd::from(listener)),
            Err(problem) => problems.push(problem),
        }
    }
    problems.into_result()?;
    let own = |what: &str, error: io::Error| {
        Problem::new("RM1561", dir.socket().display().to_string(), format!("{what}: {error}"), "")
    };
    // The lock is ours, so that what is here belongs to no living mesh.
    match fs::remove_file(dir.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(own("cannot be replaced", error).into());
        }
        _ => {}
    }
    let control = UnixListener::bind(dir.socket()).map_err(|error| own("cannot be made", error))?;
    fs::set_permissions(dir.socket(), fs::Permissions::from_mode(0o600))
        .map_err(|error| own("cannot be closed to others", error))?;
    let log = File::create(dir.log()).map_err(|error| own("the log beside it cannot be made", error))?;

    let environment = ["RINGMAIL_LOG", "RUST_BACKTRACE", "LANG", "LC_ALL", "TZ"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect();
    let launch = Launch {
        name: options.name,
        documents: options.documents,
        skip_kinds: options.skip_kinds,
        programs,
        publications,
        networks: options.networks,
        default_inbound_policy: options.default_inbound_policy,
        proxy_options: options.proxy_options,
        timeout: options.timeout,
        log: options.log,
    };
    let payload = serde_json::to_value(&launch).map_err(|error| {
        Problem::new("RM1565", "", format!("the daemon cannot be told what to run: {error}"), "")
    })?;
    let mut fds = vec![OwnedFd::from(control), held];
    fds.extend(listeners);
    let spec = DaemonSpec {
        entry: DAEMON.to_owned(),
        payload,
        hide: vec![RuntimeDir::base()],
        environment,
        fds,
        output: DaemonOutput::To(log.into()),
        ids: if options.single_id { IdChoice::Single } else { IdChoice::Ranges },
    };
    launch_daemon(spec).map_err(|error| sandbox_problem(&error).into())
}

/// What the machine refuses, told like everything else.
pub(crate) fn sandbox_problem(error: &SandboxError) -> Problem {
    Problem::new(error.code(), "", error.to_string(), error.cure())
}

/// The mesh's own program in the directory of this one.
fn beside(program: &str) -> Result<String, Problem> {
    let path = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(program)));
    let missing = |shown: String| {
        Problem::new(
            "RM1554",
            "",
            format!("the program `{program}` is missing{shown}"),
            "it belongs beside `ringmail`: `cargo build` makes all of them",
        )
    };
    match path {
        Some(path) if path.is_file() => Ok(path.display().to_string()),
        Some(path) => Err(missing(format!(" at {}", path.display()))),
        None => Err(missing(String::new())),
    }
}

fn listen(publication: &mut Publication) -> Result<TcpListener, Problem> {
    let address = publication.listen;
    let listener = TcpListener::bind(address).map_err(|error| {
        let (what, cure) = match error.kind() {
            io::ErrorKind::AddrInUse => {
                let owner = owner_of(address).map(|owner| format!(" by {owner}")).unwrap_or_default();
                let other = address.port().checked_add(1).unwrap_or(8080);
                let (service, namespace, port) = (&publication.service, &publication.namespace, publication.port);
                (
                    format!("{address} is taken{owner}"),
                    format!(
                        "end that program, or choose another port: `--publish {service}.{namespace}:{port}@{}`",
                        SocketAddr::new(address.ip(), other)
                    ),
                )
            }
            io::ErrorKind::PermissionDenied => (
                format!("{address} is closed to this user: {error}"),
                "choose a port above 1023".to_owned(),
            ),
            _ => (format!("{address} cannot be listened on: {error}"), "choose an address of this machine".to_owned()),
        };
        Problem::new("RM1567", publication.asked_by.clone(), what, cure)
    })?;
    if let Ok(address) = listener.local_addr() {
        publication.listen = address;
    }
    Ok(listener)
}

/// The program that listens at an address, where this user may know it.
fn owner_of(address: SocketAddr) -> Option<String> {
    let inode = listening_inode(address.port())?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let found = descriptors
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == Path::new(&wanted)));
        if found {
            let program = fs::read_link(process.path().join("exe")).unwrap_or_default();
            let program = program.file_name().map(|name| name.to_string_lossy().into_owned());
            return Some(format!("`{}` (pid {pid})", program.unwrap_or_default()));
        }
    }
    None
}

/// The inode of a listening socket on this port, from the kernel's table: columns local address, state (0A is listening), inode.
fn listening_inode(port: u16) -> Option<u64> {
    let suffix = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(PathBuf::from(table)).ok()?;
        text.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == "0A";
            if listens { fields.get(9)?.parse().ok() } else { None }
        })
    })
}

/// Where programs are when nobody says.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let owner = owner_of(address).unwrap();
        assert!(owner.contains(&format!("(pid {})", std::process::id())), "{owner}");
        let mut publication = Publication {
            name: "web".into(),
            listen: address,
            namespace: "a".into(),
            service: "web".into(),
            port: 80,
            asked_by: "--publish x".into(),
        };
        let problem = listen(&mut publication).unwrap_err();
        assert_eq!(problem.code, "RM1567");
        assert!(problem.what.contains("is taken by"), "{problem}");
        drop(listener);
        assert!(listen(&mut publication).is_ok());
    }
}
