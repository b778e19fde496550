//! Connections become rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringmail_api::viz::Edge;
use ringmail_viz::edges::{Edges, Query, edges};
use ringmail_viz::join::{Account, join};
use ringmail_viz::names::{Named, NamedPod};
use ringmail_viz::resource::Kind;
use ringmail_vocab::{PlaintextReason, RefusalReason, Security, WorkloadRef};

use crate::support::{NOW, SETTLE, account, ended, inbound, mutual, outbound, plain, pod, unmeshed};

fn query() -> Query {
    Query {
        kind: Kind::Deployment,
        namespace: Some("ballot".to_owned()),
        window_ms: 60_000,
        mesh_traffic: false,
        control_plane_namespace: "ringmail".to_owned(),
    }
}

fn rows_of(accounts: &[Arc<Account>], query: &Query) -> Edges {
    edges(&join(accounts, &BTreeMap::new(), NOW, SETTLE), query, NOW)
}

fn cells(edges: &[Edge]) -> Vec<(String, String)> {
    edges.iter().map(|edge| (format!("{}>{}", edge.src, edge.dst), edge.secured.clone())).collect()
}

fn pair(client: &Arc<NamedPod>, server: &Arc<NamedPod>, n: u16) -> [Arc<Account>; 2] {
    let exporter = format!("e-{}-{}-{n}", client.uid, server.uid);
    [
        account(client, server, outbound(client, server, n, mutual(server, &exporter))),
        account(server, client, inbound(client, server, n, mutual(client, &exporter))),
    ]
}

#[test]
fn the_voting_application_prints_its_four_rows() {
    let (bot, web, emoji, legacy) =
        (pod("vote-bot", 1), pod("web", 2), pod("emoji", 3), unmeshed("legacy", 4));
    let mut all: Vec<_> = [pair(&bot, &web, 1), pair(&web, &emoji, 2), pair(&bot, &web, 3)].concat();
    all.push(account(&web, &legacy, inbound(&legacy, &web, 4, plain(PlaintextReason::NoTlsFromRemote))));
    let rows = rows_of(&all, &query()).rows;
    let expected = [("legacy>web", "No TLS From Remote"), ("vote-bot>web", "√"), ("web>emoji", "√")];
    assert_eq!(cells(&rows), expected.map(|(pair, text)| (pair.to_owned(), text.to_owned())));
    assert_eq!((rows[1].connections, rows[1].secured_connections), (2, 2));
    assert_eq!(rows[1].client_id, bot.identity.as_ref().expect("meshed").to_string());
    assert_eq!(rows[0].client_id, "", "nothing was proven");
    assert_eq!(
        (rows[1].groups.clone(), rows[1].ports.clone()),
        (vec!["X25519MLKEM768".to_owned()], vec![8080])
    );
}

#[test]
fn one_insecure_connection_among_five_is_not_hidden() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let mut all: Vec<_> = [pair(&bot, &web, 1), pair(&bot, &web, 2), pair(&bot, &web, 3)].concat();
    assert_eq!(cells(&rows_of(&all, &query()).rows)[0].1, "√");
    for n in [4, 5] {
        all.push(account(&web, &bot, inbound(&bot, &web, n, plain(PlaintextReason::NoTlsFromRemote))));
    }
    let row = rows_of(&all, &query()).rows.remove(0);
    assert_eq!(
        (row.secured.as_str(), row.reason.as_str()),
        ("× 2 of 5: No TLS From Remote", "no_tls_from_remote")
    );
}

#[test]
fn a_failed_handshake_is_listed_with_its_words() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let refused = Security::Refused { reason: RefusalReason::UnknownIssuer, peer: None };
    let one = account(&bot, &web, ended(outbound(&bot, &web, 1, refused), NOW - 5_000));
    assert_eq!(cells(&rows_of(&[one], &query()).rows)[0].1, "Refused: Unknown Issuer");
}

#[test]
fn closed_connections_count_for_the_window_and_open_ones_always() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    for (age, counted) in [(59_000, 1), (61_000, 0)] {
        let [client, server] = pair(&bot, &web, 1);
        let close =
            |account: &Arc<Account>| Arc::new(Account { closed_at: Some(NOW - age), ..(**account).clone() });
        assert_eq!(rows_of(&[close(&client), close(&server)], &query()).rows.len(), counted);
        assert_eq!(
            rows_of(&[close(&client), server.clone()], &query()).rows.len(),
            1,
            "one end still holds it open"
        );
    }
}

