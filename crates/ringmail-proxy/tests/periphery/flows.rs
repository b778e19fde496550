//! Flows: the snapshot, the changes, what a slow watcher misses, and the numbers in the metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ringmail_identity::Identity;
use ringmail_proxy::flows::{FlowHandle, Flows, Subscription};
use ringmail_proxy::metrics::{Labels, Metrics};
use ringmail_vocab::{
    CloseReason, ClosedBy, Direction, Flow, PlaintextReason, Protocol, RefusalReason, Security, TlsSession,
};

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn plaintext() -> Security {
    Security::Plaintext { reason: PlaintextReason::NoTlsFromRemote }
}

fn mutual() -> Security {
    let peer: Identity = "web.ballot.serviceaccount.identity.ringmail.cluster.local".parse().expect("valid");
    Security::Mutual { peer, tls: TlsSession::default() }
}

fn flows() -> (Flows, Metrics) {
    let metrics = Metrics::new();
    (Flows::new("run", metrics.clone()), metrics)
}

fn open(flows: &Flows) -> FlowHandle {
    flows.open(
        Direction::Inbound,
        addr("10.142.0.9:40112"),
        addr("10.142.0.12:8080"),
        addr("10.142.0.12:8080"),
    )
}

async fn next(subscription: &mut Subscription) -> Vec<Arc<Flow>> {
    tokio::time::timeout(Duration::from_secs(20), subscription.next()).await.expect("in time").flows
}

async fn nothing(subscription: &mut Subscription) {
    // Everything is told in the same task that caused it: what is not there at once is not there.
    assert!(tokio::time::timeout(Duration::from_millis(20), subscription.next()).await.is_err());
}

#[tokio::test]
async fn a_flow_is_told_when_its_security_is_known_when_it_moves_and_when_it_ends() {
    let (flows, _) = flows();
    let mut watcher = flows.subscribe();
    let flow = open(&flows);
    nothing(&mut watcher).await;

    flow.set_security(mutual());
    let told = next(&mut watcher).await;
    assert_eq!((told[0].id, told[0].security.is_mutual(), told[0].closed.is_none()), (flow.id(), true, true));

    flows.tell_moved(true);
    nothing(&mut watcher).await;
    flow.counters().sent.fetch_add(5, Ordering::Relaxed);
    flow.set_protocol(Protocol::Http1);
    flows.tell_moved(true);
    flows.tell_moved(true);
    let told = next(&mut watcher).await;
    assert_eq!(told.len(), 1, "told once, not twice");
    assert_eq!((told[0].sent, told[0].protocol), (5, Protocol::Http1));

    flow.close(ClosedBy::Server, CloseReason::Truncated, Some("RM1217"));
    let told = next(&mut watcher).await;
    let closed = told[0].closed.as_ref().expect("closed");
    assert_eq!(
        (closed.by, closed.reason, closed.code.as_deref()),
        (ClosedBy::Server, CloseReason::Truncated, Some("RM1217"))
    );
    flows.tell_moved(true);
    nothing(&mut watcher).await;
    assert_eq!(flows.open_count(), 0);
}

#[tokio::test]
async fn a_watcher_that_comes_late_learns_what_is_open_and_what_was_closed() {
    let (flows, _) = flows();
    let silent = open(&flows);
    let living = open(&flows);
    living.set_security(plaintext());
    let dead = open(&flows);
    dead.set_security(mutual());
    let dead_id = dead.id();
    dead.close(ClosedBy::Client, CloseReason::Finished, None);
    let mut watcher = flows.subscribe();
    let told = next(&mut watcher).await;
    let ids: Vec<_> = told.iter().map(|flow| (flow.id, flow.closed.is_some())).collect();
    assert_eq!(ids, [(dead_id, true), (living.id(), false)], "{} is not told yet", silent.id().0);
}

#[tokio::test]
async fn a_connection_that_is_dropped_does_not_stay_open() {
    let (flows, _) = flows();
    let mut watcher = flows.subscribe();
    let flow = open(&flows);
    flow.set_security(mutual());
    drop(flow);
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(next(&mut watcher).await);
    }
    let closed = told[1].closed.as_ref().expect("closed");
    assert_eq!((closed.by, closed.reason), (ClosedBy::Proxy, CloseReason::Error));
}

#[tokio::test]
async fn a_connection_that_ends_before_it_was_secured_carried_nothing() {
    let (flows, _) = flows();
    let mut watcher = flows.subscribe();
    open(&flows).close(ClosedBy::Client, CloseReason::Reset, None);
    let told = next(&mut watcher).await;
    assert_eq!(told[0].security, Security::Refused { reason: RefusalReason::HandshakeFailed, peer: None });
}

