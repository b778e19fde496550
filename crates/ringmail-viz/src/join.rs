//! Two ends' accounts become connections, and only here is it decided that one is secured.
//!
//! The rule: both ends say mutual TLS, both report the same exporter of the session, the client proved to the server
//! the identity that the client's proxy bears, and the server proved to the client the identity that the server's
//! proxy bears. Whatever is less has a reason, in words.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use ringmail_identity::Identity;
use ringmail_vocab::{Direction, Flow, RefusalReason, Security, TlsSession, WorkloadRef};

use crate::names::{Named, NamedPod};

/// What one proxy says of one connection. Times are milliseconds since the Unix epoch by viz's clock.
#[derive(Clone, Debug)]
pub struct Account {
    /// The proxy's pod. Its identity is the one that the proxy proved to viz and that it says it bears.
    pub pod: Arc<NamedPod>,
    /// The proxy's run: flow ids are unique within one.
    pub run: String,
    /// The flow.
    pub flow: Flow,
    /// Whose the other end's address was when the flow was first seen.
    pub peer: Option<Named>,
    /// When viz first heard of it.
    pub first_seen: u64,
    /// When it ended; `None` while it is open.
    pub closed_at: Option<u64>,
}

impl Account {
    /// The address of the other end: the endpoint for a client's proxy, the client for a server's.
    pub fn peer_address(flow: &Flow) -> SocketAddr {
        match flow.direction {
            Direction::Outbound => flow.dst,
            Direction::Inbound => flow.src,
        }
    }

    fn is_client(&self) -> bool {
        self.flow.direction == Direction::Outbound
    }
}

/// A proxy that is heard now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// From this moment on it has told everything, closed connections included.
    pub complete_since: u64,
}

/// One connection, from one or two accounts.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client's end.
    pub client: Option<Arc<Account>>,
    /// The server's end.
    pub server: Option<Arc<Account>>,
    /// What the two together say.
    pub verdict: Verdict,
}

/// What is known of a connection's security.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Mutual TLS, by the word of both ends about the same handshake.
    Secured,
    /// Not secured, or not known to be.
    Not(Reason),
    /// One end says mutual; the other has not had the time to speak. Counts as the reason only where nothing else is
    /// known.
    Pending(Reason),
    /// One end says mutual; it ended before the other was heard. Counts as the reason only where nothing else is known.
    Unheard(Reason),
}

impl Verdict {
    /// Why it is not held for secured.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Secured => None,
            Self::Not(reason) | Self::Pending(reason) | Self::Unheard(reason) => Some(reason),
        }
    }
}

/// Why a connection is not held for secured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reason {
    /// Lower case with underscores; stable.
    pub label: &'static str,
    /// The words that a table prints.
    pub words: &'static str,
}

impl Connection {
    /// The client's workload, where it is a pod.
    pub fn source(&self) -> Option<&WorkloadRef> {
        workload(self.client.as_deref(), self.server.as_deref())
    }

    /// The server's workload, where it is a pod.
    pub fn destination(&self) -> Option<&WorkloadRef> {
        workload(self.server.as_deref(), self.client.as_deref())
    }

    /// The port that was called.
    pub fn port(&self) -> u16 {
        self.server.as_ref().or(self.client.as_ref()).map_or(0, |account| account.flow.dst.port())
    }

    /// The client's identity as the server's end had it proven.
    pub fn client_id(&self) -> Option<&Identity> {
        self.server.as_ref()?.flow.security.proven_peer()
    }

    /// The server's identity as the client's end had it proven.
    pub fn server_id(&self) -> Option<&Identity> {
        self.client.as_ref()?.flow.security.proven_peer()
    }

    /// The session, of a secured connection.
    pub fn session(&self) -> Option<&TlsSession> {
        (self.verdict == Verdict::Secured).then_some(self.client.as_ref()?.flow.security.tls()).flatten()
    }

    /// When it ended; `None` while either end holds it for open.
    pub fn closed_at(&self) -> Option<u64> {
        let ends = [&self.client, &self.server];
        ends.into_iter()
            .flatten()
            .map(|account| account.closed_at)
            .reduce(|one, other| Some(one?.max(other?)))
            .flatten()
    }
}

