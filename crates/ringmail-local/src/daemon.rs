//! The daemon: the one process that makes a mesh, inside of the mesh's own namespaces.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::sysconf;
use ringmail_identity::TrustDomain;
use ringmail_identity::root::{Lifetimes, make_root_and_issuer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::control_plane::{ControlPlane, NAMESPACE, VERSION};
use crate::dns;
use crate::engine::{Engine, EngineParts, KernelRouter};
use crate::env::Node;
use crate::launch::{Launch, Ready, sandbox_problem};
use crate::machine::RealMachine;
use crate::meshing::Meshing;
use crate::pod::PodContext;
use crate::problem::Problem;
use crate::programs::Programs;
use crate::protocol::{Published, Severity, Status};
use crate::publishing;
use crate::registry_dir::RegistryDir;
use crate::sandbox::{DaemonContext, Network, NetworkSpec, Reporter};
use crate::server::{self, Served};
use crate::tokens::Tokens;
use crate::volumes::VolumeContext;

/// The daemon's main function; its return ends the mesh.
pub fn main(context: DaemonContext) -> ExitCode {
    let reporter = context.reporter();
    let failed = |message: &str| {
        eprintln!("error: {message}");
        reporter.failed(message);
        ExitCode::from(1)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("RM1565: the daemon's runtime cannot be made: {error}")),
    };
    match runtime.block_on(run(context)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => failed(&problem.to_string()),
    }
}

async fn run(context: DaemonContext) -> Result<(), Problem> {
    let began = Instant::now();
    let reporter = context.reporter();
    let broken = |what: String| Problem::new("RM1565", "", what, "");
    let launch: Launch = serde_json::from_value(context.payload.clone())
        .map_err(|error| broken(format!("the daemon's instructions cannot be read: {error}")))?;
    let filter = EnvFilter::try_new(&launch.log).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();

    let facts = context.facts.clone();
    let mut fds = context.fds.into_iter();
    let (Some(control), Some(lock)) = (fds.next(), fds.next()) else {
        return Err(broken("the daemon got no control socket".to_owned()));
    };
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| broken(format!("signals cannot be heard: {error}")))?;

    let networks = launch.networks.clone();
    let network = Network::set_up(NetworkSpec { gateways: networks.gateways(), addresses: networks.dns() })
        .await
        .map_err(|error| sandbox_problem(&error))?;
    let shown =
        |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    reporter.progress(&format!(
        "network: pods {}, services {}",
        shown(&networks.pods),
        shown(&networks.services)
    ));

    let domain = TrustDomain::new(TRUST_DOMAIN, NAMESPACE).map_err(|error| broken(error.to_string()))?;
    let root = make_root_and_issuer(&domain, SystemTime::now(), Lifetimes::default())
        .map_err(|error| broken(format!("no certificate authority could be made: {error}")))?;
    let tokens = Tokens::new(TRUST_DOMAIN).map_err(|error| broken(error.to_string()))?;
    let registry_path = facts.state_dir.join("registry");
    let registry = RegistryDir::create(&registry_path)
        .map_err(|error| broken(format!("the objects' directory cannot be made: {error}")))?;
    let meshing = Meshing::new(&domain, &root.root_cert_pem, &networks, launch.proxy_options.clone())
        .map_err(|error| broken(error.to_string()))?;
    let plane = ControlPlane {
        trust_domain: TRUST_DOMAIN,
        networks: &networks,
        anchors: &root.root_cert_pem,
        issuer_certificate: &root.issuer_cert_pem,
        issuer_key: &root.issuer_key_pem,
        jwks: &tokens.jwks(),
        registry: &registry_path,
        default_inbound_policy: &launch.default_inbound_policy,
        log: &launch.log,
    }
    .documents();
    drop(root);

    let rootless = facts.is_rootless();
    let engine = Engine::start(EngineParts {
        context: PodContext {
            machine: Arc::new(RealMachine::new(network, facts.clone())),
            volumes: VolumeContext {
                state: facts.state_dir.clone(),
                hidden: facts.hide.clone(),
                registry: registry_path,
                tokens,
                node: node(&networks),
                ids: facts.ids.clone(),
            },
            dns: networks.dns(),
            domain: TRUST_DOMAIN.to_owned(),
        },
        networks: networks.clone(),
        meshing,
        registry,
        router: Arc::new(KernelRouter),
        programs: launch.programs.clone(),
    });
    for address in networks.dns() {
        dns::serve(SocketAddr::new(address, 53), engine.zone())
            .await
            .map_err(|error| broken(format!("no name server at {address}: {error}")))?;
    }
    let first = |problems: crate::problem::Problems| {
        problems.0.into_iter().next().unwrap_or_else(|| broken("a manifest was refused".to_owned()))
    };
    engine.apply(&plane, Programs::default(), &[], false).map_err(first)?;
    reporter.progress("control plane: certificate authority made, pods starting");
    engine.apply(&launch.documents, Programs::default(), &launch.skip_kinds, true).map_err(first)?;

    let published = publish(&engine, &launch, fds)?;
    let (end, mut ended) = watch::channel(false);
    let served = Arc::new(Served {
        engine: engine.clone(),
        name: launch.name.clone(),
        rootless,
        published: published.clone(),
        end,
    });
    server::serve(control, served.clone()).map_err(|error| broken(format!("no control socket: {error}")))?;

    let timeout = Duration::from_secs(launch.timeout);
    let settled = tokio::select! {
        settled = settle(&engine, &reporter, timeout) => Some(settled),
        _ = terminate.recv() => None,
        _ = ended.wait_for(|ended| *ended) => None,
    };
    if let Some(problem) = settled {
        let ready = Ready { status: served.status(), problem };
        let value = serde_json::to_value(&ready).map_err(|error| broken(error.to_string()))?;
        tracing::info!(elapsed = ?began.elapsed(), "ready");
        reporter.ready(value);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = ended.wait_for(|ended| *ended) => {}
        }
    }
    // What comes in a hurry ends in a hurry.
    let hurry = async {
        terminate.recv().await;
    };
    tokio::select! {
        () = engine.close(CLOSE_GRACE) => {}
        () = hurry => {}
    }
    drop(lock);
    Ok(())
}

