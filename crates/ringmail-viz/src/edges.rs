//! Connections become rows: one for each pair of resources of a kind.

use std::collections::{BTreeMap, BTreeSet};

use ringmail_api::viz::Edge;
use ringmail_identity::Identity;
use ringmail_vocab::{RefusalReason, WorkloadRef};

use crate::join::{Connection, Reason, Verdict};
use crate::resource::Kind;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The kind of resource that rows are between.
    pub kind: Kind,
    /// Rows from or to this namespace; `None` for all.
    pub namespace: Option<String>,
    /// How far back closed connections count, in milliseconds.
    pub window_ms: u64,
    /// Also the mesh's own connections. Without it, of proxies' calls to the control plane only those pairs are listed of
    /// which nothing but refused handshakes is known.
    pub mesh_traffic: bool,
    /// Where the control plane lives.
    pub control_plane_namespace: String,
}

/// The rows, and whether some of them would say more in a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edges {
    /// In the order in which they are printed.
    pub rows: Vec<Edge>,
    /// A row stands on connections alone of which one end has not had the time to speak.
    pub unsettled: bool,
}

/// Makes rows of connections.
pub fn edges(connections: &[Connection], query: &Query, now: u64) -> Edges {
    let mut pairs: BTreeMap<Pair, Vec<&Connection>> = BTreeMap::new();
    let mut own: BTreeMap<Pair, Vec<&Connection>> = BTreeMap::new();
    for connection in connections {
        let counts = connection.closed_at().is_none_or(|at| at.saturating_add(query.window_ms) >= now);
        if !counts {
            continue;
        }
        match Pair::of(connection, query) {
            Some((pair, Listed::Always)) => pairs.entry(pair).or_default().push(connection),
            Some((pair, Listed::WhereRefused)) => own.entry(pair).or_default().push(connection),
            None => {}
        }
    }
    // A proxy that the control plane never once could speak to is no detail: its workload is not in the mesh.
    own.retain(|_, connections| connections.iter().all(|connection| is_refused_handshake(connection)));
    for (pair, connections) in own {
        pairs.entry(pair).or_default().extend(connections);
    }
    let mut edges = Edges::default();
    for (pair, connections) in pairs {
        let settled: Vec<_> = connections
            .iter()
            .copied()
            .filter(|c| matches!(c.verdict, Verdict::Secured | Verdict::Not(_)))
            .collect();
        edges.unsettled |=
            settled.is_empty() && connections.iter().any(|c| matches!(c.verdict, Verdict::Pending(_)));
        edges.rows.push(row(pair, if settled.is_empty() { &connections } else { &settled }));
    }
    edges
}

/// The order of the table: both namespaces, then both names (features.md 2.1 sorts by their concatenation).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    source: (String, String),
    destination: (String, String),
}

impl Pair {
    fn of(connection: &Connection, query: &Query) -> Option<(Self, Listed)> {
        let (source, destination) = (connection.source()?, connection.destination()?);
        let asked =
            |workload: &WorkloadRef| query.namespace.as_ref().is_none_or(|ns| *ns == workload.namespace);
        // A pod that talks to its own proxy shows nothing about what leaves it.
        let inside = (&source.namespace, &source.pod) == (&destination.namespace, &destination.pod)
            && matches!(connection.port(), CONTROL_PORT | ADMIN_PORT);
        if inside && !query.mesh_traffic {
            return None;
        }
        if !asked(source) && !asked(destination) {
            return None;
        }
        let listed =
            if query.mesh_traffic { Listed::Always } else { listed(connection, destination, query)? };
        let (source, destination) = (resource(source, query.kind)?, resource(destination, query.kind)?);
        Some((Self { source, destination }, listed))
    }

    fn key(&self) -> (String, &Self) {
        let Self { source, destination } = self;
        (format!("{}{}{}{}", source.0, destination.0, source.1, destination.1), self)
    }
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let parts = |pair: &Self| (pair.source.clone(), pair.destination.clone());
        self.key().0.cmp(&other.key().0).then_with(|| parts(self).cmp(&parts(other)))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Namespace and name of the resource that a pod belongs to; `None` where it belongs to none of the kind.
pub(crate) fn resource(workload: &WorkloadRef, kind: Kind) -> Option<(String, String)> {
    let name = match kind {
        Kind::Pod => &workload.pod,
        kind if workload.owner_kind == kind.name() => &workload.owner,
        _ => return None,
    };
    (!name.is_empty()).then(|| (workload.namespace.clone(), name.clone()))
}

/// Which of a pair's connections are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    Always,
    /// Where each of them is a refused handshake.
    WhereRefused,
}