#[tokio::test]
async fn closed_flows_are_kept_up_to_a_bound() {
    let (flows, _) = flows();
    for _ in 0..3_000 {
        let flow = open(&flows);
        flow.set_security(plaintext());
        flow.close(ClosedBy::Client, CloseReason::Finished, None);
    }
    let mut watcher = flows.subscribe();
    let mut told = Vec::new();
    while told.len() < 2_048 {
        told.extend(next(&mut watcher).await);
    }
    nothing(&mut watcher).await;
    assert_eq!((told.len(), told[0].id.0, told[2_047].id.0), (2_048, 953, 3_000), "the latest, in order");
}

#[tokio::test]
async fn a_slow_watcher_is_told_how_much_it_missed_and_then_how_things_stand() {
    let (flows, metrics) = flows();
    let mut slow = flows.subscribe();
    let stays = open(&flows);
    stays.set_security(mutual());
    for _ in 0..5_000 {
        let flow = open(&flows);
        flow.set_security(plaintext());
        flow.close(ClosedBy::Client, CloseReason::Finished, None);
    }
    let batch = slow.next().await;
    assert!(batch.dropped > 0 && batch.flows.is_empty(), "{batch:?}");
    assert!(
        metrics
            .encode()
            .expect("encodes")
            .contains(&format!("ringmail_flow_changes_dropped_total {}", batch.dropped))
    );
    let mut stands = false;
    while !stands {
        stands = next(&mut slow).await.iter().any(|flow| flow.id == stays.id() && flow.closed.is_none());
    }
    nothing(&mut slow).await;
}

#[tokio::test]
async fn what_carries_flows_itself_is_told_less_often() {
    let (flows, _) = flows();
    let mut watcher = flows.subscribe();
    let flow = open(&flows);
    flow.set_quiet();
    flow.set_security(mutual());
    next(&mut watcher).await;
    flow.counters().received.fetch_add(9, Ordering::Relaxed);
    flows.tell_moved(false);
    nothing(&mut watcher).await;
    flows.tell_moved(true);
    assert_eq!(next(&mut watcher).await[0].received, 9);
}

#[tokio::test]
async fn the_bytes_of_an_open_flow_are_in_the_metrics_with_both_sides_named() {
    let (flows, metrics) = flows();
    let flow =
        flows.open(Direction::Outbound, addr("10.0.0.1:5"), addr("10.143.0.9:80"), addr("10.143.0.9:80"));
    flow.set_dst(addr("10.142.0.12:8080"), Some(addr("10.0.0.1:6")));
    flow.set_labels(Labels::new([("dst_namespace", "ballot"), ("dst_deployment", "web")]));
    flow.set_security(mutual());
    flow.counters().sent.fetch_add(10, Ordering::Relaxed);
    flow.counters().received.fetch_add(20, Ordering::Relaxed);
    flows.flush_metrics();
    flows.flush_metrics();
    let src = r#"direction="outbound",peer="src",target_addr="10.143.0.9:80",target_ip="10.143.0.9",target_port="80",tls="no_identity",no_tls_reason="loopback""#;
    let dst = concat!(
        r#"direction="outbound",peer="dst",target_addr="10.142.0.12:8080",target_ip="10.142.0.12",target_port="8080",tls="true","#,
        r#"server_id="web.ballot.serviceaccount.identity.ringmail.cluster.local",dst_deployment="web",dst_namespace="ballot""#
    );
    let text = metrics.encode().expect("encodes");
    for line in [
        format!("tcp_open_total{{{src}}} 1"),
        format!("tcp_open_connections{{{dst}}} 1"),
        format!("tcp_read_bytes_total{{{src}}} 10"),
        format!("tcp_write_bytes_total{{{src}}} 20"),
        format!("tcp_read_bytes_total{{{dst}}} 20"),
        format!("tcp_write_bytes_total{{{dst}}} 10"),
    ] {
        assert!(text.lines().any(|present| present == line), "{line}\nis not in\n{text}");
    }
    flow.close(ClosedBy::Client, CloseReason::Reset, None);
    let text = metrics.encode().expect("encodes");
    for line in [
        format!("tcp_open_connections{{{dst}}} 0"),
        format!("tcp_close_total{{{dst},errno=\"ECONNRESET\",reason=\"reset\"}} 1"),
    ] {
        // Labels of the connection itself come before those of the other side.
        let (name, labels) = line.split_once('{').expect("has labels");
        let wanted: std::collections::BTreeSet<_> = labels.split(['}', ',']).map(str::trim).collect();
        let is_it = |present: &str| {
            present.split_once('{').is_some_and(|(of, labels)| {
                of == name
                    && labels.split(['}', ',']).map(str::trim).collect::<std::collections::BTreeSet<_>>()
                        == wanted
            })
        };
        assert!(text.lines().any(is_it), "{line}\nis not in\n{text}");
    }
}

#[test]
fn ids_do_not_repeat_within_a_run() {
    let (flows, _) = flows();
    let ids: std::collections::BTreeSet<_> = (0..100).map(|_| open(&flows).id()).collect();
    assert_eq!(ids.len(), 100);
}
