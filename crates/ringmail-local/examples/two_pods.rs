//! Two pods without a mesh around them: a server in `b`, and a command in `a`, to try the sandbox by hand.
//!
//! ```sh
//! cargo run -p ringmail-local --example two_pods                    # `a` asks `b` for a line
//! cargo run -p ringmail-local --example two_pods -- bash -c 'id; ls -la /; cat /proc/mounts; echo $SERVER'
//! cargo run -p ringmail-local --example two_pods -- --terminal bash # with a terminal
//! ```
//!
//! `RUN_AS=33` in the environment is the command's uid; `SINGLE=1` leaves the user's id ranges unused.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use ringmail_local::sandbox::{
    ContainerIo, ContainerSpec, DaemonContext, DaemonEvent, DaemonOutput, DaemonSpec, EtcFiles, ExecIo,
    ExecSpec, IdChoice, Network, NetworkSpec, PodSandbox, launch_daemon,
};
use ringmail_local::stage;
use serde_json::json;

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 142, 0, 1));
const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 142, 0, 2));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 142, 0, 3));
/// Below 1024: an ordinary user's program may listen here too.
const PORT: u16 = 80;

type Anyhow<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    if let Some(code) = stage::run_with(&[("two-pods", daemon)]) {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("serve") => serve(),
        Some("ask") => ask(),
        _ => launch(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// In pod `b`.
fn serve() -> Anyhow<ExitCode> {
    for stream in TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?.incoming() {
        let mut stream = stream?;
        let (peer, own) = (stream.peer_addr()?.ip(), stream.local_addr()?);
        // Who only looks whether somebody listens has gone already.
        drop(writeln!(stream, "hello {peer}, this is {own}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// In pod `a`.
fn ask() -> Anyhow<ExitCode> {
    let mut line = String::new();
    TcpStream::connect((B, PORT))?.read_to_string(&mut line)?;
    print!("{line}");
    Ok(ExitCode::SUCCESS)
}

fn launch(arguments: &[String]) -> Anyhow<ExitCode> {
    let program = std::env::current_exe()?;
    let run_as: Option<u32> = std::env::var("RUN_AS").ok().map(|uid| uid.parse()).transpose()?;
    let daemon = launch_daemon(DaemonSpec {
        entry: "two-pods".to_owned(),
        payload: json!({ "program": program, "arguments": arguments, "uid": run_as }),
        hide: Vec::new(),
        environment: Vec::new(),
        fds: vec![std::io::stdin().as_fd().try_clone_to_owned()?],
        output: DaemonOutput::Inherit,
        ids: if std::env::var_os("SINGLE").is_some() { IdChoice::Single } else { IdChoice::Ranges },
    })
    .inspect_err(|error| eprintln!("hint: {}", error.cure()));
    let daemon = daemon?;
    for note in daemon.notes() {
        eprintln!("note: {note}");
    }
    loop {
        match daemon.next_event(None)? {
            Some(DaemonEvent::Progress(text)) => eprintln!("{text}"),
            Some(DaemonEvent::Failed(reason)) => eprintln!("error: {reason}"),
            Some(DaemonEvent::Exited(code)) => return Ok(ExitCode::from(u8::try_from(code)?)),
            Some(DaemonEvent::Ready(_)) | None => {}
        }
    }
}

fn daemon(context: DaemonContext) -> ExitCode {
    let reporter = context.reporter();
    let run = || -> Anyhow<ExitCode> { tokio::runtime::Runtime::new()?.block_on(inside(context)) };
    run().unwrap_or_else(|error| {
        reporter.failed(&error.to_string());
        ExitCode::FAILURE
    })
}

async fn inside(mut context: DaemonContext) -> Anyhow<ExitCode> {
    let reporter = context.reporter();
    let stdin = context.fds.remove(0);
    let program = context.payload["program"].as_str().unwrap_or_default().to_owned();
    let arguments: Vec<String> = serde_json::from_value(context.payload["arguments"].clone())?;
    let network = Network::set_up(NetworkSpec { gateways: vec![GATEWAY], addresses: Vec::new() }).await?;
    let a = PodSandbox::create(&network, &context.facts, "demo/a", &[A]).await?;
    let b = PodSandbox::create(&network, &context.facts, "demo/b", &[B]).await?;
    let server = b.start(spec(&[&program, "serve"]), streams(None)?).await?;
    reporter.progress(&format!("server is process {} with {B}", server.pid()));
    while b.dial((Ipv4Addr::LOCALHOST, PORT).into()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let exit = if arguments.first().is_some_and(|first| first == "--terminal") {
        let shell = a.start(spec(&["sleep", "infinity"]), streams(None)?).await?;
        let exec = ExecSpec { argv: arguments[1..].to_vec(), env: environment(), cwd: None };
        let process = shell.exec(exec, ExecIo::Terminal { rows: 24, columns: 80 }).await?;
        if let Some(terminal) = process.terminal() {
            copy(stdin, terminal.try_clone()?);
            copy(terminal.try_clone()?, std::io::stdout().as_fd().try_clone_to_owned()?);
        }
        process.wait().await
    } else {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let command = if arguments.is_empty() { vec![program.as_str(), "ask"] } else { arguments };
        let uid = serde_json::from_value(context.payload["uid"].clone())?;
        let spec = ContainerSpec { uid, gid: uid, ..spec(&command) };
        let container = a.start(spec, streams(Some(stdin))?).await?;
        for note in container.notes() {
            reporter.progress(&format!("note: {note}"));
        }
        container.wait().await
    };
    a.destroy().await?;
    b.destroy().await?;
    Ok(ExitCode::from(u8::try_from(exit.code)?))
}

fn spec(argv: &[&str]) -> ContainerSpec {
    let etc = EtcFiles { hosts: format!("127.0.0.1 localhost\n{A} a\n{B} b\n"), ..EtcFiles::default() };
    let hostname = "demo".to_owned();
    ContainerSpec { env: environment(), etc, hostname, ..ContainerSpec::new(argv.iter().copied()) }
}

fn environment() -> Vec<(String, String)> {
    let mut environment = ContainerSpec::new(["true"]).env;
    environment.push(("SERVER".to_owned(), format!("{B}:{PORT}")));
    environment.push(("TERM".to_owned(), "xterm".to_owned()));
    environment
}

fn streams(stdin: Option<OwnedFd>) -> Anyhow<ContainerIo> {
    Ok(ContainerIo {
        stdin,
        stdout: std::io::stdout().as_fd().try_clone_to_owned()?,
        stderr: std::io::stderr().as_fd().try_clone_to_owned()?,
    })
}

fn copy(from: OwnedFd, to: OwnedFd) {
    let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
    // Ends when either side does.
    std::thread::spawn(move || std::io::copy(&mut from, &mut to).ok());
}
