//! Edges over the network: proxies on loopback, viz, its client.

use std::sync::Arc;

use ringmail_api::viz::{EdgesRequest, EdgesResponse};
use ringmail_viz::client::VizClient;
use ringmail_viz::names::NamedPod;
use ringmail_vocab::{Flow, PlaintextReason};

use crate::fake::{FakeProxy, Pods, addresses, until, viz};
use crate::support::{inbound, mutual, outbound, plain};

const PORT: u16 = 24_190;

fn request() -> EdgesRequest {
    EdgesRequest { kind: "deployment".to_owned(), namespace: "ballot".to_owned(), ..EdgesRequest::default() }
}

async fn cells(viz: &mut VizClient) -> (Vec<String>, EdgesResponse) {
    let answer = viz.edges(request()).await.expect("an answer");
    let cells =
        answer.edges.iter().map(|edge| format!("{}>{} {}", edge.src, edge.dst, edge.secured)).collect();
    (cells, answer)
}

fn ends(client: &Arc<NamedPod>, server: &Arc<NamedPod>, n: u16) -> (Flow, Flow) {
    let exporter = format!("exporter-{n}");
    (
        outbound(client, server, n, mutual(server, &exporter)),
        inbound(client, server, n, mutual(client, &exporter)),
    )
}

#[tokio::test]
async fn both_ends_of_real_streams_make_the_mark_and_an_unmeshed_client_is_listed() {
    let mut address = addresses();
    let (bot, web, legacy) = (address("bot"), address("web"), address("legacy"));
    let (client, server) = ends(&bot, &web, 1);
    let stranger = inbound(&legacy, &web, 2, plain(PlaintextReason::NoTlsFromRemote));
    FakeProxy::of(&bot, PORT, vec![client]).await;
    FakeProxy::of(&web, PORT, vec![server, stranger]).await;
    let mut viz = viz(&Pods::new(vec![bot, web, legacy]), PORT).await;
    let (cells, answer) = cells(&mut viz).await;
    assert_eq!(cells, ["bot>web √", "legacy>web No TLS From Remote"]);
    assert_eq!(answer.unobserved, Vec::<String>::new());
    assert_eq!(answer.edges[0].groups, ["X25519MLKEM768"]);
}

#[tokio::test]
async fn an_end_that_reports_late_is_waited_for_and_never_flashes_as_one_witness() {
    let mut address = addresses();
    let (bot, web) = (address("bot"), address("web"));
    let (client, server) = ends(&bot, &web, 1);
    FakeProxy::of(&bot, PORT, vec![client]).await;
    let web_proxy = FakeProxy::of(&web, PORT, vec![]).await;
    let mut viz = viz(&Pods::new(vec![bot, web]), PORT).await;
    let asked = tokio::spawn(async move { cells(&mut viz).await.0 });
    // The server's end speaks while the question waits; before viz watches, nobody hears it.
    until(async || {
        web_proxy.tell(server.clone());
        asked.is_finished().then_some(())
    })
    .await;
    assert_eq!(asked.await.expect("an answer"), ["bot>web √"]);
}

#[tokio::test]
async fn an_end_that_never_reports_leaves_one_witness() {
    let mut address = addresses();
    let (bot, web) = (address("bot"), address("web"));
    let (client, _) = ends(&bot, &web, 1);
    FakeProxy::of(&bot, PORT, vec![client]).await;
    FakeProxy::of(&web, PORT, vec![]).await;
    let mut viz = viz(&Pods::new(vec![bot, web]), PORT).await;
    assert_eq!(cells(&mut viz).await.0, ["bot>web One Witness: client"]);
}

#[tokio::test]
async fn a_proxy_that_bears_another_name_is_not_believed_and_told_as_unobserved() {
    let mut address = addresses();
    let (bot, web, emoji) = (address("bot"), address("web"), address("emoji"));
    let (client, server) = ends(&bot, &web, 1);
    FakeProxy::of(&bot, PORT, vec![client]).await;
    let other = emoji.identity.as_ref().expect("meshed").to_string();
    FakeProxy::start(&web, PORT, &other, vec![server]).await;
    let mut viz = viz(&Pods::new(vec![bot, web]), PORT).await;
    let answer = until(async || {
        let (cells, answer) = cells(&mut viz).await;
        assert_eq!(cells, ["bot>web One Witness: client"]);
        (!answer.unobserved.is_empty()).then_some(answer)
    })
    .await;
    assert!(answer.unobserved[0].starts_with("ballot/web-0: RM1703: "), "{:?}", answer.unobserved);
    assert!(answer.unobserved[0].contains("`emoji.ballot.") && answer.unobserved[0].contains("`web.ballot."));
}

#[tokio::test]
async fn pods_that_come_later_are_watched_and_pods_that_go_keep_their_rows_for_the_window() {
    let mut address = addresses();
    let (bot, web) = (address("bot"), address("web"));
    let (client, server) = ends(&bot, &web, 1);
    FakeProxy::of(&bot, PORT, vec![client]).await;
    FakeProxy::of(&web, PORT, vec![server]).await;
    let pods = Pods::new(vec![]);
    let mut viz = viz(&pods, PORT).await;
    assert_eq!(cells(&mut viz).await.0, Vec::<String>::new());
    pods.set(vec![bot.clone(), web.clone()]);
    until(async || (cells(&mut viz).await.0 == ["bot>web √"]).then_some(())).await;
    pods.set(vec![bot]);
    for _ in 0..3 {
        assert_eq!(cells(&mut viz).await.0, ["bot>web √"]);
    }
}

#[tokio::test]
async fn a_kind_without_edges_is_refused_by_the_server_too() {
    let mut viz = viz(&Pods::new(vec![]), PORT).await;
    for (kind, fine) in
        [("deployment", true), ("pod", true), ("service", false), ("namespace", false), ("√", false)]
    {
        let result = viz.edges(EdgesRequest { kind: kind.to_owned(), ..request() }).await;
        assert_eq!(result.is_ok(), fine, "{kind}: {result:?}");
    }
}
