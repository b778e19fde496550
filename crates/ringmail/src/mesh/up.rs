//! `ringmail up`.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use ringmail_local::addresses::{IpFamily, Networks};
use ringmail_local::client::Mesh;
use ringmail_local::launch::{LaunchOptions, Ready, Started, launch};
use ringmail_local::manifest;
use ringmail_local::protocol::Severity;
use ringmail_local::sandbox::{DaemonEvent, DaemonProcess};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{refused, warn};
use crate::Which;
use crate::say::say;

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Manifests: a file, a directory, or `-` for standard input
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    files: Vec<String>,
    /// The mesh's name; several meshes of different names run side by side
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Return when the mesh is up, and let it run
    #[arg(short, long)]
    detach: bool,
    /// The program that stands for an image: `--run nginx=/usr/sbin/nginx` or `--run 'nginx=nginx -g "daemon off;"'`
    #[arg(long, value_name = "IMAGE=PROGRAM [ARG…]")]
    run: Vec<String>,
    /// Make a service reachable from this machine: `web.ballot:80@127.0.0.1:8080` or `8080:svc/ballot/web:80`
    #[arg(long, value_name = "SERVICE.NS:PORT@ADDRESS")]
    publish: Vec<String>,
    /// Leave documents of this kind out
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    skip_kind: Vec<String>,
    /// Network of the pods [default: 10.142.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Option<String>,
    /// Network of the services [default: 10.143.0.0/16]
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<String>,
    /// Address families of pods and services
    #[arg(long, value_enum, default_value = "ipv4")]
    ip_family: Family,
    /// Who may call pods that do not say so themselves
    #[arg(long, value_name = "POLICY", default_value = "all-unauthenticated")]
    default_inbound_policy: String,
    /// An option of the proxy for pods without an annotation for it, such as `proxy-log-level=debug`
    #[arg(long, value_name = "NAME=VALUE")]
    proxy_option: Vec<String>,
    /// Seconds until it is an error that not everything is ready
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Use one uid for everything even where the user has ranges in /etc/subuid
    #[arg(long)]
    single_id: bool,
    /// Log filter of the daemon and the control plane
    #[arg(long, env = "RINGMAIL_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Family {
    Ipv4,
    Ipv6,
    Dual,
}

pub(super) async fn run(args: UpArgs, which: &Which) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let detach = args.detach;
    let options = match options(args, which) {
        Ok(options) => options,
        Err(problems) => return Ok(refused(&problems)),
    };
    let name = options.name.clone();
    // Signals from here on end the mesh in order.
    let mut stop = Stop::new()?;
    let Started { daemon, dir, warnings } = match launch(options) {
        Ok(started) => started,
        Err(problems) => return Ok(refused(&problems)),
    };
    warn(&warnings);
    for note in daemon.notes() {
        eprintln!("note: {note}");
    }
    step(began, "namespaces made");
    let mut daemon = Daemon::new(daemon);
    let mesh = Mesh::in_dir(dir.clone());
    let warnings = tokio::spawn(tell_warnings(mesh.clone(), began));

    let mut code = ExitCode::SUCCESS;
    let mut asked = 0;
    loop {
        let event = tokio::select! {
            event = daemon.next() => event,
            () = stop.wait() => {
                asked += 1;
                if asked == 1 {
                    eprintln!();
                    step(began, "ending the mesh; once more ends it at once");
                    daemon.process.terminate();
                } else {
                    daemon.process.kill();
                }
                continue;
            }
        };
        match event {
            DaemonEvent::Progress(text) => step(began, &text),
            DaemonEvent::Ready(value) => {
                let ready: Ready = serde_json::from_value(value).context("the daemon's report")?;
                report(&name, &ready, began);
                if ready.problem.is_some() {
                    code = ExitCode::from(1);
                }
                if detach {
                    warnings.abort();
                    daemon.detach()?;
                    say!("`ringmail --mesh {name} down` ends it");
                    return Ok(code);
                }
            }
            DaemonEvent::Failed(reason) => {
                eprintln!("error: {reason}");
                code = ExitCode::from(1);
            }
            DaemonEvent::Exited(status) => {
                warnings.abort();
                daemon.close();
                let log = std::fs::read_to_string(dir.log()).unwrap_or_default();
                dir.clean();
                if asked > 0 {
                    step(began, "mesh ended, nothing is left");
                    return Ok(ExitCode::SUCCESS);
                }
                if status == 0 {
                    say!("mesh {name} is down");
                    return Ok(code);
                }
                let lines: Vec<&str> = log.lines().collect();
                for line in lines.iter().skip(lines.len().saturating_sub(10)) {
                    eprintln!("  {line}");
                }
                return Err(anyhow!(
                    "RM1565: the daemon of mesh {name} ended with {status}; the mesh ended with it\n  hint: the lines above \
                     are the last ones of its log"
                ));
            }
        }
    }
}