/// Joins accounts into connections. Each account is in exactly one of them. `witnesses` are the proxies that are
/// heard now, by their pod's uid; `settle` is how long, in milliseconds, a lone account waits for the other end's.
pub fn join(
    accounts: &[Arc<Account>],
    witnesses: &BTreeMap<String, Witness>,
    now: u64,
    settle: u64,
) -> Vec<Connection> {
    let (clients, servers): (Vec<_>, Vec<_>) =
        accounts.iter().cloned().partition(|account| account.is_client());
    let mut pairing = Pairing { taken: vec![false; servers.len()], servers, connections: Vec::new() };
    let rest = pairing.by_exporter(clients);
    let rest = pairing.by_address(rest);
    let Pairing { servers, taken, mut connections } = pairing;
    let lonely = servers.into_iter().zip(taken).filter(|(_, taken)| !taken).map(|(server, _)| server);
    connections.extend(rest.into_iter().chain(lonely).map(|account| {
        let verdict = alone(&account, witnesses, now, settle);
        if account.is_client() {
            Connection { client: Some(account), server: None, verdict }
        } else {
            Connection { client: None, server: Some(account), verdict }
        }
    }));
    connections
}

struct Pairing {
    servers: Vec<Arc<Account>>,
    taken: Vec<bool>,
    connections: Vec<Connection>,
}

impl Pairing {
    /// Pairs what reports the same exporter; returns the clients that are left. Where several claim one exporter, the
    /// one whose names fit is preferred.
    fn by_exporter(&mut self, clients: Vec<Arc<Account>>) -> Vec<Arc<Account>> {
        let mut places: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, server) in self.servers.iter().enumerate() {
            if let Some(exporter) = exporter(&server.flow) {
                places.entry(exporter.to_owned()).or_default().push(place);
            }
        }
        let mut rest = Vec::new();
        for client in clients {
            let candidates = exporter(&client.flow).and_then(|exporter| places.get(exporter));
            let free = || candidates.into_iter().flatten().copied().filter(|place| !self.taken[*place]);
            let place =
                free().find(|place| names_fit(&client, &self.servers[*place])).or_else(|| free().next());
            match place {
                Some(place) => self.pair(client, place),
                None => rest.push(client),
            }
        }
        rest
    }

    /// Pairs what the addresses join: the server saw the address from which the client's proxy dialled. Addresses are
    /// used again, so of several candidates the one that opened at about the same time is taken.
    fn by_address(&mut self, clients: Vec<Arc<Account>>) -> Vec<Arc<Account>> {
        let mut places: HashMap<(SocketAddr, SocketAddr), Vec<usize>> = HashMap::new();
        for (place, server) in self.servers.iter().enumerate().filter(|(place, _)| !self.taken[*place]) {
            let flow = &server.flow;
            places.entry((plain(flow.src), plain(flow.dst))).or_default().push(place);
            if flow.original_dst != flow.dst {
                places.entry((plain(flow.src), plain(flow.original_dst))).or_default().push(place);
            }
        }
        let mut rest = Vec::new();
        for client in clients {
            let key = client.flow.dialled_from.map(|from| (plain(from), plain(client.flow.dst)));
            let candidates = key.and_then(|key| places.get(&key)).into_iter().flatten().copied();
            let apart = |place: usize| self.servers[place].flow.opened_ms.abs_diff(client.flow.opened_ms);
            let place = candidates.filter(|place| !self.taken[*place] && apart(*place) <= SAME_TIME_MS);
            match place.min_by_key(|place| apart(*place)) {
                Some(place) => self.pair(client, place),
                None => rest.push(client),
            }
        }
        rest
    }

    fn pair(&mut self, client: Arc<Account>, place: usize) {
        self.taken[place] = true;
        let server = self.servers[place].clone();
        let verdict = match unsecured(&client, &server) {
            None => Verdict::Secured,
            Some(reason) => Verdict::Not(reason),
        };
        self.connections.push(Connection { client: Some(client), server: Some(server), verdict });
    }
}

