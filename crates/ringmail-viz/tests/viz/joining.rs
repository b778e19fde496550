//! When two accounts make a √, and the twin that does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringmail_viz::join::{
    Account, Connection, DIFFERENT_HANDSHAKES, DIFFERENT_NAMES, Verdict, Witness, join,
};
use ringmail_vocab::{PlaintextReason, RefusalReason, Security};

use crate::support::{NOW, SETTLE, account, ended, inbound, mutual, outbound, plain, pod, unmeshed};

fn joined(accounts: &[Arc<Account>]) -> Vec<Connection> {
    join(accounts, &BTreeMap::new(), NOW, SETTLE)
}

fn words(accounts: &[Arc<Account>]) -> &'static str {
    let connections = joined(accounts);
    assert_eq!(connections.len(), 1, "{connections:?}");
    connections[0].verdict.reason().map_or("√", |reason| reason.words)
}

#[test]
fn two_mutual_accounts_of_one_handshake_with_fitting_names_are_secured() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let client = account(&bot, &web, outbound(&bot, &web, 1, mutual(&web, "e1")));
    let server = account(&web, &bot, inbound(&bot, &web, 1, mutual(&bot, "e1")));
    let connections = joined(&[client, server]);
    assert_eq!(connections[0].verdict, Verdict::Secured);
    assert_eq!(connections[0].client_id(), bot.identity.as_ref());
    assert_eq!(connections[0].server_id(), web.identity.as_ref());
    assert_eq!(connections[0].session().map(|tls| tls.group.as_str()), Some("X25519MLKEM768"));
}

#[test]
fn ends_that_report_different_or_empty_exporters_are_not_secured() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    for (of_client, of_server, fits) in
        [("e1", "e1", true), ("e1", "e2", false), ("", "", false), ("e1", "", false)]
    {
        let client = account(&bot, &web, outbound(&bot, &web, 1, mutual(&web, of_client)));
        let server = account(&web, &bot, inbound(&bot, &web, 1, mutual(&bot, of_server)));
        let expected = if fits { "√" } else { DIFFERENT_HANDSHAKES.words };
        assert_eq!(words(&[client, server]), expected, "{of_client:?} and {of_server:?}");
    }
}

#[test]
fn a_name_that_the_proxy_does_not_bear_is_not_secured() {
    let (bot, web, emoji) = (pod("bot", 1), pod("web", 2), pod("emoji", 3));
    for (proven_to_client, proven_to_server, fits) in
        [(&web, &bot, true), (&emoji, &bot, false), (&web, &emoji, false)]
    {
        let client = account(&bot, &web, outbound(&bot, &web, 1, mutual(proven_to_client, "e1")));
        let server = account(&web, &bot, inbound(&bot, &web, 1, mutual(proven_to_server, "e1")));
        assert_eq!(words(&[client, server]), if fits { "√" } else { DIFFERENT_NAMES.words });
    }
}

#[test]
fn a_pod_without_an_identity_of_its_own_proves_nothing() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let nameless = unmeshed("web", 2);
    let client = account(&bot, &web, outbound(&bot, &web, 1, mutual(&web, "e1")));
    let server = account(&nameless, &bot, inbound(&bot, &web, 1, mutual(&bot, "e1")));
    assert_eq!(words(&[client, server]), DIFFERENT_NAMES.words);
}

#[test]
fn one_end_alone_is_one_witness() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let client = account(&bot, &web, outbound(&bot, &web, 1, mutual(&web, "e1")));
    let server = account(&web, &bot, inbound(&bot, &web, 1, mutual(&bot, "e1")));
    assert_eq!(words(std::slice::from_ref(&client)), "One Witness: client");
    assert_eq!(words(std::slice::from_ref(&server)), "One Witness: server");
    assert_eq!(words(&[client, server]), "√");
}

#[test]
fn an_exporter_is_used_once() {
    let (bot, web, liar) = (pod("bot", 1), pod("web", 2), pod("liar", 3));
    let client = account(&bot, &web, outbound(&bot, &web, 1, mutual(&web, "e1")));
    let server = account(&web, &bot, inbound(&bot, &web, 1, mutual(&bot, "e1")));
    // Another proxy claims the same session; the one whose names fit is the other end, the liar stands alone.
    let liar_says = account(&liar, &bot, inbound(&bot, &liar, 1, mutual(&bot, "e1")));
    for order in [[&client, &server, &liar_says], [&liar_says, &client, &server]] {
        let connections = joined(&order.map(Arc::clone));
        let secured: Vec<_> = connections.iter().filter(|c| c.verdict == Verdict::Secured).collect();
        assert_eq!((connections.len(), secured.len()), (2, 1));
        assert_eq!(secured[0].destination().map(|workload| workload.owner.as_str()), Some("web"));
    }
}

