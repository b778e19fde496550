//! Tap over the network: which proxies are asked what, and what comes back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ringmail_api::linkerd::http_types::{Headers, headers::Header};
use ringmail_api::linkerd::tap::TapEvent;
use ringmail_api::linkerd::tap::tap_event::http::{Event, RequestInit, StreamId};
use ringmail_api::linkerd::tap::tap_event::{EndpointMeta, Event as TapEventKind, Http, ProxyDirection};
use ringmail_api::viz::{TapItem, TapRequest, tap_item};
use ringmail_viz::client::{Tap, VizClient};
use ringmail_viz::names::NamedPod;
use ringmail_viz::tap::{Format, Printed};
use ringmail_vocab::{Flow, PlaintextReason};

use crate::fake::{FakeProxy, Pods, addresses, until, viz};
use crate::support::{address as socket, ended, inbound, plain};

const PORT: u16 = 24_191;

fn request(kind: &str, name: &str) -> TapRequest {
    TapRequest {
        kind: kind.to_owned(),
        name: name.to_owned(),
        namespace: "ballot".to_owned(),
        ..TapRequest::default()
    }
}

fn get(source: IpAddr, destination: SocketAddr, direction: ProxyDirection, path: &str) -> TapEvent {
    let header = |name: &str, value: &str| Header { name: name.to_owned(), value: value.as_bytes().to_vec() };
    TapEvent {
        source: Some(SocketAddr::new(source, 40_000).into()),
        source_meta: Some(EndpointMeta { labels: [("tls".to_owned(), "true".to_owned())].into() }),
        destination: Some(destination.into()),
        proxy_direction: direction.into(),
        event: Some(TapEventKind::Http(Http {
            event: Some(Event::RequestInit(RequestInit {
                id: Some(StreamId { base: 0, stream: 1 }),
                method: Some(http::Method::GET.into()),
                scheme: Some("http".into()),
                authority: "web.ballot:80".to_owned(),
                path: path.to_owned(),
                headers: Some(Headers {
                    headers: vec![header("Authorization", "Bearer s3cr3t"), header("accept", "*/*")],
                }),
            })),
        })),
        ..TapEvent::default()
    }
}

/// Waits for the tap to reach the proxy, then lets the event happen.
async fn happens(proxy: &FakeProxy, event: TapEvent) {
    until(async || proxy.happens(event.clone()).then_some(())).await;
}

async fn next(tap: &mut Tap) -> TapItem {
    let item =
        tokio::time::timeout(Duration::from_secs(10), tap.next()).await.expect("an item in ten seconds");
    item.expect("a tap that goes on").expect("an item")
}

async fn line(tap: &mut Tap, format: Format) -> String {
    match format.print(&next(tap).await).expect("readable") {
        Some(Printed::Out(text)) => text,
        other => panic!("no line: {other:?}"),
    }
}

struct Mesh {
    viz: VizClient,
    bot: Arc<NamedPod>,
    web: Arc<NamedPod>,
    bot_proxy: FakeProxy,
    web_proxy: FakeProxy,
}

async fn mesh() -> Mesh {
    let mut address = addresses();
    let (bot, web, legacy) = (address("bot"), address("web"), address("legacy"));
    let bot_proxy = FakeProxy::of(&bot, PORT, vec![]).await;
    let web_proxy = FakeProxy::of(&web, PORT, vec![]).await;
    let viz = viz(&Pods::new(vec![bot.clone(), web.clone(), legacy]), PORT).await;
    Mesh { viz, bot, web, bot_proxy, web_proxy }
}

#[tokio::test]
async fn a_request_at_a_chosen_pod_comes_out_with_the_names_of_both_ends() {
    let mut mesh = mesh().await;
    let mut tap = mesh.viz.tap(request("deployment", "web")).await.expect("a tap");
    happens(
        &mesh.web_proxy,
        get(mesh.bot.ips[0], socket(&mesh.web, 8080), ProxyDirection::Inbound, "/api/vote"),
    )
    .await;
    let item = next(&mut tap).await;
    let Some(Printed::Out(text)) = Format::Wide.print(&item).expect("readable") else {
        panic!("no line: {item:?}")
    };
    assert!(
        text.starts_with("req id=0:1 proxy=in  src=127.") && text.contains(" tls=true :method=GET "),
        "{text}"
    );
    for label in [
        "src_deployment=bot",
        "src_pod=bot-0",
        "src_namespace=ballot",
        "dst_deployment=web",
        "dst_serviceaccount=web",
    ] {
        assert!(text.contains(label), "{label} in {text}");
    }
    assert!(mesh.bot_proxy.asked().is_empty(), "only the chosen pods are asked");
}