/// Why two accounts of one connection do not make it secured; `None`: they do.
fn unsecured(client: &Account, server: &Account) -> Option<Reason> {
    let (of_client, of_server) = (&client.flow.security, &server.flow.security);
    match (of_client, of_server) {
        (Security::Mutual { .. }, Security::Mutual { .. }) => {
            if exporter(&client.flow).is_none() || exporter(&client.flow) != exporter(&server.flow) {
                Some(DIFFERENT_HANDSHAKES)
            } else if !names_fit(client, server) {
                Some(DIFFERENT_NAMES)
            } else {
                None
            }
        }
        (Security::Refused { reason: one, .. }, Security::Refused { reason: other, .. }) => {
            // The end that refused knows why; the other knows only that it was refused.
            Some(refusal(if is_hearsay(*one) { *other } else { *one }))
        }
        (Security::Refused { .. }, _) => Some(single(of_client)),
        // The weaker word counts.
        (_, Security::Refused { .. }) | (Security::Mutual { .. }, _) => Some(single(of_server)),
        (_, _) => Some(single(of_client)),
    }
}

/// What one end's account alone says.
fn alone(account: &Account, witnesses: &BTreeMap<String, Witness>, now: u64, settle: u64) -> Verdict {
    if !account.flow.security.is_mutual() {
        // That a connection is not secured needs no second witness.
        return Verdict::Not(single(&account.flow.security));
    }
    let reason = if account.is_client() { ONE_WITNESS_CLIENT } else { ONE_WITNESS_SERVER };
    let other = account.peer.as_ref().and_then(Named::pod).and_then(|pod| witnesses.get(&pod.uid));
    // A proxy that is heard, but was not yet when this ended, may have seen it all the same.
    let unheard = other
        .is_some_and(|other| account.closed_at.is_some_and(|closed_at| closed_at <= other.complete_since));
    if unheard {
        Verdict::Unheard(reason)
    } else if now.saturating_sub(account.first_seen) < settle {
        Verdict::Pending(reason)
    } else {
        Verdict::Not(reason)
    }
}

/// The client proved the name that its proxy bears, and the server likewise.
fn names_fit(client: &Account, server: &Account) -> bool {
    let proven = |account: &Account| account.flow.security.proven_peer().cloned();
    let (of_client, of_server) = (&client.pod.identity, &server.pod.identity);
    of_client.is_some() && of_server.is_some() && proven(server) == *of_client && proven(client) == *of_server
}

fn single(security: &Security) -> Reason {
    match security {
        // Reached by a lone end only, whose caller says so in its own words.
        Security::Mutual { .. } => DIFFERENT_HANDSHAKES,
        Security::ServerOnly { .. } => Reason { label: "server_only", words: security.words() },
        Security::Passthrough { .. } => Reason { label: "passthru", words: security.words() },
        Security::Plaintext { reason } => Reason { label: reason.label(), words: reason.words() },
        Security::Refused { reason, .. } => refusal(*reason),
    }
}

fn refusal(reason: RefusalReason) -> Reason {
    Reason { label: reason.label(), words: reason.words() }
}

fn is_hearsay(reason: RefusalReason) -> bool {
    matches!(
        reason,
        RefusalReason::RefusedByPeer | RefusalReason::HandshakeFailed | RefusalReason::HandshakeTimeout
    )
}

fn exporter(flow: &Flow) -> Option<&str> {
    flow.security.tls().map(|tls| tls.exporter.as_str()).filter(|exporter| !exporter.is_empty())
}

fn workload<'a>(own: Option<&'a Account>, other: Option<&'a Account>) -> Option<&'a WorkloadRef> {
    match own {
        Some(own) => Some(&own.pod.workload),
        None => other?.peer.as_ref()?.pod().map(|pod| &pod.workload),
    }
}

/// An IPv4 address in IPv6's clothes is the IPv4 address.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One end's word alone: the client's.
pub const ONE_WITNESS_CLIENT: Reason = Reason { label: "one_witness_client", words: "One Witness: client" };
/// One end's word alone: the server's.
pub const ONE_WITNESS_SERVER: Reason = Reason { label: "one_witness_server", words: "One Witness: server" };
/// The ends of one connection speak of different handshakes: somebody stands between them.
pub const DIFFERENT_HANDSHAKES: Reason =
    Reason { label: "different_handshakes", words: "Different Handshakes" };
/// The ends speak of one handshake, and one proved another name than its proxy bears.
pub const DIFFERENT_NAMES: Reason = Reason { label: "different_names", words: "Different Names" };

/// How far apart the two ends may have opened one connection, in milliseconds: accept, handshake deadline, clocks.
const SAME_TIME_MS: u64 = 30_000;