/// Waits until every workload is as wanted, with a word on the way; says what is missing when the time is over.
async fn settle(engine: &Arc<Engine>, reporter: &Reporter, timeout: Duration) -> Option<Problem> {
    let mut rounds = engine.rounds();
    let mut told = 0;
    let mut plane_told = false;
    let waiting = async {
        loop {
            rounds.borrow_and_update();
            let rollout = engine.rollout();
            let plane = rollout.waiting.iter().any(|w| w.contains(&format!(" in {NAMESPACE}:")));
            if !plane && !plane_told {
                plane_told = true;
                reporter.progress("control plane ready");
            }
            // Pods of jobs are ready and gone again; only what is gained is worth a line.
            if rollout.ready > told {
                told = rollout.ready;
                reporter.progress(&format!("{told} of {} pods ready", rollout.pods));
            }
            if rollout.is_settled() && rollout.pods > 0 {
                return;
            }
            // Restarts and retries are told by events; this is only about the numbers.
            let _ = tokio::time::timeout(Duration::from_secs(1), rounds.changed()).await;
        }
    };
    if tokio::time::timeout(timeout, waiting).await.is_ok() {
        return None;
    }
    let problem = engine.rollout().problem(timeout);
    engine.events().push(Severity::Warning, "the mesh".to_owned(), "NotReady", problem.what.clone());
    Some(problem)
}

fn publish(
    engine: &Arc<Engine>,
    launch: &Launch,
    listeners: impl Iterator<Item = OwnedFd>,
) -> Result<Vec<Published>, Problem> {
    let mut published = Vec::new();
    for (publication, listener) in launch.publications.iter().zip(listeners) {
        publishing::serve(engine.clone(), publication.clone(), listener).map_err(|error| {
            Problem::new("RM1567", publication.asked_by.clone(), format!("cannot be served: {error}"), "")
        })?;
        published.push(Published {
            name: publication.name.clone(),
            address: format!("http://{}", publication.listen),
        });
    }
    Ok(published)
}

fn node(networks: &crate::addresses::Networks) -> Node {
    let number = |variable| sysconf(variable).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(1);
    Node {
        name: "local".to_owned(),
        ip: networks.gateways().first().map(ToString::to_string).unwrap_or_default(),
        cpus: number(nix::unistd::SysconfVar::_NPROCESSORS_ONLN),
        memory: number(nix::unistd::SysconfVar::_PHYS_PAGES) * number(nix::unistd::SysconfVar::PAGE_SIZE),
    }
}

/// How the mesh is doing, with its version.
pub(crate) fn status(engine: &Engine, name: &str, rootless: bool, published: &[Published]) -> Status {
    let rollout = engine.rollout();
    Status {
        name: name.to_owned(),
        version: VERSION.to_owned(),
        rootless,
        pods: rollout.pods,
        ready: rollout.ready,
        published: published.to_vec(),
        settled: rollout.is_settled(),
    }
}

/// The trust domain, and the domain of services, of every local mesh.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// A person waits: pods get this much at the mesh's end, whatever their spec says.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(5);
