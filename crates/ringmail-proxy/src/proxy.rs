//! Puts the proxy together and takes it from start to end.
//!
//! The order: settings; the log; the process closed to others; sockets bound; admin; certification; control; then, once
//! the first certificate is there, the connections that have queued meanwhile. Two runtimes: what moves bytes has
//! threads of its own, and everything that looks on shares one other thread, so that a scrape or a tap never hurts traffic.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use ringmail_identity::certificate::hex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::accept::Limits;
use crate::admin::{self, AdminContext};
use crate::certify::{Certifier, SystemClock};
use crate::config::{self, Config};
use crate::control::{ControlClient, Service};
use crate::discovery::Discovery;
use crate::drain::{Drain, DrainTrigger, Outcome};
use crate::flows::Flows;
use crate::inbound::{self, InboundContext};
use crate::metrics::Metrics;
use crate::orig_dst::OriginalDst;
use crate::outbound::{self, OutboundContext};
use crate::policy::Policies;
use crate::serve_control::{self, ControlContext};
use crate::sources::Sources;
use crate::tap::TapHub;
use crate::tls::CredentialsRx;

mod log;
mod process;

/// Runs the proxy as this process: exit code 0 after a drain, 64 for bad settings, 1 for what the machine refused.
pub fn main() -> ExitCode {
    let config = match Config::from_env() {
        Ok(config) => Arc::new(config),
        Err(error) => {
            print_error(&error.to_string());
            return ExitCode::from(EX_USAGE);
        }
    };
    let log = match log::start(&config.log, config.log_format) {
        Ok(log) => Arc::new(log),
        Err(error) => {
            print_error(&format!("the log cannot be started: {error}"));
            return ExitCode::from(EX_USAGE);
        }
    };
    for variable in
        config::unknown_variables(std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()))
    {
        tracing::warn!(variable, "no such setting: is it misspelt?");
    }
    match start(config, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to stderr what ends a program before it has a log.
pub(crate) fn print_error(text: &str) {
    eprintln!("error: {text}");
}

/// What stops the proxy from starting.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("RM1130: {setting} cannot listen on {addr}: {source}")]
    Listen { setting: &'static str, addr: SocketAddr, source: io::Error },
    #[error(
        "RM1131: sockets cannot be marked with {mark:#x} ({source}): the proxy needs CAP_NET_ADMIN or CAP_NET_RAW, or no RINGMAIL_PROXY_SOCKET_MARK"
    )]
    Mark { mark: u32, source: io::Error },
    #[error("RM1132: {0}: {1}")]
    System(&'static str, io::Error),
}

fn start(config: Arc<Config>, log: Arc<log::Log>) -> Result<(), StartError> {
    process::close_to_others()
        .map_err(|error| StartError::System("the process cannot be closed to others", error))?;
    if let Some(mark) = config.socket_mark {
        process::try_mark(mark).map_err(|source| StartError::Mark { mark, source })?;
    }
    let listeners = Listeners::bind(&config)?;
    let system = |error| StartError::System("no runtime can be started", error);
    let data = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.data_threads())
        .thread_name("data")
        .enable_all()
        .build()
        .map_err(system)?;
    let side = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
    let outcome = side.block_on(run(config, log, listeners, &data));
    data.shutdown_timeout(LAST_MOMENT);
    outcome
}

/// Bound before anything else runs: a port that is taken ends the proxy with one message, and connections that come
/// before the first certificate wait in the queue.
struct Listeners {
    inbound: Vec<StdListener>,
    outbound: Vec<StdListener>,
    control: StdListener,
    admin: StdListener,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, StartError> {
        let one = |setting, addr| listen(addr).map_err(|source| StartError::Listen { setting, addr, source });
        let all = |setting, addrs: &[SocketAddr]| {
            addrs.iter().map(|addr| one(setting, *addr)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            admin: one("ADMIN_LISTEN_ADDR", config.admin_listen_addr)?,
            control: one("CONTROL_LISTEN_ADDR", config.control_listen_addr)?,
            inbound: all("INBOUND_LISTEN_ADDR", &config.inbound_listen_addr)?,
            outbound: all("OUTBOUND_LISTEN_ADDRS", &config.outbound_listen_addrs)?,
        })
    }
}