/// How a connection is listed where the mesh's own traffic is not asked for; `None`: not at all. Proxies that call the
/// control plane are listed where they are refused; calls to proxies' own ports are what the control plane's own
/// namespace is asked for.
fn listed(connection: &Connection, destination: &WorkloadRef, query: &Query) -> Option<Listed> {
    let control_plane = &query.control_plane_namespace;
    match connection.port() {
        IDENTITY_PORT | DESTINATION_PORT | POLICY_PORT if destination.namespace == *control_plane => {
            Some(Listed::WhereRefused)
        }
        CONTROL_PORT | ADMIN_PORT if query.namespace.as_ref() != Some(control_plane) => None,
        _ => Some(Listed::Always),
    }
}

/// Whether one end did not accept what the other showed of itself. That nothing answered, or too late, is what starts
/// and restarts look like.
fn is_refused_handshake(connection: &Connection) -> bool {
    let refusals = [
        RefusalReason::UnknownIssuer,
        RefusalReason::CertificateExpired,
        RefusalReason::WrongIdentity,
        RefusalReason::RefusedByPeer,
        RefusalReason::HandshakeFailed,
    ];
    let reason = connection.verdict.reason();
    reason.is_some_and(|reason| refusals.iter().any(|refusal| refusal.label() == reason.label))
}

fn row(pair: Pair, connections: &[&Connection]) -> Edge {
    let secured: Vec<_> =
        connections.iter().filter(|connection| connection.verdict == Verdict::Secured).collect();
    let mut reasons: BTreeMap<&Reason, usize> = BTreeMap::new();
    for connection in connections {
        if let Some(reason) = connection.verdict.reason() {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let sessions: Vec<_> = secured.iter().filter_map(|connection| connection.session()).collect();
    let ids = |of: fn(&Connection) -> Option<&Identity>| {
        distinct(connections.iter().filter_map(|connection| of(connection)).map(Identity::as_str)).join(",")
    };
    let ports: BTreeSet<u32> = connections.iter().map(|connection| connection.port().into()).collect();
    let (secured_text, reason) = cell(secured.len(), connections.len(), &reasons);
    Edge {
        src: pair.source.1,
        src_namespace: pair.source.0,
        dst: pair.destination.1,
        dst_namespace: pair.destination.0,
        client_id: ids(Connection::client_id),
        server_id: ids(Connection::server_id),
        secured: secured_text,
        reason,
        connections: connections.len() as u64,
        secured_connections: secured.len() as u64,
        tls_versions: distinct(sessions.iter().map(|tls| tls.version.as_str())),
        ciphers: distinct(sessions.iter().map(|tls| tls.cipher.as_str())),
        groups: distinct(sessions.iter().map(|tls| tls.group.as_str())),
        ports: ports.into_iter().collect(),
    }
}

/// Each value once, in order, empty ones left out.
fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<String> {
    let values: BTreeSet<&str> = values.filter(|value| !value.is_empty()).collect();
    values.into_iter().map(str::to_owned).collect()
}

/// The text of the last column, and the label of its reason.
fn cell(secured: usize, all: usize, reasons: &BTreeMap<&Reason, usize>) -> (String, String) {
    // Of equally frequent ones the first in the alphabet, so that two calls print the same.
    let most = reasons.iter().max_by_key(|(reason, count)| (**count, std::cmp::Reverse(**reason)));
    match most {
        None if secured == all && all > 0 => ("√".to_owned(), String::new()),
        None => ("Unknown".to_owned(), "unknown".to_owned()),
        Some((reason, _)) if secured == 0 && reasons.len() == 1 => {
            (reason.words.to_owned(), reason.label.to_owned())
        }
        Some((reason, _)) => {
            (format!("× {} of {all}: {}", all - secured, reason.words), reason.label.to_owned())
        }
    }
}

const IDENTITY_PORT: u16 = 8080;
const DESTINATION_PORT: u16 = 8086;
const POLICY_PORT: u16 = 8090;
/// Tap and flows of a proxy.
pub(crate) const CONTROL_PORT: u16 = 4190;
const ADMIN_PORT: u16 = 4191;
