//! Connections of others to this pod's applications.
//!
//! Start here: [`serve`]. The first bytes say what a connection is ([`opening`]): mesh TLS for this pod's own name is
//! ended here, another server name passes through untouched, anything else is plaintext. Policy comes before the
//! application is dialled, and goes on holding while the connection lives.

use std::net::SocketAddr;
use std::sync::Arc;

use ringmail_identity::Identity;
use ringmail_vocab::{CloseReason, ClosedBy, Direction, PlaintextReason, RefusalReason, Security};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::accept::{Accepted, Callers, Limits, accept, sized};
use crate::carry::{Facts, Refusal, carry, refuse};
use crate::config::Config;
use crate::drain::Drain;
use crate::flows::{FlowHandle, Flows};
use crate::metrics::{Labels, Metrics, Verdict};
use crate::observe::{ObserveContext, Observer};
use crate::orig_dst::{OriginalDst, unmap};
use crate::policy::{Client, ClientTls, Policies, PortPolicy, Rule};
use crate::relay::Wire;
use crate::report::Code;
use crate::sockets::{Dialer, tune};
use crate::sources::Sources;
use crate::tap::TapHub;
use crate::tls::{CredentialsRx, Prefixed};

mod opening;
mod probe;

use opening::{Arrival, Begun};

/// What inbound connections need. Cheap to clone.
#[derive(Clone)]
pub struct InboundContext {
    /// The settings.
    pub config: Arc<Config>,
    /// The present certificate.
    pub credentials: CredentialsRx,
    /// Where connections are recorded.
    pub flows: Flows,
    /// Who listens in.
    pub hub: TapHub,
    /// Where is counted.
    pub metrics: Metrics,
    /// Who may call.
    pub policies: Policies,
    /// Who silent clients are.
    pub sources: Sources,
    /// When to end.
    pub drain: Drain,
    /// Where connections were meant to go.
    pub original_dst: OriginalDst,
    /// How much at once.
    pub limits: Limits,
}

/// Serves a listener for ever, in draining too: a client that does not know yet goes on being served.
pub async fn serve(listener: TcpListener, context: InboundContext) {
    let port = listener.local_addr().map_or(0, |addr| addr.port());
    let dialer = Dialer::new(context.config.socket_mark, None);
    let inbound = Arc::new(Inbound { context, dialer, port });
    let limits = inbound.context.limits.clone();
    accept(&listener, &limits, Callers::Others, |accepted| {
        let inbound = Arc::clone(&inbound);
        tokio::spawn(sized(async move { inbound.connection(accepted).await }));
    })
    .await;
}

struct Inbound {
    context: InboundContext,
    dialer: Dialer,
    /// The listener's own port.
    port: u16,
}

/// One connection's two ends.
#[derive(Clone, Copy)]
struct Ends {
    src: SocketAddr,
    dst: SocketAddr,
}

