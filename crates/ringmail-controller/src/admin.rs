//! `/live`, `/ready` and `/metrics`, and `/issued` for callers on this machine's loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ringmail_identity::authority::CertificateAuthority;
use ringmail_registry::Registry;

use crate::metrics::Metrics;
use crate::reload::Reloaded;
use crate::roles::identity::{Ledger, TokenKeys};

/// What the admin server tells about.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The metrics.
    pub metrics: Metrics,
    /// Ready once synced.
    pub registry: Registry,
    /// What the role identity needs before it is ready; `None` without that role.
    pub identity: Option<IdentityState>,
}

/// What the role identity needs before it is ready, and what it has done.
#[derive(Clone, Debug)]
pub struct IdentityState {
    /// The issuer.
    pub authority: Reloaded<CertificateAuthority>,
    /// The keys of tokens.
    pub keys: Reloaded<TokenKeys>,
    /// What was issued lately.
    pub ledger: Arc<Ledger>,
}

impl Admin {
    /// What is still missing, in words; empty when all roles can answer.
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if !self.registry.is_synced() {
            missing.push("the registry is not synced");
        }
        if let Some(identity) = &self.identity {
            match identity.authority.get() {
                None => missing.push("the issuer is not loaded"),
                Some(authority) if authority.end() <= SystemTime::now() => {
                    missing.push("the issuer has expired");
                }
                Some(_) => {}
            }
            if identity.keys.get().is_none() {
                missing.push("the keys of tokens are not loaded");
            }
        }
        missing
    }

    /// The server's routes.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/live", get(async || "live\n"))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/issued", get(issued))
            .with_state(self)
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let missing = admin.missing();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", "))).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let authority = admin.identity.as_ref().and_then(|identity| identity.authority.get());
    let ttl = authority.map(|authority| {
        let left = authority.end().duration_since(SystemTime::now()).unwrap_or_default();
        i64::try_from(left.as_secs()).unwrap_or(i64::MAX)
    });
    let pods = admin.registry.read().pods().count();
    let text = admin.metrics.encode(admin.registry.is_synced(), pods, ttl);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}

async fn issued(State(admin): State<Admin>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Response {
    // The list names every workload of the mesh.
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only for callers on the loopback interface of this pod\n")
            .into_response();
    }
    match &admin.identity {
        Some(identity) => Json(identity.ledger.latest()).into_response(),
        None => (StatusCode::NOT_FOUND, "this process has not the role identity\n").into_response(),
    }
}
