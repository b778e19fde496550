//! Network namespaces for tests: as root, or for an ordinary user in a user namespace of their own.
//!
//! Needs the programs `ip` (iproute2), `nft` (nftables) and `unshare` (util-linux). Nothing of the machine's own
//! network is touched.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, SockRef, Socket, Type};

/// A network namespace that ends with this value.
pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one, with `lo` up.
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("its file")
        };
        let namespace = Self(std::thread::spawn(make).join().expect("made"));
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs the job in this namespace, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("entered");
                job()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip LINE`.
    pub(crate) fn ip(&self, line: &str) {
        self.run(|| run_program("ip", line.split_whitespace(), ""));
    }

    /// `nft LINE`, and what it printed.
    pub(crate) fn nft(&self, line: &str) -> String {
        self.run(|| run_program("nft", line.split_whitespace(), ""))
    }

    /// `nft -f -` with this script.
    pub(crate) fn nft_script(&self, script: &str) {
        self.run(|| run_program("nft", ["-f", "-"].into_iter(), script));
    }

    /// Joins both by a pair of interfaces called `name` here and `eth0` there.
    pub(crate) fn link(&self, name: &str, other: &Self) {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.ip(&format!("link add {name} type veth peer name eth0 netns {there}"));
        self.ip(&format!("link set {name} up"));
        other.ip("link set eth0 up");
    }

    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().expect("an address");
        self.run(|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
            if address.is_ipv6() {
                socket.set_only_v6(true).expect("IPv6 only");
            }
            socket.set_reuse_address(true).expect("reuse");
            socket.bind(&address.into()).unwrap_or_else(|error| panic!("{address}: {error}"));
            socket.listen(1024).expect("listening");
            socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
            socket.into()
        })
    }

    /// Takes both families.
    pub(crate) fn listen_dual(&self, port: u16) -> TcpListener {
        self.run(|| {
            let listener = TcpListener::bind(("::", port)).expect("bound");
            SockRef::from(&listener).set_read_timeout(Some(DEADLINE)).expect("a deadline");
            listener
        })
    }

    pub(crate) fn connect(&self, target: &str) -> io::Result<TcpStream> {
        self.connect_with(target, |_| {})
    }

    /// Connects with a socket that was changed first.
    pub(crate) fn connect_with(
        &self,
        target: &str,
        change: impl FnOnce(&Socket) + Send,
    ) -> io::Result<TcpStream> {
        let target: SocketAddr = target.parse().expect("an address");
        self.run(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            change(&socket);
            socket.connect_timeout(&target.into(), DEADLINE)?;
            Ok(socket.into())
        })
    }
}

/// A pod `10.1.0.2`, `fd00:1::2` and what is outside of it, `10.1.0.1`, `fd00:1::1`, its gateway.
pub(crate) struct Pod {
    pub(crate) inside: Namespace,
    pub(crate) outside: Namespace,
}

impl Pod {
    pub(crate) fn new() -> Self {
        let pod = Self::without_routes();
        pod.inside.ip("route add default via 10.1.0.1");
        pod.inside.ip("-6 route add default via fd00:1::1");
        pod
    }

    pub(crate) fn without_routes() -> Self {
        let (inside, outside) = (Namespace::new(), Namespace::new());
        outside.link("pod", &inside);
        for (namespace, interface, host) in [(&inside, "eth0", 2), (&outside, "pod", 1)] {
            namespace.ip(&format!("addr add 10.1.0.{host}/24 dev {interface}"));
            namespace.ip(&format!("addr add fd00:1::{host}/64 dev {interface} nodad"));
        }
        Self { inside, outside }
    }
}

/// The next connection of a listener.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().unwrap_or_else(|error| panic!("nothing came to {listener:?}: {error}")).0
}

/// Whether a connection waits at a listener right now.
pub(crate) fn is_idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).expect("set");
    let idle = matches!(listener.accept(), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    listener.set_nonblocking(false).expect("set");
    idle
}

/// Whom a redirected connection was meant for.
pub(crate) fn original_destination(stream: &TcpStream) -> String {
    let socket = SockRef::from(stream);
    let address = match stream.local_addr().expect("an address").ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    address.ok().and_then(|address| address.as_socket()).map_or_else(|| "none".to_owned(), |a| a.to_string())
}

/// Bytes go both ways.
pub(crate) fn echo(one: &mut TcpStream, other: &mut TcpStream) {
    for (from, to) in [(&*one, &*other), (&*other, &*one)] {
        let (mut from, mut to) = (from, to);
        to.set_read_timeout(Some(DEADLINE)).expect("set");
        from.write_all(b"ring").expect("written");
        let mut bytes = [0; 4];
        to.read_exact(&mut bytes).expect("read");
        assert_eq!(&bytes, b"ring");
    }
}

/// Runs the test's body where it may make namespaces: here, or in a user namespace made for it.
pub(crate) fn with_namespaces(name: &str, body: impl FnOnce()) {
    let allowed = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok()).join().expect("tried");
    if allowed {
        body();
    } else {
        assert!(std::env::var_os(INSIDE).is_none(), "a user namespace that may not make network namespaces");
        rerun(&std::env::current_exe().expect("this program"), &[name], false);
    }
}

/// Runs tests of this program once more, as an ordinary user in a user namespace.
pub(crate) fn as_an_ordinary_user(names: &[&str]) {
    if !nix::unistd::geteuid().is_root() {
        return rerun(&std::env::current_exe().expect("this program"), names, false);
    }
    // The build directory may be closed to other users.
    let copy = Copy::of_this_program();
    rerun(&copy.0, names, true);
}

fn rerun(program: &Path, names: &[&str], drop_root: bool) {
    let mut command = program_command("unshare");
    command.args(["--user", "--map-user=2102", "--map-group=2102", "--keep-caps", "--net", "--"]);
    command.arg(program).args(["--test-threads=2"]).args(names);
    command.env(INSIDE, "1").current_dir("/");
    if drop_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let all = format!("{} passed; 0 failed; 0 ignored", names.len());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains(&all), "{text}\n{errors}");
}

static COPIES: AtomicU32 = AtomicU32::new(0);

struct Copy(PathBuf);

impl Copy {
    fn of_this_program() -> Self {
        let program = std::env::current_exe().expect("this program");
        let number = COPIES.fetch_add(1, Ordering::Relaxed);
        let copy = std::env::temp_dir().join(format!("ringmail-redirect-{}-{number}", std::process::id()));
        // Another program writes it: a file that this one has open may be inherited by a child that some other thread
        // is just starting, and then cannot be executed.
        let paths = [program, copy.clone()].map(|path| path.into_os_string().into_string().expect("a path"));
        run_program("cp", ["--", &paths[0], &paths[1]].into_iter(), "");
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("set");
        Self(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _already_gone = std::fs::remove_file(&self.0);
    }
}

fn run_program<'a>(name: &str, arguments: impl Iterator<Item = &'a str>, input: &str) -> String {
    let mut command = program_command(name);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("the program `{name}` is needed: {error}"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn program_command(name: &str) -> Command {
    let mut command = Command::new(name);
    // An ordinary user's path may leave out where `ip` and `nft` are.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command
}

const INSIDE: &str = "RINGMAIL_TEST_IN_USER_NAMESPACE";
const NOBODY: u32 = 65534;
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
