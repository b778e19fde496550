//! Pods, flows and accounts to make tests of.

use std::net::SocketAddr;
use std::sync::Arc;

use ringmail_identity::Identity;
use ringmail_viz::join::Account;
use ringmail_viz::names::{Named, NamedPod};
use ringmail_vocab::{
    CloseReason, Closed, ClosedBy, Direction, Flow, FlowId, PlaintextReason, Protocol, Security, TlsSession,
    WorkloadRef,
};

pub(crate) const NOW: u64 = 1_795_000_000_000;
pub(crate) const SETTLE: u64 = 3_000;

pub(crate) fn identity(name: &str) -> Identity {
    format!("{name}.ballot.serviceaccount.identity.ringmail.cluster.local").parse().expect("valid")
}

/// Pod `<name>-0` of deployment `<name>` in `ballot`, at 10.142.0.`<host>`, meshed.
pub(crate) fn pod(name: &str, host: u8) -> Arc<NamedPod> {
    Arc::new(NamedPod { identity: Some(identity(name)), ..(*unmeshed(name, host)).clone() })
}

pub(crate) fn unmeshed(name: &str, host: u8) -> Arc<NamedPod> {
    Arc::new(NamedPod {
        workload: WorkloadRef {
            namespace: "ballot".to_owned(),
            pod: format!("{name}-0"),
            owner_kind: "deployment".to_owned(),
            owner: name.to_owned(),
            service_account: name.to_owned(),
        },
        uid: format!("uid-{name}"),
        ips: vec![[10, 142, 0, host].into()],
        labels: [("app".to_owned(), name.to_owned())].into(),
        identity: None,
    })
}

pub(crate) fn address(pod: &NamedPod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.ips[0], port)
}

pub(crate) fn mutual(peer: &NamedPod, exporter: &str) -> Security {
    let tls = TlsSession {
        version: "TLSv1.3".to_owned(),
        cipher: "TLS13_AES_128_GCM_SHA256".to_owned(),
        group: "X25519MLKEM768".to_owned(),
        exporter: exporter.to_owned(),
        ..TlsSession::default()
    };
    Security::Mutual { peer: peer.identity.clone().expect("a meshed peer"), tls }
}

pub(crate) fn plain(reason: PlaintextReason) -> Security {
    Security::Plaintext { reason }
}

/// A connection from `client`'s port 40000 + `n` to `server`'s port 8080, as the client's proxy tells it.
pub(crate) fn outbound(client: &NamedPod, server: &NamedPod, n: u16, security: Security) -> Flow {
    Flow {
        id: FlowId(n.into()),
        direction: Direction::Outbound,
        src: address(client, 30_000 + n),
        dst: address(server, 8080),
        original_dst: "10.143.0.80:80".parse().expect("an address"),
        dialled_from: Some(address(client, 40_000 + n)),
        security,
        protocol: Protocol::Http1,
        sent: 10,
        received: 20,
        requests: 1,
        opened_ms: NOW - 60_000,
        closed: None,
    }
}

/// The same connection as the server's proxy tells it.
pub(crate) fn inbound(client: &NamedPod, server: &NamedPod, n: u16, security: Security) -> Flow {
    Flow {
        id: FlowId(1_000 + u64::from(n)),
        direction: Direction::Inbound,
        src: address(client, 40_000 + n),
        dst: address(server, 8080),
        original_dst: address(server, 8080),
        dialled_from: None,
        ..outbound(client, server, n, security)
    }
}

pub(crate) fn ended(mut flow: Flow, at_ms: u64) -> Flow {
    flow.closed = Some(Closed { at_ms, by: ClosedBy::Client, reason: CloseReason::Finished, code: None });
    flow
}

/// What the proxy of `pod` says, heard a minute ago.
pub(crate) fn account(pod: &Arc<NamedPod>, peer: &Arc<NamedPod>, flow: Flow) -> Arc<Account> {
    Arc::new(Account {
        pod: pod.clone(),
        run: "run".to_owned(),
        peer: Some(Named::Pod(peer.clone())),
        first_seen: NOW - 60_000,
        closed_at: flow.closed.as_ref().map(|closed| closed.at_ms),
        flow,
    })
}
