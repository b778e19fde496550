//! Runs the built programs as a user would, in a mesh of the test's own.
//!
//! A [`Mesh`] is `ringmail up` in the foreground, as root or as an ordinary user; it ends with the value.

pub mod pods;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// As whom a mesh runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    Root,
    /// A user without privileges: uid 64321, no password entry, no subordinate ids.
    Ordinary,
}

/// A mesh of this test's own.
pub struct Mesh {
    pub name: String,
    pub user: User,
    child: Child,
    folder: PathBuf,
}

/// How long anything may take before a test calls it a hang.
pub const DEADLINE: Duration = Duration::from_secs(90);

impl Mesh {
    /// Starts a mesh with these manifests and waits until it says that it is up.
    pub fn up(user: User, manifests: &str, arguments: &[&str]) -> Self {
        Self::start(user, manifests, arguments)
            .unwrap_or_else(|output| panic!("the mesh did not come up:\n{output}"))
    }

    /// The same, giving what was printed where it does not come up.
    pub fn start(user: User, manifests: &str, arguments: &[&str]) -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = programs().join(&name);
        fs::create_dir_all(&folder).expect("a folder for the mesh's manifests");
        open_to_all(&folder);
        let file = folder.join("mesh.yaml");
        fs::write(&file, manifests).expect("the manifests are written");
        let output = fs::File::create(folder.join("output")).expect("a file for the output");
        let mut command = ringmail_as(user);
        command.arg("up").arg("-f").arg(&file).args(["--name", &name]).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the output file again"))
            .stderr(output);
        let child = command.spawn().expect("ringmail starts");
        let mut mesh = Self { name, user, child, folder };
        let deadline = Instant::now() + DEADLINE;
        loop {
            let printed = mesh.output();
            if printed.contains(" is up: ") {
                return Ok(mesh);
            }
            if mesh.child.try_wait().expect("its state").is_some() {
                return Err(mesh.output());
            }
            if Instant::now() > deadline {
                let status = mesh.ringmail(&["ps"]);
                return Err(format!("{printed}\n(gave up waiting)\n{}", text(&status)));
            }
            pause();
        }
    }

    /// What `ringmail up` has printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(self.folder.join("output")).unwrap_or_default()
    }

    /// The process of `ringmail up`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A process in the mesh's own network namespace, through which all traffic between pods is routed.
    pub fn router(&self) -> u32 {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let host = namespace(std::process::id());
        let inside = |pid: &u32| namespace(*pid).is_some_and(|net| Some(net) != host);
        processes_below(self.pid()).into_iter().find(inside).expect("a process in the mesh's network")
    }

    /// Runs `ringmail` against this mesh.
    pub fn ringmail(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("ringmail runs")
    }

    /// `ringmail` against this mesh, to be started by the caller.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = ringmail_as(self.user);
        command.env("RINGMAIL_MESH", &self.name).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `ringmail` against this mesh and demands that it succeeds; gives its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.ringmail(arguments);
        assert!(output.status.success(), "ringmail {arguments:?} failed:\n{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a shell line in a pod.
    pub fn sh(&self, namespace: &str, pod: &str, line: &str) -> Output {
        self.ringmail(&["exec", "-n", namespace, pod, "--", "/bin/sh", "-c", line])
    }

    /// Runs a shell line in a pod until it succeeds and prints what is expected.
    pub fn sh_until(&self, namespace: &str, pod: &str, line: &str, expected: &str) -> String {
        let mut last = String::new();
        eventually(&format!("`{line}` in {pod} prints `{expected}`"), || {
            let output = self.sh(namespace, pod, line);
            last = text(&output);
            if output.status.success() && last.contains(expected) {
                Ok(last.clone())
            } else {
                Err(last.clone())
            }
        })
    }

    /// Waits until the edge between two deployments is secured (`""`) or shows this reason.
    pub fn edge_becomes(&self, namespace: &str, src: &str, dst: &str, reason: &str) -> serde_json::Value {
        eventually(&format!("the edge {src} → {dst} shows `{reason}`"), || {
            // viz itself may be on its way back.
            let output = self.ringmail(&["viz", "edges", "deploy", "-n", namespace, "-o", "json"]);
            let edges: Vec<serde_json::Value> =
                serde_json::from_slice(&output.stdout).map_err(|_| text(&output))?;
            let found = edges.iter().find(|edge| edge["src"] == src && edge["dst"] == dst);
            match found {
                Some(edge) if edge["reason"] == reason && (edge["secured"] == reason.is_empty()) => {
                    Ok(edge.clone())
                }
                _ => Err(format!("{edges:#?}")),
            }
        })
    }

    /// The first pod of a deployment.
    pub fn pod(&self, namespace: &str, deployment: &str) -> String {
        let pods: serde_json::Value =
            serde_json::from_str(&self.ok(&["ps", "-o", "json"])).expect("ps prints JSON");
        pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|pod| {
                Some((pod["metadata"]["namespace"].as_str()?, pod["metadata"]["name"].as_str()?))
            })
            .find(|(ns, name)| *ns == namespace && name.starts_with(&format!("{deployment}-")))
            .map_or_else(
                || panic!("no pod of {namespace}/{deployment} in {pods:#}"),
                |(_, name)| name.to_owned(),
            )
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the mesh printed ---\n{}", self.output());
            eprintln!("--- ps ---\n{}", text(&self.ringmail(&["ps"])));
        }
        signal(self.child.id(), "INT");
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            pause();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Sends a signal to a process that this test started.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status();
}

