//! The one property that all of viz stands on: √ is earned.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use ringmail_viz::edges::{Query, edges};
use ringmail_viz::join::{Account, Verdict, Witness, join};
use ringmail_viz::names::{Named, NamedPod};
use ringmail_viz::resource::Kind;
use ringmail_viz::table;
use ringmail_vocab::{Direction, Flow, PlaintextReason, RefusalReason, Security, TlsSession};

use crate::support::{NOW, SETTLE, account, identity, inbound, outbound, pod, unmeshed};

fn pods() -> Vec<Arc<NamedPod>> {
    vec![pod("bot", 1), pod("web", 2), pod("emoji", 3), unmeshed("legacy", 4)]
}

fn security() -> impl Strategy<Value = Security> {
    let tls = prop_oneof![Just(""), Just("e1"), Just("e2"), Just("e3")]
        .prop_map(|exporter| TlsSession { exporter: exporter.to_owned(), ..TlsSession::default() });
    // Mostly what fits, so that the mark is within reach and one change away.
    let peer = prop_oneof![4 => Just("bot"), 4 => Just("web"), 1 => Just("emoji"), 1 => Just("stranger")]
        .prop_map(identity);
    prop_oneof![
        6 => (peer.clone(), tls.clone()).prop_map(|(peer, tls)| Security::Mutual { peer, tls }),
        2 => (proptest::option::of(peer.clone()), tls).prop_map(|(peer, tls)| Security::ServerOnly { peer, tls }),
        1 => Just(Security::Passthrough { sni: "√".to_owned() }),
        2 => proptest::sample::select(PlaintextReason::ALL).prop_map(|reason| Security::Plaintext { reason }),
        2 => (proptest::sample::select(RefusalReason::ALL), proptest::option::of(peer))
            .prop_map(|(reason, peer)| Security::Refused { reason, peer }),
    ]
}

fn any_account() -> impl Strategy<Value = Arc<Account>> {
    (
        prop_oneof![4 => Just(0_usize), 1 => 0..4_usize],
        prop_oneof![4 => Just(1_usize), 1 => 0..4_usize],
        0..2_u16,
        any::<bool>(),
        security(),
        any::<bool>(),
        0..5_000_u64,
        proptest::option::of(0..90_000_u64),
    )
        .prop_map(|(client, server, n, is_client, security, known, age, ended)| {
            let pods = pods();
            let (client, server) = (&pods[client], &pods[server]);
            let (own, other, flow) = if is_client {
                (client, server, outbound(client, server, n, security))
            } else {
                (server, client, inbound(client, server, n, security))
            };
            let mut account = (*account(own, other, flow)).clone();
            account.peer = known.then(|| Named::Pod(other.clone()));
            account.first_seen = NOW - age;
            account.closed_at = ended.map(|ago| NOW - ago);
            Arc::new(account)
        })
}

/// Rule 1 of the design, in the plainest words.
fn is_earned(client: &Account, server: &Account) -> bool {
    let exporter = |flow: &Flow| flow.security.tls().map(|tls| tls.exporter.clone()).unwrap_or_default();
    let (Security::Mutual { peer: servers_name, .. }, Security::Mutual { peer: clients_name, .. }) =
        (&client.flow.security, &server.flow.security)
    else {
        return false;
    };
    client.flow.direction == Direction::Outbound
        && server.flow.direction == Direction::Inbound
        && !exporter(&client.flow).is_empty()
        && exporter(&client.flow) == exporter(&server.flow)
        && server.pod.identity.as_ref() == Some(servers_name)
        && client.pod.identity.as_ref() == Some(clients_name)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn nothing_but_two_fitting_witnesses_of_one_handshake_prints_the_mark(
        accounts in proptest::collection::vec(any_account(), 0..12),
        heard in proptest::collection::vec(0..20_000_u64, 4),
        kind in prop_oneof![Just(Kind::Pod), Just(Kind::Deployment)],
    ) {
        let witnesses: BTreeMap<_, _> = pods().iter().zip(heard)
            .map(|(pod, ago)| (pod.uid.clone(), Witness { complete_since: NOW - ago })).collect();
        let connections = join(&accounts, &witnesses, NOW, SETTLE);

        let used = connections.iter().flat_map(|c| [&c.client, &c.server]).flatten().count();
        prop_assert_eq!(used, accounts.len(), "each account is in exactly one connection");
        for connection in &connections {
            let earned = match (&connection.client, &connection.server) {
                (Some(client), Some(server)) => is_earned(client, server),
                _ => false,
            };
            prop_assert_eq!(connection.verdict == Verdict::Secured, earned, "{:?}", connection);
        }

        let query = Query {
            kind, namespace: None, window_ms: 60_000, mesh_traffic: true, control_plane_namespace: "ringmail".to_owned(),
        };
        let rows = edges(&connections, &query, NOW).rows;
        let mut expected: BTreeMap<(String, String), Vec<&Verdict>> = BTreeMap::new();
        for connection in &connections {
            let (Some(source), Some(destination)) = (connection.source(), connection.destination()) else { continue };
            if connection.closed_at().is_none_or(|at| at + 60_000 >= NOW) {
                expected.entry((source.owner.clone(), destination.owner.clone())).or_default().push(&connection.verdict);
            }
        }
        prop_assert_eq!(rows.len(), expected.len());
        for row in &rows {
            let name = |text: &str| text.trim_end_matches("-0").to_owned();
            let verdicts = &expected[&(name(&row.src), name(&row.dst))];
            let secured = verdicts.iter().filter(|verdict| ***verdict == Verdict::Secured).count();
            let refuted = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Not(_))).count();
            prop_assert_eq!(row.secured == "√", secured > 0 && refuted == 0, "{:?} from {:?}", row, verdicts);
            prop_assert_eq!(row.secured_connections, secured as u64);
            prop_assert_eq!(row.secured.contains('√'), row.secured == "√");
            prop_assert_eq!(row.reason.is_empty(), row.secured == "√");
        }
        let printed = table::table(&rows, false).matches('√').count();
        prop_assert_eq!(printed, rows.iter().filter(|row| row.secured == "√").count());
        let json: serde_json::Value = serde_json::from_str(&table::json(&rows).expect("JSON")).expect("JSON");
        let marked = json.as_array().expect("an array").iter().filter(|row| row["secured"] == true).count();
        prop_assert_eq!(marked, printed);
    }
}