impl Inbound {
    async fn connection(&self, Accepted { stream: mut client, peer: src, place }: Accepted) {
        let context = &self.context;
        let accepted = Instant::now();
        let _guard = context.drain.hold();
        let told = context.original_dst.get(&client);
        let local = client.local_addr().map_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)), unmap);
        let ends = Ends { src, dst: *told.as_ref().unwrap_or(&local) };
        let flow = context.flows.open(Direction::Inbound, src, ends.dst, ends.dst);
        let policy = match self.admit(&ends, told.as_ref().err(), place.is_some()) {
            Ok(policy) => policy,
            Err(refusal) => {
                return refuse(flow, &self.facts(ends, None, "admission"), Some(&client), &refusal);
            }
        };
        if tune(&client, context.config.inbound_accept_keepalive).is_err() {
            return flow.close(ClosedBy::Client, CloseReason::Reset, None);
        }
        let mut bytes = Vec::new();
        // Phases are boxed, for a connection lives in its last one nearly always, and should have the size of that one.
        match Box::pin(self.arrival(&mut client, &mut bytes, ends, &policy, accepted)).await {
            Ok(Arrival::Begun(begun)) => self.begun(flow, client, bytes, begun, ends, policy, accepted).await,
            Ok(Arrival::Gone(reason)) => {
                flow.set_security(Security::Plaintext { reason: PlaintextReason::NoTlsFromRemote });
                flow.close(ClosedBy::Client, reason, None);
            }
            Err(refusal) => refuse(flow, &self.facts(ends, None, "tls"), Some(&client), &refusal),
        }
    }

    /// What can be refused before a byte is read.
    fn admit(
        &self,
        ends: &Ends,
        unknown: Option<&std::io::Error>,
        room: bool,
    ) -> Result<PortPolicy, Refusal> {
        let config = &self.context.config;
        let Ends { dst, .. } = ends;
        if let Some(error) = unknown {
            return Err(Refusal::by_proxy(
                RefusalReason::Loop,
                Code::NoOriginalDestination,
                error.to_string(),
            ));
        }
        if dst.port() == self.port {
            return Err(Refusal::by_proxy(
                RefusalReason::Loop,
                Code::Direct,
                format!("`{dst}` is the inbound listener"),
            ));
        }
        if !config.inbound_ips.is_empty() && !config.inbound_ips.contains(&dst.ip()) {
            let detail = format!("`{}` is not among the addresses of this pod", dst.ip());
            return Err(Refusal::by_proxy(RefusalReason::Loop, Code::NotThisPod, detail));
        }
        let full = |what| Refusal::by_proxy(RefusalReason::Overloaded, Code::Overloaded, what);
        if !room {
            return Err(full("no room for another connection"));
        }
        self.context.policies.port(dst.port()).ok_or_else(|| full("no room for another port's policy"))
    }

    /// What the connection is, is known; now who it is, and whether it may.
    #[expect(
        clippy::too_many_arguments,
        reason = "everything that is known of one connection, handed on once"
    )]
    async fn begun(
        &self,
        flow: FlowHandle,
        client: TcpStream,
        bytes: Vec<u8>,
        begun: Begun,
        ends: Ends,
        policy: PortPolicy,
        accepted: Instant,
    ) {
        match begun {
            Begun::Mesh(hello) => match Box::pin(self.terminate(client, bytes, hello.random, accepted)).await
            {
                Ok(stream) => {
                    let security = stream.security().clone();
                    Box::pin(sized(self.secured(flow, stream, security, ends, policy))).await;
                }
                Err((claimed, refusal)) => refuse(flow, &self.facts(ends, claimed, "tls"), None, &refusal),
            },
            Begun::Other(sni) => {
                let security = Security::Passthrough { sni };
                Box::pin(sized(self.secured(flow, Prefixed::new(bytes, client), security, ends, policy)))
                    .await;
            }
            Begun::Plain(reason) => {
                let security = Security::Plaintext { reason };
                Box::pin(sized(self.secured(flow, Prefixed::new(bytes, client), security, ends, policy)))
                    .await;
            }
        }
    }

    /// Policy, then the application, then bytes.
    async fn secured<C: Wire + 'static>(
        &self,
        flow: FlowHandle,
        client: C,
        security: Security,
        ends: Ends,
        mut policy: PortPolicy,
    ) {
        let peer = security.proven_peer().cloned();
        let now = policy.now();
        let caller = Client { ip: ends.src.ip(), tls: client_tls(&security) };
        let allowed = now.decide(caller);
        flow.set_labels(labels(now.rule(), ends.dst.port(), allowed));
        let Some(rule) = allowed else {
            let looks_inside = !matches!(security, Security::Passthrough { .. });
            if looks_inside && now.has_requests_for(caller) {
                return Box::pin(self.probes(flow, client, security, ends, policy)).await;
            }
            self.count(Verdict::Deny, &security, ends, now.rule(), None);
            let facts = self.facts(ends, peer, &now.rule().to_string());
            let detail = format!("{} calls port {}", who(&security), ends.dst.port());
            let refusal = Refusal::by_proxy(RefusalReason::PolicyDenied, Code::PolicyDenied, detail);
            return refuse(flow, &facts, Some(client.tcp()), &refusal);
        };
        self.count(Verdict::Allow, &security, ends, now.rule(), Some(rule));
        if &*rule.kind == "default" && &*rule.name == "audit" {
            tracing::info!(src = %ends.src, dst = %ends.dst, client = %who(&security), "let in by the policy `audit` only");
        }
        let facts = self.facts(ends, peer.clone(), &rule.to_string());
        let server = match self.dialer.dial(ends.dst, self.context.config.inbound_connect_timeout).await {
            Ok(server) => server,
            Err(error) => {
                let refusal = Refusal {
                    reason: RefusalReason::ConnectFailed,
                    code: Code::ConnectFailed,
                    by: ClosedBy::Server,
                    detail: format!("the application: {error}"),
                };
                return refuse(flow, &facts, Some(client.tcp()), &refusal);
            }
        };
        flow.set_security(security.clone());
        let opaque = now.is_opaque() || matches!(security, Security::Passthrough { .. });
        let observer = if opaque {
            Observer::off()
        } else {
            self.observer(&flow, &security, ends, labels(now.rule(), ends.dst.port(), allowed))
        };
        let revoked = revoked(&mut policy, &security, ends);
        let reason = carry(flow, facts, client, server, observer, &self.context.drain, revoked).await;
        if reason == CloseReason::PolicyChanged {
            self.count(Verdict::Terminate, &security, ends, policy.now().rule(), None);
        }
    }

    /// Requests are looked at one by one: some of them may be exempt.
    async fn probes<C: Wire + 'static>(
        &self,
        flow: FlowHandle,
        client: C,
        security: Security,
        ends: Ends,
        policy: PortPolicy,
    ) {
        flow.set_security(security.clone());
        let rule = policy.now().rule().clone();
        let observer = self.observer(&flow, &security, ends, labels(&rule, ends.dst.port(), None));
        let gate = probe::Gate {
            policy,
            security: security.clone(),
            src: ends.src,
            dst: ends.dst,
            dialer: self.dialer.clone(),
            connect_timeout: self.context.config.inbound_connect_timeout,
            request_timeout: self.context.config.handshake_timeout,
        };
        let passed =
            probe::serve(client, gate, observer, std::sync::Arc::clone(flow.counters()), &self.context.drain)
                .await;
        if passed.any_permitted {
            self.count(Verdict::Allow, &security, ends, &rule, None);
            return flow.close(passed.by, passed.reason, None);
        }
        self.count(Verdict::Deny, &security, ends, &rule, None);
        let facts = self.facts(ends, security.proven_peer().cloned(), &rule.to_string());
        let detail = passed.refused.unwrap_or_else(|| "no whole HTTP request came".to_owned());
        refuse(
            flow,
            &facts,
            None,
            &Refusal::by_proxy(RefusalReason::PolicyDenied, Code::ProbeRefused, detail),
        );
    }

    fn observer(&self, flow: &FlowHandle, security: &Security, ends: Ends, labels: Labels) -> Observer {
        Observer::new(ObserveContext {
            flow: flow.reference(),
            direction: Direction::Inbound,
            src: ends.src,
            dst: ends.dst,
            security: security.clone(),
            labels,
            hub: self.context.hub.clone(),
            metrics: self.context.metrics.clone(),
        })
    }

    fn count(&self, verdict: Verdict, security: &Security, ends: Ends, server: &Rule, rule: Option<&Rule>) {
        self.context.metrics.inbound_authz(
            verdict,
            ends.dst,
            security,
            &labels(server, ends.dst.port(), rule),
        );
    }

    fn facts(&self, ends: Ends, peer: Option<Identity>, rule: &str) -> Facts<'_> {
        Facts {
            direction: Direction::Inbound,
            src: ends.src,
            dst: ends.dst,
            original_dst: ends.dst,
            local: &self.context.config.identity_local_name,
            peer,
            rule: rule.to_owned(),
        }
    }
}