fn listen(addr: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn run(
    config: Arc<Config>,
    log: Arc<log::Log>,
    listeners: Listeners,
    data: &Runtime,
) -> Result<(), StartError> {
    let system = |error| StartError::System("signals cannot be heard", error);
    let mut signals = Signals {
        term: signal(SignalKind::terminate()).map_err(system)?,
        int: signal(SignalKind::interrupt()).map_err(system)?,
    };
    let register = |error| StartError::System("a listener cannot be registered", error);

    let metrics = Metrics::new();
    let flows = Flows::new(hex(&rand::rng().random::<[u8; 8]>()), metrics.clone());
    let hub = TapHub::new(metrics.clone());
    let (trigger, drain) = Drain::new();
    let (credentials_tx, credentials) = watch::channel(None);
    let control = ControlClient::new(&config, credentials.clone());
    let (certifier, status) =
        Certifier::new(&config, control.clone(), credentials_tx, metrics.clone(), Arc::new(SystemClock));

    let admin = AdminContext {
        certify: status,
        drain: drain.clone(),
        metrics: metrics.clone(),
        flows: flows.clone(),
        log,
    };
    tokio::spawn(admin::serve(TcpListener::from_std(listeners.admin).map_err(register)?, admin));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        identity = %config.identity_local_name,
        inbound = ?config.inbound_listen_addr,
        outbound = ?config.outbound_listen_addrs,
        control = %config.control_listen_addr,
        admin = %config.admin_listen_addr,
        threads = config.data_threads(),
        "the proxy starts, and asks {} for its certificate", control.channel(Service::Identity).target()
    );
    tokio::spawn(certifier.run());
    tokio::spawn(flows.clone().keep_current());
    let control_context = ControlContext {
        credentials: credentials.clone(),
        local: config.identity_local_name.clone(),
        allowed: config.tap_svc_name.clone(),
        own_ips: Arc::new(config.inbound_ips.clone()),
        handshake_timeout: config.handshake_timeout,
        flows: flows.clone(),
        hub: hub.clone(),
        metrics: metrics.clone(),
    };
    tokio::spawn(serve_control::serve(
        TcpListener::from_std(listeners.control).map_err(register)?,
        control_context,
    ));

    let parts = DataPlane { config: Arc::clone(&config), credentials, control, flows, hub, metrics, drain };
    {
        let _on_data = data.enter();
        parts.start(listeners.inbound, listeners.outbound).map_err(register)?;
    }
    signals.end(&trigger, config.shutdown_grace_period).await;
    Ok(())
}

/// What the two ways of a connection share.
struct DataPlane {
    config: Arc<Config>,
    credentials: CredentialsRx,
    control: ControlClient,
    flows: Flows,
    hub: TapHub,
    metrics: Metrics,
    drain: Drain,
}

impl DataPlane {
    /// Called inside the data runtime: what is spawned from here moves bytes, or tells those tasks what they need.
    fn start(self, inbound: Vec<StdListener>, outbound: Vec<StdListener>) -> io::Result<()> {
        let registered = |all: Vec<StdListener>| {
            all.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()
        };
        let (inbound, outbound) = (registered(inbound)?, registered(outbound)?);
        let Self { config, credentials, control, flows, hub, metrics, drain } = self;
        let destination = control.channel(Service::Destination);
        let sources = Sources::start(destination.clone());
        let discovery = Discovery::start(config.as_ref().into(), destination);
        let policies = Policies::start(config.as_ref().into(), control.channel(Service::Policy));
        let (original_dst, limits) = (OriginalDst::kernel(), Limits::of_process());
        let inbound_context = InboundContext {
            config: Arc::clone(&config),
            credentials: credentials.clone(),
            flows: flows.clone(),
            hub: hub.clone(),
            metrics: metrics.clone(),
            policies,
            sources,
            drain: drain.clone(),
            original_dst: original_dst.clone(),
            limits: limits.clone(),
        };
        let mut certified = credentials.clone();
        let outbound_context = OutboundContext {
            config,
            credentials,
            flows,
            hub,
            metrics,
            discovery,
            drain,
            original_dst,
            limits,
        };
        tokio::spawn(async move {
            // An error means that the certifier is gone, and with it this process.
            if certified.wait_for(Option::is_some).await.is_err() {
                return;
            }
            tracing::info!("accepting connections");
            for listener in inbound {
                tokio::spawn(inbound::serve(listener, inbound_context.clone()));
            }
            for listener in outbound {
                tokio::spawn(outbound::serve(listener, outbound_context.clone()));
            }
        });
        Ok(())
    }
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }

    /// Waits for a signal, then drains: until all connections ended, the grace is over, or another signal comes.
    async fn end(&mut self, trigger: &DrainTrigger, grace: Duration) {
        let name = self.next().await;
        tracing::info!(signal = name, ?grace, "draining: open connections may end");
        trigger.start();
        let outcome = {
            let mut finished = std::pin::pin!(trigger.finished(grace));
            tokio::select! {
                outcome = &mut finished => outcome,
                name = self.next() => {
                    tracing::warn!(signal = name, "told again: ending now");
                    trigger.force();
                    finished.await
                }
            }
        };
        match outcome {
            Outcome::Drained => {
                tracing::info!("drained");
            }
            Outcome::DeadlinePassed => {
                tracing::warn!(?grace, "the grace period is over: what is open is reset");
            }
            Outcome::Forced => {}
        }
        // Resets go out, and watchers of flows hear how the last of them ended.
        tokio::time::sleep(LAST_WORDS).await;
    }
}

/// `EX_USAGE` of sysexits: what Linkerd's proxy exits with for bad settings.
const EX_USAGE: u8 = 64;
/// Connections that wait for accept; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;
const LAST_WORDS: Duration = Duration::from_millis(150);
const LAST_MOMENT: Duration = Duration::from_secs(1);