fn options(args: UpArgs, which: &Which) -> Result<LaunchOptions, ringmail_local::problem::Problems> {
    let family = match args.ip_family {
        Family::Ipv4 => IpFamily::Ipv4,
        Family::Ipv6 => IpFamily::Ipv6,
        Family::Dual => IpFamily::Dual,
    };
    let networks = Networks::parse(family, args.pod_cidr.as_deref(), args.service_cidr.as_deref())?;
    let mut proxy_options = BTreeMap::new();
    for option in &args.proxy_option {
        let (name, value) = option.split_once('=').ok_or_else(|| {
            ringmail_local::problem::Problem::new(
                "RM1555",
                format!("--proxy-option {option}"),
                "there is no `=`",
                "write `--proxy-option proxy-log-level=debug`",
            )
        })?;
        proxy_options.insert(name.to_owned(), value.to_owned());
    }
    let documents = manifest::read(&args.files)?;
    Ok(LaunchOptions {
        name: args
            .name
            .or_else(|| which.mesh.clone().filter(|name| !name.is_empty()))
            .unwrap_or_else(|| DEFAULT_NAME.to_owned()),
        documents,
        skip_kinds: args.skip_kind,
        run: args.run,
        publish: args.publish,
        networks,
        default_inbound_policy: args.default_inbound_policy,
        proxy_options,
        timeout: args.timeout,
        single_id: args.single_id,
        log: args.log,
    })
}

fn step(began: Instant, text: &str) {
    say!("{:6.1} s  {text}", began.elapsed().as_secs_f64());
}

fn report(name: &str, ready: &Ready, began: Instant) {
    let status = &ready.status;
    let how = if status.rootless { "rootless" } else { "as root" };
    if let Some(problem) = &ready.problem {
        eprintln!("error: {problem}");
    }
    let state = if ready.problem.is_some() {
        format!("runs, but {} of {} pods are ready", status.ready, status.pods)
    } else {
        format!("is up: {} pods", status.pods)
    };
    say!("mesh {name} {state}, {how}, {:.1} s", began.elapsed().as_secs_f64());
    let width = status.published.iter().map(|p| p.name.len()).max().unwrap_or(0).max(8);
    for published in &status.published {
        say!("  {:width$} {}", published.name, published.address);
    }
}

/// Warnings as they come, from the daemon's control socket.
async fn tell_warnings(mesh: Mesh, began: Instant) {
    let mut seen = 0;
    let mut told_before = HashSet::new();
    loop {
        let mut index = 0;
        let told = mesh
            .events(true, |event| {
                index += 1;
                if index > seen {
                    seen = index;
                    // What is tried again fails again in the same words.
                    let news = told_before.insert((event.about.clone(), event.message.clone()));
                    if event.severity == Severity::Warning && event.reason != "NotReady" && news {
                        step(
                            began,
                            &format!("warning: {}: {} ({})", event.about, event.message, event.reason),
                        );
                    }
                }
                true
            })
            .await;
        // It does not listen yet, or not any more.
        drop(told);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The daemon's events as they come, read by a thread of their own.
struct Daemon {
    process: Arc<DaemonProcess>,
    events: mpsc::Receiver<DaemonEvent>,
    quit: Arc<AtomicBool>,
    reader: JoinHandle<()>,
}

impl Daemon {
    fn new(process: DaemonProcess) -> Self {
        let process = Arc::new(process);
        let quit = Arc::new(AtomicBool::new(false));
        let (sender, events) = mpsc::channel(16);
        let reader = std::thread::spawn({
            let (process, quit) = (process.clone(), quit.clone());
            move || {
                while !quit.load(Ordering::Relaxed) {
                    let event = match process.next_event(Some(Duration::from_millis(100))) {
                        Ok(None) => continue,
                        Ok(Some(event)) => event,
                        Err(error) => DaemonEvent::Failed(error.to_string()),
                    };
                    let last = matches!(event, DaemonEvent::Exited(_) | DaemonEvent::Failed(_));
                    if sender.blocking_send(event).is_err() {
                        return;
                    }
                    if last && process.next_event(Some(Duration::ZERO)).is_err() {
                        return;
                    }
                }
            }
        });
        Self { process, events, quit, reader }
    }

    async fn next(&mut self) -> DaemonEvent {
        // The reader ends after the daemon only.
        self.events.recv().await.unwrap_or(DaemonEvent::Exited(137))
    }

    /// Waits until every process of the mesh has ended.
    fn close(self) {
        self.quit.store(true, Ordering::Relaxed);
        drop(self.events);
        // A reader that panicked has no process left either.
        let _ = self.reader.join();
    }

    /// Lets the daemon live without this process.
    fn detach(self) -> anyhow::Result<()> {
        self.quit.store(true, Ordering::Relaxed);
        drop(self.events);
        self.reader.join().map_err(|_| anyhow!("the reader of the daemon's events panicked"))?;
        let process = Arc::into_inner(self.process).ok_or_else(|| anyhow!("the daemon is still watched"))?;
        Ok(process.detach()?)
    }
}

/// The signals that end a program in order.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

const DEFAULT_NAME: &str = "local";