/// Tries until it succeeds or the deadline has passed; the last failure is the message.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => panic!("never happened: {what}; last seen:\n{last}"),
            Err(_) => pause(),
        }
    }
}

/// Both streams of a finished program, and how it ended.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}[{}]",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status
    )
}

/// A process and all its descendants.
pub fn processes_below(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

/// The children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// A number that no other run has, for bodies that are looked for on the wire.
pub fn nonce() -> String {
    let mut bytes = [0_u8; 12];
    let mut random = fs::File::open("/dev/urandom").expect("randomness");
    std::io::Read::read_exact(&mut random, &mut bytes).expect("randomness");
    bytes.iter().fold("nonce".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// The folder of the programs, where every user can reach them: a checkout may be private to its owner.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_ringmail")).parent().expect("a folder").to_owned();
        remove_folders_of_runs_that_ended();
        let folder = PathBuf::from(format!("/var/tmp/ringmail-test-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the programs");
        open_to_all(&folder);
        for program in
            ["ringmail", "ringmail-proxy", "ringmail-controller", "web", "emoji", "voting", "vote-bot"]
        {
            let target = folder.join(program);
            let partial = folder.join(format!("{program}.partial"));
            fs::copy(built.join(program), &partial).unwrap_or_else(|error| {
                panic!("{program} is not built beside ringmail ({error}): run `cargo xtask test`")
            });
            open_to_all(&partial);
            fs::rename(partial, target).expect("the program is in place");
        }
        folder
    })
}

/// Nothing runs after the last test, so each run removes what others left; the programs are large.
fn remove_folders_of_runs_that_ended() {
    for entry in fs::read_dir("/var/tmp").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let run = name.to_str().and_then(|name| name.strip_prefix("ringmail-test-"));
        if run.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the mode is set");
}

/// `ringmail` as a user, against no mesh in particular.
pub fn ringmail_as(user: User) -> Command {
    let program = programs().join("ringmail");
    let me_is_root = fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let mut command = match (user, me_is_root) {
        (User::Root, false) => panic!("this test runs a mesh as root: run `cargo xtask test` as root"),
        (User::Root, true) | (User::Ordinary, false) => Command::new(program),
        (User::Ordinary, true) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=64321", "--regid=64321", "--clear-groups", "--"]).arg(program);
            command
        }
    };
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/");
    command
}

/// Writes to standard error at once, so that a hanging test says where it hangs.
pub fn progress(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}
