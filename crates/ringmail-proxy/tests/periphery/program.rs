//! The program as it runs: exit codes, what it says when something is wrong, ready and drained.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::support::{FakeIdentity, Mesh};

const PATIENCE: Duration = Duration::from_secs(30);

struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    admin: SocketAddr,
    token: PathBuf,
}

impl Program {
    fn start(mesh: &Mesh, more: &[(&str, &str)]) -> Self {
        let token = std::env::temp_dir().join(format!("ringmail-program-{}", rand::random::<u64>()));
        std::fs::write(&token, "good").expect("writes");
        let admin = free();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringmail-proxy"));
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let name = mesh.id("web", "ballot").to_string();
        for (name, value) in [
            ("INBOUND_LISTEN_ADDR", "127.0.0.1:0"),
            ("OUTBOUND_LISTEN_ADDRS", "127.0.0.1:0"),
            ("CONTROL_LISTEN_ADDR", "127.0.0.1:0"),
            ("ADMIN_LISTEN_ADDR", &admin.to_string()),
            ("IDENTITY_SVC_ADDR", "127.0.0.1:1"),
            ("DESTINATION_SVC_ADDR", "127.0.0.1:1"),
            ("POLICY_SVC_ADDR", "127.0.0.1:1"),
            ("POLICY_WORKLOAD", "{}"),
            ("IDENTITY_TOKEN_FILE", &token.to_string_lossy()),
            ("IDENTITY_TRUST_ANCHORS", &mesh.anchors_pem),
            ("IDENTITY_LOCAL_NAME", &name),
        ] {
            command.env(format!("RINGMAIL_PROXY_{name}"), value);
        }
        for (name, value) in more {
            command.env(format!("RINGMAIL_PROXY_{name}"), value);
        }
        let mut child = command.spawn().expect("starts");
        let mut stderr = child.stderr.take().expect("piped");
        let log = Arc::<Mutex<String>>::default();
        let kept = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut part) {
                kept.lock().push_str(&String::from_utf8_lossy(&part[..read]));
            }
        });
        Self { child, log, reader: Some(reader), admin, token }
    }

    fn log(&self) -> String {
        self.log.lock().clone()
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "in vain: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        self.until("its end", |this| {
            status = this.child.try_wait().expect("waits");
            status.is_some()
        });
        self.reader.take().expect("reads").join().expect("reads");
        status.expect("ended")
    }

    /// The status line and the body of a GET.
    fn get(&self, path: &str) -> Option<(String, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        std::io::Write::write_all(
            &mut stream,
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
        )
        .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.lines().next()?.to_owned(), body.to_owned()))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("lives");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.token);
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("has one")
}

#[test]
fn bad_settings_are_all_named_and_end_with_64() {
    let mesh = Mesh::new();
    let mut program = Program::start(&mesh, &[("CORES", "none"), ("LOG", "a=b=c"), ("SOCKET_MARK", "x")]);
    assert_eq!(program.ends().code(), Some(64));
    for name in ["RINGMAIL_PROXY_CORES", "RINGMAIL_PROXY_LOG", "RINGMAIL_PROXY_SOCKET_MARK", "RM1100"] {
        assert!(program.log().contains(name), "{name}: {}", program.log());
    }
}

#[test]
fn a_port_that_is_taken_is_named_and_ends_with_1() {
    let mesh = Mesh::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let addr = taken.local_addr().expect("has one").to_string();
    let mut program = Program::start(&mesh, &[("INBOUND_LISTEN_ADDR", &addr)]);
    assert_eq!(program.ends().code(), Some(1));
    let log = program.log();
    assert!(log.contains("RM1130") && log.contains("INBOUND_LISTEN_ADDR") && log.contains(&addr), "{log}");
}

#[test]
fn without_a_control_plane_it_says_whom_it_tried_why_it_failed_and_that_it_retries() {
    let mesh = Mesh::new();
    let gone = free().to_string();
    let mut program = Program::start(&mesh, &[("IDENTITY_SVC_ADDR", &gone), ("LOGG", "x")]);
    let failure =
        format!("RM1102: the identity service at {gone}: no connection to {gone}: Connection refused");
    program.until("two attempts", |this| this.log().matches(&failure).count() >= 2);
    assert!(program.log().contains("retry_in="), "{}", program.log());
    assert!(program.log().contains("RINGMAIL_PROXY_LOGG"), "the misspelt one: {}", program.log());
    assert_eq!(program.get("/live").expect("answers").0, "HTTP/1.1 200 OK");
    let (status, body) = program.get("/ready").expect("answers");
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains(&failure), "{body}");
    let (_, metrics) = program.get("/metrics").expect("answers");
    assert!(
        !metrics.contains("control_identity_cert_refreshes_total{result=\"error\"} 0"),
        "failed calls count"
    );
    program.signal(Signal::SIGTERM);
    assert_eq!(program.ends().code(), Some(0), "{}", program.log());
}

#[test]
fn with_one_it_becomes_ready_and_drains_on_sigterm() {
    let mesh = Mesh::new();
    let runtime = tokio::runtime::Runtime::new().expect("starts");
    let identity = runtime.block_on(FakeIdentity::start(&mesh, None));
    let inbound = free();
    let more = [
        ("IDENTITY_SVC_ADDR", &*identity.addr.to_string()),
        ("INBOUND_LISTEN_ADDR", &inbound.to_string()),
        ("LOG_FORMAT", "json"),
    ];
    let mut program = Program::start(&mesh, &more);
    program.until("ready", |this| this.get("/ready").is_some_and(|(status, _)| status == "HTTP/1.1 200 OK"));
    // The log may come a moment after the fact it tells.
    program.until("its log", |this| {
        this.log().contains("\"message\":\"certified\"") && this.log().contains("accepting connections")
    });
    assert!(TcpStream::connect(inbound).is_ok());

    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.child.id())).expect("reads");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("is there");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "no core file");

    program.signal(Signal::SIGINT);
    assert_eq!(program.ends().code(), Some(0), "{}", program.log());
    assert!(program.log().contains("\"message\":\"drained\""), "{}", program.log());
}
