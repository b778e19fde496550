//! What came nearest when a tap shows nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use ringmail_api::linkerd::http_types::{HttpMethod, Scheme, http_method, scheme};
use ringmail_api::linkerd::tap::TapEvent;
use ringmail_api::linkerd::tap::tap_client::TapClient;
use ringmail_api::linkerd::tap::tap_event;
use ringmail_api::linkerd::tap::tap_event::http::{Event, RequestInit};
use ringmail_vocab::Protocol;
use tokio::time::{Instant, timeout_at};

use super::matching;
use super::observe::Tap;
use super::plan::{Plan, plural};
use crate::collect::{connect, now_ms};
use crate::names::NamedPod;

/// What is watched, and the nearest thing to it that these pods have.
pub(super) async fn describe(tap: &Tap) -> String {
    let chosen = tap.plan.chosen(tap.names.as_ref());
    let (pods, others): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|pod| pod.identity.is_some());
    let mut text = format!("nothing has matched yet; {}", tap.plan.describe(&pods));
    if !others.is_empty() {
        let names: Vec<_> = others.iter().take(5).map(|pod| pod.workload.pod.as_str()).collect();
        text.push_str("; without a proxy, so not watched: ");
        text.push_str(&names.join(", "));
    }
    let requests = if tap.plan.tcp { Vec::new() } else { look_around(tap, &pods).await };
    let nearest = match requests.iter().min_by_key(|request| request.differs.len()) {
        Some(request) if request.differs.is_empty() => {
            format!("{} (it matches: more may come)", request.text)
        }
        Some(request) => format!("{}, which differs in {}", request.text, request.differs.join(", ")),
        None => connections(tap, &pods),
    };
    format!("{text}\nnearest: {nearest}")
}

struct Request {
    text: String,
    /// The options that it does not fulfil.
    differs: Vec<&'static str>,
}

/// Any requests at all, for a short while, at a few of the pods.
async fn look_around(tap: &Tap, pods: &[Arc<NamedPod>]) -> Vec<Request> {
    let deadline = Instant::now() + LOOK;
    let mut looks: FuturesUnordered<_> =
        pods.iter().take(MAX_PODS).map(|pod| look_at(tap, pod, deadline)).collect();
    let mut found = Vec::new();
    while let Some(requests) = looks.next().await {
        found.extend(requests);
    }
    found
}

async fn look_at(tap: &Tap, pod: &NamedPod, deadline: Instant) -> Vec<Request> {
    let mut found = Vec::new();
    let look = async {
        let address = SocketAddr::new(*pod.ips.first()?, tap.port);
        let mut client = TapClient::new(connect(address).await.ok()?);
        let mut events = client.observe(matching::any_request(MAX_REQUESTS)).await.ok()?.into_inner();
        while let Ok(Some(event)) = events.message().await {
            found.extend(request(tap, &event));
        }
        Some(())
    };
    // What has been found until then is enough.
    let _ = timeout_at(deadline, look).await;
    found
}

fn request(tap: &Tap, event: &TapEvent) -> Option<Request> {
    let Some(tap_event::Event::Http(http)) = &event.event else { return None };
    let Some(Event::RequestInit(init)) = &http.event else { return None };
    let method = method(init.method.as_ref());
    let destination = event.destination.as_ref().and_then(|address| SocketAddr::try_from(*address).ok());
    let mut differs = http_differences(&tap.plan, init, &method);
    let to = tap.plan.to_ips(tap.names.as_ref());
    if to.is_some_and(|to| destination.is_none_or(|address| !to.contains(&address.ip().to_canonical()))) {
        differs.push("--to");
    }
    let text = format!("{method} {}{}", init.authority, init.path);
    let text = match destination {
        Some(destination) => format!("{text} to {destination}"),
        None => text,
    };
    Some(Request { text: crate::table::printable(&text), differs })
}

fn http_differences(plan: &Plan, init: &RequestInit, method: &str) -> Vec<&'static str> {
    let scheme = scheme(init.scheme.as_ref());
    let options = [
        ("--method", plan.method.is_empty() || plan.method == method),
        ("--path", init.path.starts_with(&plan.path)),
        ("--authority", plan.authority.is_empty() || plan.authority == init.authority),
        ("--scheme", plan.scheme.is_empty() || plan.scheme.eq_ignore_ascii_case(&scheme)),
    ];
    options.into_iter().filter(|(_, fits)| !fits).map(|(name, _)| name).collect()
}

/// No request came: what connections do these pods have?
fn connections(tap: &Tap, pods: &[Arc<NamedPod>]) -> String {
    let all = tap.store.view(now_ms());
    let open: Vec<_> = all
        .iter()
        .filter(|account| account.closed_at.is_none() && pods.iter().any(|pod| pod.uid == account.pod.uid))
        .collect();
    if open.is_empty() {
        return format!(
            "these {} have no open connection",
            if pods.len() == 1 { "pod's proxies" } else { "pods" }
        );
    }
    let http = open
        .iter()
        .filter(|account| matches!(account.flow.protocol, Protocol::Http1 | Protocol::Http2))
        .count();
    let other = open.len() - http;
    match (tap.plan.tcp, http, other) {
        (true, _, _) => {
            format!("{} open, none of them opened or closed meanwhile", plural(open.len(), "connection"))
        }
        (false, 0, _) => {
            format!("{} open that carry no HTTP; `--tcp` shows connections", plural(other, "connection"))
        }
        (false, _, 0) => format!("{} open for HTTP, without a request meanwhile", plural(http, "connection")),
        (false, _, _) => format!(
            "{} open for HTTP, without a request meanwhile, and {other} that carry no HTTP (`--tcp` shows them)",
            plural(http, "connection")
        ),
    }
}

fn method(method: Option<&HttpMethod>) -> String {
    match method.and_then(|method| method.r#type.as_ref()) {
        Some(http_method::Type::Registered(number)) => http_method::Registered::try_from(*number)
            .map_or_else(|_| String::new(), |m| m.as_str_name().to_owned()),
        Some(http_method::Type::Unregistered(text)) => text.clone(),
        None => String::new(),
    }
}

fn scheme(scheme: Option<&Scheme>) -> String {
    match scheme.and_then(|scheme| scheme.r#type.as_ref()) {
        Some(scheme::Type::Registered(number)) => scheme::Registered::try_from(*number)
            .map_or_else(|_| String::new(), |s| s.as_str_name().to_owned()),
        Some(scheme::Type::Unregistered(text)) => text.clone(),
        None => String::new(),
    }
}

const LOOK: Duration = Duration::from_secs(2);
const MAX_PODS: usize = 8;
const MAX_REQUESTS: u32 = 50;
