//! A plan in the words of the proxies' tap API (wire.md 8.2).

use std::collections::HashSet;
use std::net::IpAddr;

use ringmail_api::linkerd::http_types::{HttpMethod, Scheme, http_method, scheme};
use ringmail_api::linkerd::tap::ObserveRequest;
use ringmail_api::linkerd::tap::observe_request::extract::{
    Extract as ExtractKind, Http as ExtractHttp, http as extract_http,
};
use ringmail_api::linkerd::tap::observe_request::r#match::http::{
    Match as HttpMatch, StringMatch, string_match,
};
use ringmail_api::linkerd::tap::observe_request::r#match::tcp::{Match as TcpMatch, Netmask, PortRange};
use ringmail_api::linkerd::tap::observe_request::r#match::{Http, Match as Kind, Seq, Tcp};
use ringmail_api::linkerd::tap::observe_request::{Extract, Match};

use super::plan::Plan;

/// What one proxy is asked. `own` are the addresses of its pod: a destination is another pod.
pub(super) fn request(
    plan: &Plan,
    to: Option<&HashSet<IpAddr>>,
    own: &[IpAddr],
    limit: u32,
) -> ObserveRequest {
    let mut all = vec![everything()];
    if !plan.method.is_empty() {
        all.push(http(HttpMatch::Method(method(&plan.method))));
    }
    if !plan.path.is_empty() {
        all.push(http(HttpMatch::Path(string(string_match::Match::Prefix(plan.path.clone())))));
    }
    if !plan.authority.is_empty() {
        all.push(http(HttpMatch::Authority(string(string_match::Match::Exact(plan.authority.clone())))));
    }
    if !plan.scheme.is_empty() {
        all.push(http(HttpMatch::Scheme(self::scheme(&plan.scheme))));
    }
    // A proxy bounds its conditions; beyond that, events are chosen here alone.
    if let Some(to) = to.filter(|to| to.len() <= MAX_ADDRESSES) {
        let elsewhere = to.iter().filter(|ip| !own.contains(ip)).map(|ip| address(*ip)).collect::<Vec<_>>();
        if !elsewhere.is_empty() {
            all.push(wrap(Kind::Any(Seq { matches: elsewhere })));
        }
    }
    ObserveRequest {
        limit,
        r#match: Some(wrap(Kind::All(Seq { matches: all }))),
        extract: plan.headers.then(headers),
    }
}

/// Every request.
pub(super) fn any_request(limit: u32) -> ObserveRequest {
    ObserveRequest {
        limit,
        r#match: Some(wrap(Kind::All(Seq { matches: vec![everything()] }))),
        extract: None,
    }
}

/// An empty match is refused by proxies; every port is none.
fn everything() -> Match {
    wrap(Kind::Destination(Tcp { r#match: Some(TcpMatch::Ports(PortRange { min: 1, max: 65_535 })) }))
}

fn address(ip: IpAddr) -> Match {
    let mask = if ip.is_ipv4() { 32 } else { 128 };
    wrap(Kind::Destination(Tcp { r#match: Some(TcpMatch::Netmask(Netmask { ip: Some(ip.into()), mask })) }))
}

fn http(kind: HttpMatch) -> Match {
    wrap(Kind::Http(Http { r#match: Some(kind) }))
}

fn wrap(kind: Kind) -> Match {
    Match { r#match: Some(kind) }
}

fn string(kind: string_match::Match) -> StringMatch {
    StringMatch { r#match: Some(kind) }
}

fn method(name: &str) -> HttpMethod {
    let kind = match http_method::Registered::from_str_name(name) {
        Some(registered) => http_method::Type::Registered(registered.into()),
        None => http_method::Type::Unregistered(name.to_owned()),
    };
    HttpMethod { r#type: Some(kind) }
}

fn scheme(name: &str) -> Scheme {
    let kind = match scheme::Registered::from_str_name(&name.to_ascii_uppercase()) {
        Some(registered) => scheme::Type::Registered(registered.into()),
        None => scheme::Type::Unregistered(name.to_owned()),
    };
    Scheme { r#type: Some(kind) }
}

fn headers() -> Extract {
    let headers = extract_http::Extract::Headers(extract_http::Headers {});
    Extract { extract: Some(ExtractKind::Http(ExtractHttp { extract: Some(headers) })) }
}

const MAX_ADDRESSES: usize = 500;
