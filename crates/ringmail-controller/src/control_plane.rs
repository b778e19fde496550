//! Starting and ending the roles of one process.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ringmail_registry::Registry;
use ringmail_registry::files::FileSource;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::admin::{Admin, IdentityState};
use crate::metrics::Metrics;
use crate::roles::destination::Discovery;
use crate::roles::identity::{Certifier, Ledger, TokenKeys, authority};
use crate::roles::policy::{InboundSettings, Policies};
use crate::roles::viz;
use crate::server::{listen, serve};
use crate::settings::{IdentitySettings, Role, Settings};
use crate::stream::Streams;

/// Why the control plane could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A role's address cannot be listened on.
    #[error("RM1607: the role `{role}` cannot listen on {addr}: {source}")]
    Listen {
        /// The role, or `admin`.
        role: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// A server ended.
    #[error("RM1608: the server of the role `{role}` ended: {source}")]
    Serve {
        /// The role.
        role: &'static str,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The server of the role viz ended.
    #[error("RM1608: the server of the role `viz` ended: {0}")]
    Viz(ringmail_viz::server::ServeError),
    /// The admin server ended.
    #[error("RM1608: the admin server ended: {0}")]
    Admin(std::io::Error),
    /// A server's task broke off.
    #[error("RM1608: a server broke off: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// The roles of one process, listening.
#[derive(Debug)]
pub struct ControlPlane {
    addresses: Vec<(&'static str, SocketAddr)>,
    servers: JoinSet<Result<(), StartError>>,
    shutdown: CancellationToken,
}

/// Starts the roles and serves until `end` is done or a server fails.
pub async fn run(settings: Settings, end: impl Future<Output = ()>) -> Result<(), StartError> {
    let mut control_plane = ControlPlane::start(settings).await?;
    tokio::select! {
        () = end => tracing::info!("asked to end: streams are closed"),
        ended = control_plane.failed() => return ended,
    }
    control_plane.end().await;
    Ok(())
}

/// Done when the process is asked to end: SIGTERM or SIGINT.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async |kind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(error) => {
            tracing::warn!("a signal cannot be waited for: {error}");
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}

impl ControlPlane {
    /// Listens on all addresses, then starts to read the registry and to serve.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let registry = Registry::new(settings.mesh.clone());
        let metrics = Metrics::new();
        let mut control_plane =
            Self { addresses: Vec::new(), servers: JoinSet::new(), shutdown: CancellationToken::new() };
        let streams = Streams::new(registry.clone(), metrics.clone(), control_plane.shutdown.clone());

        let admin = control_plane.listen("admin", settings.admin_addr).await?;
        let mut identity = None;
        if let Some(needs) = &settings.identity {
            let listener = control_plane.listen("identity", needs.addr).await?;
            let (certifier, state) = certifier(needs, &settings, &registry, &metrics);
            identity = Some(state);
            control_plane.serve("identity", listener, Routes::new(certifier.into_server()));
        }
        if settings.roles.contains(&Role::Destination) {
            let listener = control_plane.listen("destination", settings.destination_addr).await?;
            let discovery =
                Discovery::new(streams.clone(), &settings.cluster_domain, &settings.cluster_networks);
            let routes =
                Routes::new(discovery.clone().into_server()).add_service(discovery.into_sources_server());
            control_plane.serve("destination", listener, routes);
        }
        if settings.roles.contains(&Role::Policy) {
            let listener = control_plane.listen("policy", settings.policy_addr).await?;
            let inbound = InboundSettings {
                default: settings.default_inbound_policy,
                cluster_networks: settings.cluster_networks.clone(),
                probe_networks: settings.probe_networks.clone(),
            };
            let policies = Policies::new(streams, inbound, &settings.cluster_domain);
            let routes = Routes::new(policies.clone().into_inbound_server())
                .add_service(policies.into_outbound_server());
            control_plane.serve("policy", listener, routes);
        }
        if settings.roles.contains(&Role::Viz) {
            let listener = control_plane.listen("viz", settings.viz_addr).await?;
            let (namespace, shutdown) =
                (settings.mesh.control_plane_namespace.clone(), control_plane.shutdown.clone());
            let serve = viz::serve(registry.clone(), namespace, listener, shutdown);
            control_plane.servers.spawn(async { serve.await.map_err(StartError::Viz) });
        }
        let admin_state = Admin { metrics, registry: registry.clone(), identity };
        control_plane.serve_admin(admin, admin_state);
        tokio::spawn(FileSource::new(settings.registry_dir, registry).run());
        Ok(control_plane)
    }

    /// Where a role listens, or `admin`: the port that the kernel chose where the setting was 0.
    pub fn address(&self, role: &str) -> Option<SocketAddr> {
        self.addresses.iter().find(|(name, _)| *name == role).map(|(_, addr)| *addr)
    }

    /// Waits for a server to end by itself, which is a failure.
    pub async fn failed(&mut self) -> Result<(), StartError> {
        match self.servers.join_next().await {
            Some(ended) => ended?,
            None => std::future::pending().await,
        }
    }

    /// Ends all streams and waits a while for the last answers.
    pub async fn end(mut self) {
        self.shutdown.cancel();
        let all = async { while self.servers.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            tracing::warn!("some connections did not end within {GRACE:?}: they are cut");
        }
    }

    async fn listen(&mut self, role: &'static str, addr: SocketAddr) -> Result<TcpListener, StartError> {
        let listener = listen(role, addr).await?;
        let addr = listener.local_addr().unwrap_or(addr);
        tracing::info!("{role} listens on {addr}");
        self.addresses.push((role, addr));
        Ok(listener)
    }

    fn serve(&mut self, role: &'static str, listener: TcpListener, routes: Routes) {
        self.servers.spawn(serve(role, listener, routes, self.shutdown.clone()));
    }

    fn serve_admin(&mut self, listener: TcpListener, admin: Admin) {
        let shutdown = self.shutdown.clone();
        self.servers.spawn(async move {
            let service = admin.routes().into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(listener, service)
                .with_graceful_shutdown(shutdown.cancelled_owned())
                .await
                .map_err(StartError::Admin)
        });
    }
}

fn certifier(
    needs: &IdentitySettings,
    settings: &Settings,
    registry: &Registry,
    metrics: &Metrics,
) -> (Certifier, IdentityState) {
    let domain = &settings.mesh.trust_domain;
    let state = IdentityState {
        authority: authority(needs, domain, metrics),
        keys: TokenKeys::follow(needs.token_jwks.clone(), needs.audiences.clone()),
        ledger: Arc::new(Ledger::default()),
    };
    let certifier = Certifier::new(
        domain.clone(),
        state.authority.clone(),
        Arc::new(state.keys.clone()),
        registry.clone(),
        state.ledger.clone(),
        metrics.clone(),
    );
    (certifier, state)
}

/// How long connections may take to end: their proxies reconnect elsewhere at once.
const GRACE: Duration = Duration::from_secs(5);