#[test]
fn a_young_lone_account_is_left_out_unless_it_is_the_only_one() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let young = account(&bot, &web, outbound(&bot, &web, 9, mutual(&web, "young")));
    let young = Arc::new(Account { first_seen: NOW - 100, ..(*young).clone() });
    let alone = rows_of(std::slice::from_ref(&young), &query());
    assert_eq!((cells(&alone.rows)[0].1.as_str(), alone.unsettled), ("One Witness: client", true));
    let mut all = pair(&bot, &web, 1).to_vec();
    all.push(young);
    let together = rows_of(&all, &query());
    assert_eq!(
        (cells(&together.rows)[0].1.as_str(), together.rows[0].connections, together.unsettled),
        ("√", 1, false)
    );
}

#[test]
fn rows_are_between_resources_of_the_asked_kind_and_touch_the_asked_namespace() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let other = |namespace: &str| Query { namespace: Some(namespace.to_owned()), ..query() };
    let all = pair(&bot, &web, 1);
    assert_eq!(rows_of(&all, &other("elsewhere")).rows.len(), 0);
    assert_eq!(rows_of(&all, &Query { namespace: None, ..query() }).rows.len(), 1);
    assert_eq!(rows_of(&all, &Query { kind: Kind::StatefulSet, ..query() }).rows.len(), 0);
    let pods = rows_of(&all, &Query { kind: Kind::Pod, ..query() }).rows;
    assert_eq!(cells(&pods)[0].0, "bot-0>web-0");
    // A kubelet's probe and an unknown address are no deployment.
    let probe = inbound(&bot, &web, 2, plain(PlaintextReason::NoTlsFromRemote));
    for peer in [Some(Named::Node), None] {
        let from_node = Arc::new(Account { peer, ..(*account(&web, &bot, probe.clone())).clone() });
        assert_eq!(rows_of(&[from_node], &query()).rows.len(), 0);
    }
}

#[test]
fn the_meshs_own_traffic_is_listed_only_where_it_is_asked_for() {
    let in_ringmail = |name: &str, host| {
        let mut pod = (*pod(name, host)).clone();
        pod.workload = WorkloadRef { namespace: "ringmail".to_owned(), ..pod.workload };
        Arc::new(pod)
    };
    let (web, identity, viz) = (pod("web", 2), in_ringmail("identity", 8), in_ringmail("viz", 9));
    let certify = account(&identity, &web, inbound(&web, &identity, 1, mutual(&web, "c")));
    let mut flows = pair(&viz, &web, 2);
    for account in &mut flows {
        let mut changed = (**account).clone();
        changed.flow.dst.set_port(4190);
        *account = Arc::new(changed);
    }
    let all: Vec<_> = std::iter::once(certify).chain(flows).collect();
    let asked = |namespace: Option<&str>, mesh_traffic| {
        let query = Query { namespace: namespace.map(str::to_owned), mesh_traffic, ..query() };
        cells(&rows_of(&all, &query).rows).into_iter().map(|(pair, _)| pair).collect::<Vec<_>>()
    };
    assert_eq!(asked(Some("ballot"), false), Vec::<String>::new());
    assert_eq!(asked(None, false), Vec::<String>::new());
    assert_eq!(asked(Some("ringmail"), false), ["viz>web"]);
    assert_eq!(asked(Some("ballot"), true), ["web>identity", "viz>web"]);
}

#[test]
fn a_proxy_whose_every_handshake_with_identity_is_refused_is_listed_unasked() {
    let mut identity = (*pod("identity", 8)).clone();
    identity.workload = WorkloadRef { namespace: "ringmail".to_owned(), ..identity.workload };
    let (identity, stranger) = (Arc::new(identity), pod("stranger", 2));
    let refused =
        |n, reason| account(&identity, &stranger, inbound(&stranger, &identity, n, refusal(reason)));
    let rows = |accounts: &[Arc<Account>]| -> Vec<_> {
        cells(&rows_of(accounts, &query()).rows).into_iter().collect()
    };

    let by_peer = [refused(1, RefusalReason::RefusedByPeer), refused(2, RefusalReason::RefusedByPeer)];
    assert_eq!(rows(&by_peer), [("stranger>identity".to_owned(), "Refused By Peer".to_owned())]);

    // A certificate that came in the end, or a control plane that was not there yet, is what every start looks like.
    let certified = account(&identity, &stranger, inbound(&stranger, &identity, 3, mutual(&stranger, "c")));
    assert_eq!(rows(&[by_peer[0].clone(), certified]), []);
    assert_eq!(rows(&[refused(4, RefusalReason::ConnectFailed)]), []);
}

fn refusal(reason: RefusalReason) -> Security {
    Security::Refused { reason, peer: None }
}