/// Ends when policy does not let this client in any more; with the policy that says so.
async fn revoked(policy: &mut PortPolicy, security: &Security, ends: Ends) -> String {
    loop {
        let now = policy.changed().await;
        if now.decide(Client { ip: ends.src.ip(), tls: client_tls(security) }).is_none() {
            return now.rule().to_string();
        }
    }
}

fn client_tls(security: &Security) -> ClientTls<'_> {
    match security {
        Security::Mutual { peer, .. } => ClientTls::Identity(peer),
        Security::ServerOnly { .. } => ClientTls::Anonymous,
        Security::Passthrough { .. } | Security::Plaintext { .. } | Security::Refused { .. } => {
            ClientTls::None
        }
    }
}

fn who(security: &Security) -> String {
    match client_tls(security) {
        ClientTls::Identity(identity) => format!("`{identity}`"),
        ClientTls::Anonymous => "a client that shows no certificate".to_owned(),
        ClientTls::None => "a client without mesh TLS".to_owned(),
    }
}

fn labels(server: &Rule, port: u16, rule: Option<&Rule>) -> Labels {
    let port = port.to_string();
    let mut labels = vec![
        ("srv_group", server.group.to_string()),
        ("srv_kind", server.kind.to_string()),
        ("srv_name", server.name.to_string()),
        ("srv_port", port),
    ];
    if let Some(rule) = rule {
        labels.extend([
            ("authz_group", rule.group.to_string()),
            ("authz_kind", rule.kind.to_string()),
            ("authz_name", rule.name.to_string()),
        ]);
    }
    Labels::new(labels)
}