#[tokio::test]
async fn headers_are_sent_on_request_only_and_secrets_never() {
    let mut mesh = mesh().await;
    for headers in [false, true] {
        let mut tap = mesh.viz.tap(TapRequest { headers, ..request("pod", "web-0") }).await.expect("a tap");
        let asked = mesh.web_proxy.asked().len();
        let web = mesh.web_proxy.clone();
        until(async || (web.asked().len() > asked).then_some(())).await;
        happens(&mesh.web_proxy, get(mesh.bot.ips[0], socket(&mesh.web, 8080), ProxyDirection::Inbound, "/"))
            .await;
        let text = line(&mut tap, Format::Json).await;
        assert!(!text.contains("s3cr3t"), "{text}");
        assert_eq!(text.contains("\"accept\""), headers, "{text}");
        assert_eq!(text.contains("\"valueStr\": \"redacted\""), headers, "{text}");
        let last = mesh.web_proxy.asked().pop().expect("asked");
        assert_eq!(last.extract.is_some(), headers);
    }
}

#[tokio::test]
async fn to_shows_what_goes_there_and_nothing_else() {
    let mut mesh = mesh().await;
    let to = TapRequest {
        to_kind: "deployment".to_owned(),
        to_name: "web".to_owned(),
        ..request("deployment", "bot")
    };
    let mut tap = mesh.viz.tap(to).await.expect("a tap");
    let own = mesh.bot.ips[0];
    let elsewhere = SocketAddr::new([127, 0, 0, 77].into(), 8080);
    happens(&mesh.bot_proxy, get(own, elsewhere, ProxyDirection::Outbound, "/elsewhere")).await;
    happens(
        &mesh.bot_proxy,
        get(mesh.web.ips[0], socket(&mesh.bot, 8080), ProxyDirection::Inbound, "/inbound"),
    )
    .await;
    happens(&mesh.bot_proxy, get(own, socket(&mesh.web, 8080), ProxyDirection::Outbound, "/there")).await;
    assert!(line(&mut tap, Format::Default).await.contains(":path=/there"));
}