#[test]
fn a_client_that_believes_in_tls_and_a_server_that_refused_it_are_refused() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let refused = Security::Refused { reason: RefusalReason::UnknownIssuer, peer: None };
    let client = account(&bot, &web, outbound(&bot, &web, 1, mutual(&web, "e1")));
    let server = account(&web, &bot, ended(inbound(&bot, &web, 1, refused), NOW - 1_000));
    assert_eq!(words(&[client, server]), "Refused: Unknown Issuer");
}

#[test]
fn of_two_refusals_the_end_that_knows_why_is_heard() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let refused = |reason| Security::Refused { reason, peer: None };
    for (of_client, of_server, words_expected) in [
        (RefusalReason::RefusedByPeer, RefusalReason::CertificateExpired, "Refused: Certificate Expired"),
        (RefusalReason::WrongIdentity, RefusalReason::HandshakeFailed, "Refused: Wrong Identity"),
    ] {
        let client = account(&bot, &web, outbound(&bot, &web, 1, refused(of_client)));
        let server = account(&web, &bot, inbound(&bot, &web, 1, refused(of_server)));
        assert_eq!(words(&[client, server]), words_expected);
    }
}

#[test]
fn plaintext_ends_are_joined_by_addresses_and_one_is_enough() {
    let (bot, web, legacy) = (pod("bot", 1), pod("web", 2), unmeshed("legacy", 3));
    let client =
        account(&bot, &web, outbound(&bot, &web, 1, plain(PlaintextReason::NotProvidedByServiceDiscovery)));
    let server = account(&web, &bot, inbound(&bot, &web, 1, plain(PlaintextReason::NoTlsFromRemote)));
    assert_eq!(words(&[client.clone(), server]), "Not Provided By Service Discovery");
    assert_eq!(words(&[client]), "Not Provided By Service Discovery");
    let from_legacy =
        account(&web, &legacy, inbound(&legacy, &web, 1, plain(PlaintextReason::NoTlsFromRemote)));
    assert_eq!(words(&[from_legacy]), "No TLS From Remote");
}

#[test]
fn a_port_that_is_used_again_later_is_another_connection() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let client = account(&bot, &web, outbound(&bot, &web, 1, plain(PlaintextReason::PortSkipped)));
    for (apart, connections) in [(1_000, 1), (120_000, 2)] {
        let mut flow = inbound(&bot, &web, 1, plain(PlaintextReason::NoTlsFromRemote));
        flow.opened_ms += apart;
        let server = account(&web, &bot, flow);
        assert_eq!(joined(&[client.clone(), server]).len(), connections, "{apart} ms apart");
    }
}

#[test]
fn a_lone_account_is_pending_until_the_other_end_has_had_its_time() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let flow = outbound(&bot, &web, 1, mutual(&web, "e1"));
    for (age, pending) in [(0, true), (SETTLE - 1, true), (SETTLE, false)] {
        let young =
            Arc::new(Account { first_seen: NOW - age, ..(*account(&bot, &web, flow.clone())).clone() });
        let verdict = &joined(&[young])[0].verdict;
        assert_eq!(matches!(verdict, Verdict::Pending(_)), pending, "{age} ms: {verdict:?}");
    }
}

#[test]
fn what_ended_before_the_other_end_was_heard_is_not_held_against_it() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let client = account(&bot, &web, ended(outbound(&bot, &web, 1, mutual(&web, "e1")), NOW - 10_000));
    for (complete_since, unheard) in [(NOW - 5_000, true), (NOW - 20_000, false)] {
        let witnesses = BTreeMap::from([(web.uid.clone(), Witness { complete_since })]);
        let verdict = &join(std::slice::from_ref(&client), &witnesses, NOW, SETTLE)[0].verdict;
        assert_eq!(matches!(verdict, Verdict::Unheard(_)), unheard, "{verdict:?}");
    }
}
