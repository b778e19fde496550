//! What is kept of what proxies say, and for how long.

use std::sync::Arc;

use ringmail_viz::names::{Named, NamedPod};
use ringmail_viz::store::{KEEP_MS, Store};
use ringmail_vocab::{Flow, FlowId};

use crate::support::{NOW, ended, mutual, outbound, pod};

fn store_of(pod: &Arc<NamedPod>) -> Store {
    let store = Store::default();
    store.expect(pod, NOW);
    store.connected(pod, "run-1", NOW);
    store
}

fn flow(bot: &NamedPod, web: &NamedPod, n: u16) -> Flow {
    Flow { opened_ms: NOW + 1, ..outbound(bot, web, n, mutual(web, &format!("e{n}"))) }
}

#[test]
fn a_flow_is_replaced_by_its_later_states_and_kept_for_ten_minutes_after_its_end() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let store = store_of(&bot);
    let open = flow(&bot, &web, 1);
    store.record(&bot, open.clone(), Some(Named::Pod(web.clone())), NOW + 10);
    store.record(&bot, Flow { sent: 99, ..open.clone() }, None, NOW + 20);
    let view = store.view(NOW + 20);
    assert_eq!((view.len(), view[0].flow.sent, view[0].first_seen), (1, 99, NOW + 10));
    assert_eq!(view[0].peer, Some(Named::Pod(web)), "the name is that of the first moment");
    store.record(&bot, ended(open, NOW + 30), None, NOW + 31);
    assert_eq!(store.view(NOW + 40)[0].closed_at, Some(NOW + 31));
    store.forget_old(NOW + 31 + KEEP_MS);
    assert_eq!(store.view(NOW).len(), 1);
    store.forget_old(NOW + 32 + KEEP_MS);
    assert_eq!(store.view(NOW).len(), 0);
}

#[test]
fn a_new_run_of_a_proxy_ends_what_the_old_one_held_open() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let store = store_of(&bot);
    store.record(&bot, flow(&bot, &web, 1), None, NOW + 10);
    store.connected(&bot, "run-2", NOW + 100);
    store.record(&bot, Flow { sent: 5, ..flow(&bot, &web, 1) }, None, NOW + 110);
    let mut view = store.view(NOW + 120);
    view.sort_by_key(|account| account.closed_at);
    let states: Vec<_> = view.iter().map(|account| (account.run.as_str(), account.closed_at)).collect();
    assert_eq!(states, [("run-2", None), ("run-1", Some(NOW + 100))]);
}

#[test]
fn a_stream_that_begins_again_tells_what_is_open_anew() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let store = store_of(&bot);
    let (one, two) = (flow(&bot, &web, 1), flow(&bot, &web, 2));
    store.record(&bot, one.clone(), None, NOW + 10);
    store.record(&bot, two.clone(), None, NOW + 10);
    store.record(&bot, ended(two.clone(), NOW + 11), None, NOW + 11);
    store.lost(&bot, "cut", NOW + 20);
    store.connected(&bot, "run-1", NOW + 30);
    // The snapshot: the closed one again, and the open one is gone.
    store.record(&bot, ended(two, NOW + 11), None, NOW + 31);
    let view = store.view(NOW + 40);
    assert_eq!(view.len(), 1, "{view:?}");
    assert_eq!(view[0].flow.id, FlowId(2));
}

#[test]
fn a_proxy_that_is_not_heard_is_told_and_its_open_connections_age() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let store = store_of(&bot);
    store.record(&bot, flow(&bot, &web, 1), None, NOW + 10);
    assert_eq!((store.unobserved(NOW + 60_000), store.witnesses().len()), (vec![], 1));
    store.lost(&bot, "RM1703: cut", NOW + 20);
    assert_eq!(store.view(NOW + 21)[0].closed_at, None, "a blink is no end");
    assert_eq!(store.view(NOW + 60_000)[0].closed_at, Some(NOW + 20));
    assert_eq!(
        (store.unobserved(NOW + 60_000), store.witnesses().len()),
        (vec!["ballot/bot-0: RM1703: cut".to_owned()], 0)
    );
    store.gone(&bot.uid, NOW + 70_000);
    assert_eq!(store.unobserved(NOW + 90_000), Vec::<String>::new(), "a pod that is gone is not missed");
}

#[test]
fn the_store_is_bounded_and_says_what_it_does_not_keep() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let store = store_of(&bot);
    for n in 0..20_500 {
        store.record(&bot, Flow { id: FlowId(n), ..flow(&bot, &web, 1) }, None, NOW + 10);
    }
    assert_eq!(store.view(NOW + 10).len(), 20_000);
    assert_eq!(store.unobserved(NOW + 20), ["ballot/bot-0: 500 connections beyond the 20000 that are kept"]);
    let before = store.witnesses()[&bot.uid].complete_since;
    for n in 0..5_100 {
        let closed = ended(Flow { id: FlowId(100_000 + n), ..flow(&bot, &web, 1) }, NOW + 100 + n);
        store.record(&bot, closed, None, NOW + 10_000);
    }
    assert_eq!(store.view(NOW + 10).len(), 25_000);
    let after = store.witnesses()[&bot.uid].complete_since;
    assert!(
        after > before && after == NOW + 100 + 100,
        "what was forgotten is not held against the other ends: {after}"
    );
}

#[test]
fn connections_that_were_forgotten_or_missed_are_admitted_while_they_would_count() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let store = store_of(&bot);
    let end = |n: u64| ended(Flow { id: FlowId(n), ..flow(&bot, &web, 1) }, NOW + n);
    for n in 0..5_000 {
        store.record(&bot, end(n), None, NOW + 10_000);
    }
    assert_eq!(store.forgotten(NOW), Vec::<String>::new(), "all are kept");
    store.record(&bot, end(5_000), None, NOW + 10_000);
    let told = ["ballot/bot-0: more connections ended than are kept; the earlier ones are not counted"];
    assert_eq!(store.forgotten(NOW), told);
    assert_eq!(store.forgotten(NOW + 1), Vec::<String>::new(), "it would not count any more");
    store.missed(&bot, NOW + 20_000);
    assert_eq!(store.forgotten(NOW + 20_000), told);
}

#[test]
fn openings_and_closings_are_news_once_and_snapshots_are_none() {
    let (bot, web) = (pod("bot", 1), pod("web", 2));
    let store = store_of(&bot);
    let mut events = store.events();
    let old = Flow { opened_ms: NOW - 1, ..flow(&bot, &web, 1) };
    store.record(&bot, old.clone(), None, NOW + 10);
    let young = flow(&bot, &web, 2);
    store.record(&bot, young.clone(), None, NOW + 10);
    store.record(&bot, Flow { sent: 77, ..young.clone() }, None, NOW + 11);
    store.record(&bot, ended(young, NOW + 12), None, NOW + 12);
    store.record(&bot, ended(old, NOW + 13), None, NOW + 13);
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        told.push((event.account.flow.id.0, event.account.closed_at.is_some()));
    }
    assert_eq!(told, [(2, false), (2, true), (1, true)]);
}