#[tokio::test]
async fn a_limit_on_requests_a_second_holds() {
    let mut mesh = mesh().await;
    let mut tap =
        mesh.viz.tap(TapRequest { max_rps: 2.0, ..request("deployment", "web") }).await.expect("a tap");
    let event =
        |n: u32| get(mesh.bot.ips[0], socket(&mesh.web, 8080), ProxyDirection::Inbound, &format!("/{n}"));
    happens(&mesh.web_proxy, event(0)).await;
    let begin = std::time::Instant::now();
    assert!(line(&mut tap, Format::Default).await.contains(":path=/0"));
    assert!(mesh.web_proxy.happens(event(1)));
    assert!(line(&mut tap, Format::Default).await.contains(":path=/1"));
    // The two of this second are used up: the next stream begins when it is over.
    let asked = mesh.web_proxy.asked().len();
    assert_eq!(mesh.web_proxy.asked()[0].limit, 2);
    let web = mesh.web_proxy.clone();
    until(async || (web.asked().len() > asked).then_some(())).await;
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn when_nothing_matches_a_note_says_what_is_watched_and_what_came_nearest() {
    let mut mesh = mesh().await;
    for (path, nearest) in [("/nowhere", "nearest: GET web.ballot:80/api/vote to 127."), ("/api", "")] {
        let filtered = TapRequest {
            path: path.to_owned(),
            authority: "other".to_owned(),
            ..request("deployment", "web")
        };
        let mut tap = mesh.viz.tap(filtered).await.expect("a tap");
        let event = get(mesh.bot.ips[0], socket(&mesh.web, 8080), ProxyDirection::Inbound, "/api/vote");
        let web = mesh.web_proxy.clone();
        let noise = tokio::spawn(async move {
            loop {
                web.happens(event.clone());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let first = next(&mut tap).await;
        noise.abort();
        match first.item {
            Some(tap_item::Item::Note(note)) => {
                let watching = "nothing has matched yet; watching 1 pod for --path=/nowhere --authority=other at deployment/web in namespace ballot: web-0\n";
                assert!(note.text.starts_with(watching), "{}", note.text);
                assert!(
                    note.text.contains(nearest)
                        && note.text.ends_with("which differs in --path, --authority"),
                    "{}",
                    note.text
                );
            }
            // The twin: what matches is shown, and no note is due.
            Some(tap_item::Item::Event(_)) => assert!(nearest.is_empty()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn nothing_to_tap_is_an_error_that_says_why() {
    let mut mesh = mesh().await;
    let text =
        |result: Result<Tap, ringmail_viz::client::ClientError>| result.expect_err("refused").to_string();
    let missing = text(mesh.viz.tap(request("deployment", "nothing")).await);
    assert_eq!(
        missing,
        "RM1702: no pods to tap for type=\"deployment\" name=\"nothing\" in namespace \"ballot\""
    );
    let unmeshed = text(mesh.viz.tap(request("deployment", "legacy")).await);
    assert!(unmeshed.contains("1 pods found without a proxy of this mesh:\n\t* legacy-0\n"), "{unmeshed}");
    let selected =
        text(mesh.viz.tap(TapRequest { selector: "app=emoji".to_owned(), ..request("pod", "") }).await);
    assert!(selected.contains("with labels \"app=emoji\""), "{selected}");
    for wrong in [
        TapRequest { selector: "=".to_owned(), ..request("pod", "") },
        TapRequest { kind: "service".to_owned(), ..request("", "web") },
        TapRequest { max_rps: -1.0, ..request("pod", "") },
        TapRequest { max_rps: f32::NAN, ..request("pod", "") },
        TapRequest { tcp: true, method: "GET".to_owned(), ..request("pod", "") },
    ] {
        assert!(text(mesh.viz.tap(wrong.clone()).await).starts_with("RM1701: "), "{wrong:?}");
    }
    assert!(mesh.viz.tap(TapRequest { selector: "app=web".to_owned(), ..request("pod", "") }).await.is_ok());
}

#[tokio::test]
async fn connections_are_shown_as_they_open_and_close() {
    let mut mesh = mesh().await;
    let mut tap =
        mesh.viz.tap(TapRequest { tcp: true, ..request("deployment", "web") }).await.expect("a tap");
    let now = || {
        u64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis())
            .expect("fits")
    };
    let flow = inbound(&mesh.bot, &mesh.web, 1, plain(PlaintextReason::NoTlsFromRemote));
    let (web, told) = (mesh.web_proxy.clone(), Flow { opened_ms: now() + 1_000, ..flow });
    let open = told.clone();
    let telling = tokio::spawn(async move {
        // Until viz watches, nobody hears it.
        loop {
            web.tell(open.clone());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let text = line(&mut tap, Format::Default).await;
    telling.abort();
    assert!(
        text.starts_with("open  id=1001 proxy=in  src=127.") && text.ends_with(" tls=no_tls_from_remote\n"),
        "{text}"
    );
    mesh.web_proxy.tell(ended(told.clone(), told.opened_ms + 250));
    let text = line(&mut tap, Format::Default).await;
    assert!(
        text.starts_with("close id=1001 proxy=in ")
            && text.ends_with("by=client reason=finished sent=10B received=20B duration=250ms\n"),
        "{text}"
    );
}

#[tokio::test]
async fn taps_are_bounded() {
    let mut mesh = mesh().await;
    let mut taps = Vec::new();
    for _ in 0..16 {
        taps.push(mesh.viz.tap(request("deployment", "web")).await.expect("a tap"));
    }
    let error = mesh.viz.tap(request("deployment", "web")).await.expect_err("one too many").to_string();
    assert!(error.starts_with("RM1706: "), "{error}");
    taps.clear();
    let mut client = mesh.viz.clone();
    until(async || client.tap(request("deployment", "web")).await.ok()).await;
}
