//! What a scrape shows: names, the grammar of labels, and their bounds.

use std::net::SocketAddr;

use ringmail_identity::Identity;
use ringmail_proxy::metrics::{Labels, Metrics, Side, Verdict};
use ringmail_vocab::{Direction, PlaintextReason, RefusalReason, Security, TlsSession};

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 142, 0, 12], port))
}

fn peer() -> Identity {
    "vote-bot.ballot.serviceaccount.identity.ringmail.cluster.local".parse().expect("valid")
}

type Line = (String, Vec<(String, String)>, f64);

/// Each line that is no comment, taken apart: name, labels, value.
fn series(text: &str) -> Vec<Line> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("has a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').expect("ends");
            (name.to_owned(), parse_labels(labels), value.parse().expect("a number"))
        })
        .collect()
}

/// The grammar of the text format: `name="value"`, where `\`, `"` and line ends are escaped.
fn parse_labels(mut rest: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("has a value");
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "label `{name}`");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("ends") {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next().expect("goes on").1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        rest = after[end..].strip_prefix(',').unwrap_or(&after[end..]);
    }
    labels
}

fn labels_of(text: &str, name: &str) -> Vec<Vec<(String, String)>> {
    series(text).into_iter().filter(|(of, ..)| of == name).map(|(_, labels, _)| labels).collect()
}

fn has(labels: &[(String, String)], key: &str, value: &str) -> bool {
    labels.iter().any(|(k, v)| k == key && v == value)
}

#[test]
fn each_kind_of_security_has_its_labels() {
    let tls = TlsSession::default();
    for (security, wanted) in [
        (
            Security::Mutual { peer: peer(), tls: tls.clone() },
            vec![("tls", "true"), ("client_id", peer().as_str())],
        ),
        (Security::ServerOnly { peer: None, tls }, vec![("tls", "server_only")]),
        (
            Security::Passthrough { sni: "a\"b\\c\nd".to_owned() },
            vec![("tls", "opaque"), ("sni", "a\"b\\c\nd")],
        ),
        (
            Security::Plaintext { reason: PlaintextReason::NoTlsFromRemote },
            vec![("tls", "no_identity"), ("no_tls_reason", "no_tls_from_remote")],
        ),
        (
            Security::Refused { reason: RefusalReason::UnknownIssuer, peer: Some(peer()) },
            vec![("tls", "no_identity"), ("no_tls_reason", "unknown_issuer")],
        ),
    ] {
        let metrics = Metrics::new();
        let held = metrics.transport(
            Direction::Inbound,
            Side::Source,
            addr(8080),
            addr(8080),
            &security,
            &Labels::default(),
        );
        let text = metrics.encode().expect("encodes");
        let labels = &labels_of(&text, "tcp_open_total")[0];
        let names: Vec<_> = labels.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..5], ["direction", "peer", "target_addr", "target_ip", "target_port"], "{text}");
        let rest: Vec<_> = labels[5..].iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(rest, wanted);
        drop(held);
    }
}

#[test]
fn the_series_that_dashboards_rely_on_are_there() {
    let metrics = Metrics::new();
    let security = Security::Mutual { peer: peer(), tls: TlsSession::default() };
    let labels = Labels::new([("srv_name", "web-http"), ("authz_name", "default:all-authenticated")]);
    metrics.inbound_authz(Verdict::Allow, addr(80), &security, &labels);
    metrics.inbound_authz(Verdict::Deny, addr(80), &security, &labels);
    metrics.inbound_authz(Verdict::Terminate, addr(80), &security, &labels);
    metrics.identity().failed();
    let text = metrics.encode().expect("encodes");
    assert!(text.ends_with("# EOF\n"));
    for name in [
        "control_identity_cert_expiration_timestamp_seconds",
        "control_identity_cert_refresh_timestamp_seconds",
        "control_identity_cert_refreshes_total",
        "inbound_tcp_authz_allow_total",
        "inbound_tcp_authz_deny_total",
        "inbound_tcp_authz_terminate_total",
        "proxy_build_info",
        "rustls_info",
        "process_start_time_seconds",
    ] {
        assert!(!labels_of(&text, name).is_empty(), "{name} is not in\n{text}");
    }
    let allow = &labels_of(&text, "inbound_tcp_authz_allow_total")[0];
    assert!(has(allow, "srv_name", "web-http") && has(allow, "client_id", peer().as_str()), "{allow:?}");
    for (name, kind) in [
        ("tcp_open", "counter"),
        ("tcp_open_connections", "gauge"),
        ("tcp_read_bytes", "counter"),
        ("tcp_write_bytes", "counter"),
        ("tcp_close", "counter"),
        ("request", "counter"),
        ("response", "counter"),
        ("response_latency_ms", "histogram"),
    ] {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}\n{text}");
    }
    let error = series(&text).into_iter().find(|(name, labels, _)| {
        name == "control_identity_cert_refreshes_total" && has(labels, "result", "error")
    });
    assert_eq!(error.map(|(.., value)| value), Some(1.0));
}

#[test]
fn label_sets_are_bounded_and_what_overflows_still_counts_as_secured_or_not() {
    let metrics = Metrics::new();
    let secure = Security::Mutual { peer: peer(), tls: TlsSession::default() };
    let plain = Security::Plaintext { reason: PlaintextReason::OutsideMesh };
    for port in 1..=10_000 {
        for security in [&secure, &plain] {
            metrics.transport(
                Direction::Outbound,
                Side::Destination,
                addr(port),
                addr(port),
                security,
                &Labels::default(),
            );
        }
    }
    let text = metrics.encode().expect("encodes");
    let all = labels_of(&text, "tcp_open_total");
    assert!((4_096..4_200).contains(&all.len()), "{}", all.len());
    let other: Vec<_> = all.iter().filter(|labels| has(labels, "target_addr", "other")).collect();
    assert_eq!(other.len(), 2);
    assert!(other.iter().any(|labels| has(labels, "tls", "true")));
    assert!(other.iter().any(|labels| has(labels, "no_tls_reason", "outside_mesh")));
    let overflow =
        series(&text).into_iter().find(|(name, ..)| name == "ringmail_label_sets_overflowed_total");
    assert_eq!(overflow.map(|(.., value)| value), Some(20_000.0 - 4_096.0));
}

#[test]
fn names_of_the_other_side_cannot_break_a_line_or_take_a_label_of_ours() {
    let metrics = Metrics::new();
    let security = Security::Plaintext { reason: PlaintextReason::NotProvidedByServiceDiscovery };
    let labels = Labels::new([("tls", "true"), ("pod", "a\"} 1\nfake_total{x=\"y"), ("namespace", "ballot")]);
    let _held =
        metrics.transport(Direction::Outbound, Side::Destination, addr(1), addr(1), &security, &labels);
    let text = metrics.encode().expect("encodes");
    assert!(labels_of(&text, "fake_total").is_empty());
    let open = &labels_of(&text, "tcp_open_total")[0];
    assert!(
        has(open, "tls", "no_identity")
            && has(open, "dst_tls", "true")
            && has(open, "dst_namespace", "ballot"),
        "{open:?}"
    );
    assert_eq!(open.iter().filter(|(key, _)| key == "tls").count(), 1);
}
