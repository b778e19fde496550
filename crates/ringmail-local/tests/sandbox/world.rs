//! A daemon for one case, with what cases need: pods, containers and their output.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use ringmail_local::sandbox::{
    Container, ContainerIo, ContainerSpec, DaemonContext, DaemonEvent, DaemonOutput, DaemonSpec, EtcFiles,
    Exit, IdChoice, MeshFacts, Network, NetworkSpec, PodSandbox, SandboxError, launch_daemon,
};
use serde_json::json;

pub(crate) type Outcome = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Runs in the daemon.
    pub(crate) inside: Option<fn(World) -> Outcome>,
    /// Runs outside of any mesh, with the mode.
    pub(crate) outside: Option<fn(&str)>,
}

/// Cases that run in a daemon.
macro_rules! inside {
    ($($name:ident),* $(,)?) => {
        vec![$(crate::world::Case {
            name: stringify!($name),
            inside: Some(|world| Box::pin($name(world))),
            outside: None,
        }),*]
    };
}
pub(crate) use inside;

/// Starts a mesh whose daemon runs a case.
pub(crate) fn launch(name: &str, mode: &str) -> ExitCode {
    let hidden = std::env::temp_dir().join(format!("ringmail-hidden-{}", std::process::id()));
    std::fs::create_dir(&hidden).unwrap();
    std::fs::write(hidden.join("control"), "secret").unwrap();
    let code = launch_hiding(name, mode, hidden.clone());
    std::fs::remove_dir_all(hidden).unwrap();
    code
}

fn launch_hiding(name: &str, mode: &str, hidden: std::path::PathBuf) -> ExitCode {
    let daemon = launch_daemon(DaemonSpec {
        entry: "case".to_owned(),
        payload: json!({ "name": name, "mode": mode, "program": std::env::current_exe().unwrap() }),
        hide: vec![hidden],
        environment: vec![("RUST_BACKTRACE".to_owned(), "0".to_owned())],
        fds: Vec::new(),
        output: DaemonOutput::Inherit,
        ids: choice(mode),
    })
    .unwrap_or_else(|error| panic!("{error} [{}]\nhint: {}", error.code(), error.cure()));
    assert!(mode != "ranges" || daemon.notes().is_empty(), "{:?}", daemon.notes());
    loop {
        match daemon.next_event(None).unwrap() {
            Some(DaemonEvent::Exited(code)) => return ExitCode::from(u8::try_from(code).unwrap()),
            Some(DaemonEvent::Failed(reason)) => eprintln!("{reason}"),
            Some(DaemonEvent::Progress(_) | DaemonEvent::Ready(_)) | None => {}
        }
    }
}

pub(crate) fn choice(mode: &str) -> IdChoice {
    if mode == "single" { IdChoice::Single } else { IdChoice::Ranges }
}

/// The daemon's main function.
pub(crate) fn daemon(context: DaemonContext) -> ExitCode {
    let name = context.payload["name"].as_str().unwrap().to_owned();
    let case = [crate::files::cases(), crate::rights::cases(), crate::network::cases(), crate::life::cases()]
        .concat()
        .into_iter()
        .find(|case| case.name == name)
        .unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new(context).await;
        case.inside.unwrap()(world).await;
    });
    ExitCode::SUCCESS
}

/// What a case has at hand. Clones are the same.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) facts: MeshFacts,
    pub(crate) network: Network,
    pub(crate) mode: String,
    /// This program, for its probes.
    pub(crate) program: String,
    next: Arc<AtomicU16>,
}

pub(crate) const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 142, 0, 1));
pub(crate) const GATEWAY_6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, 1));

impl World {
    pub(crate) async fn new(context: DaemonContext) -> Self {
        let spec = NetworkSpec { gateways: vec![GATEWAY, GATEWAY_6], addresses: Vec::new() };
        let network = Network::set_up(spec).await.unwrap();
        Self {
            facts: context.facts.clone(),
            network,
            mode: context.payload["mode"].as_str().unwrap().to_owned(),
            program: context.payload["program"].as_str().unwrap().to_owned(),
            next: Arc::new(AtomicU16::new(2)),
        }
    }

    /// Whether ids besides one exist.
    pub(crate) fn has_ids(&self) -> bool {
        self.mode != "single"
    }

    pub(crate) async fn pod(&self) -> PodSandbox {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let addresses = [
            IpAddr::V4(Ipv4Addr::new(10, 142, 0, u8::try_from(number).unwrap())),
            IpAddr::V6(Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, number)),
        ];
        let name = format!("test/pod-{number}");
        PodSandbox::create(&self.network, &self.facts, &name, &addresses).await.unwrap()
    }

    #[expect(clippy::unused_self, reason = "cases get everything from the world")]
    pub(crate) fn spec(&self, argv: &[&str]) -> ContainerSpec {
        let etc = EtcFiles {
            resolv_conf: "nameserver 10.143.0.10\n".to_owned(),
            hosts: "127.0.0.1 localhost\n".to_owned(),
            nsswitch_conf: None,
        };
        let hostname = "pod".to_owned();
        ContainerSpec { etc, hostname, ..ContainerSpec::new(argv.iter().copied()) }
    }

    pub(crate) fn sh(&self, script: &str) -> ContainerSpec {
        self.spec(&["sh", "-c", script])
    }

    pub(crate) fn probe(&self, words: &[&str]) -> ContainerSpec {
        self.spec(&[&[self.program.as_str(), "probe"], words].concat())
    }

    /// Runs a container to its end; what it wrote to both of its streams, and how it ended.
    pub(crate) async fn run(&self, pod: &PodSandbox, spec: ContainerSpec) -> (String, Exit) {
        self.try_run(pod, spec).await.unwrap()
    }

    pub(crate) async fn try_run(
        &self,
        pod: &PodSandbox,
        spec: ContainerSpec,
    ) -> Result<(String, Exit), SandboxError> {
        let (io, output) = captured();
        let container = pod.start(spec, io).await?;
        let output = read(output).await;
        Ok((output, container.wait().await))
    }

    /// Runs a container that must succeed; what it wrote, without the last newline.
    pub(crate) async fn output(&self, pod: &PodSandbox, spec: ContainerSpec) -> String {
        let what = spec.argv.join(" ");
        let (output, exit) = self.run(pod, spec).await;
        assert_eq!(exit, Exit { code: 0, signal: None }, "{what}\n{output}");
        output.trim_end().to_owned()
    }

    /// Starts a container that goes on.
    pub(crate) async fn start(&self, pod: &PodSandbox, spec: ContainerSpec) -> Container {
        let null = || OwnedFd::from(File::options().write(true).open("/dev/null").unwrap());
        pod.start(spec, ContainerIo { stdin: None, stdout: null(), stderr: null() }).await.unwrap()
    }
}

/// Streams that end in one pipe, and the pipe.
pub(crate) fn captured() -> (ContainerIo, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    let stdout = writer.try_clone().unwrap().into();
    (ContainerIo { stdin: None, stdout, stderr: writer.into() }, reader.into())
}

pub(crate) async fn read(from: OwnedFd) -> String {
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        // A terminal ends with an error.
        drop(File::from(from).read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    });
    reading.await.unwrap()
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Command lines of the processes this process sees.
pub(crate) fn processes() -> HashMap<u32, String> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            Some((pid, line.replace('\0', " ")))
        })
        .collect()
}
