//! Which requests a tap wants.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use ringmail_api::linkerd::http_types::{HttpMethod, Scheme, http_method, scheme};
use ringmail_api::linkerd::tap::ObserveRequest;
use ringmail_api::linkerd::tap::observe_request::Match;
use ringmail_api::linkerd::tap::observe_request::r#match as wire;
use ringmail_vocab::{Direction, PlaintextReason};
use ringmail_wire::http::RequestHead;

use super::Subject;

/// A tree of conditions (wire.md 8.2).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Matcher {
    All(Vec<Matcher>),
    Any(Vec<Matcher>),
    Not(Box<Matcher>),
    Source(Tcp),
    Destination(Tcp),
    Http(Http),
    DestinationLabel(String, String),
    /// This proxy gives no labels to routes, so nothing has one.
    RouteLabel,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tcp {
    Network(IpNet),
    Ports(RangeInclusive<u16>),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Http {
    Scheme(String),
    Method(String),
    Authority(Text),
    Path(Text),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Text {
    Exact(String),
    Prefix(String),
}

/// Why a request for a tap is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MatchError {
    #[error("`limit` is 0: a tap shows at least one request")]
    NoLimit,
    #[error("`{0}` is missing or empty")]
    Missing(&'static str),
    #[error("`netmask.mask` is {mask}, for {ip} it is 1 to {max}")]
    Mask { ip: IpAddr, mask: u32, max: u32 },
    #[error("`ports` {min} to {max} is no range of ports: min <= max <= 65535, and not both 0")]
    Ports { min: u32, max: u32 },
    #[error("`{0}` is a value that this proxy does not know")]
    Unknown(&'static str),
    #[error("`match` has more than {MAX_CONDITIONS} conditions or is nested deeper than {MAX_DEPTH}")]
    TooLarge,
}

impl Matcher {
    pub(super) fn of_request(request: &ObserveRequest) -> Result<Self, MatchError> {
        if request.limit == 0 {
            return Err(MatchError::NoLimit);
        }
        let mut budget = MAX_CONDITIONS;
        Self::of(request.r#match.as_ref().ok_or(MatchError::Missing("match"))?, &mut budget, MAX_DEPTH)
    }

    fn of(tree: &Match, budget: &mut usize, depth: usize) -> Result<Self, MatchError> {
        *budget = budget.checked_sub(1).ok_or(MatchError::TooLarge)?;
        let depth = depth.checked_sub(1).ok_or(MatchError::TooLarge)?;
        let mut seq = |seq: &wire::Seq, name| match &seq.matches[..] {
            [] => Err(MatchError::Missing(name)),
            parts => parts.iter().map(|part| Self::of(part, budget, depth)).collect::<Result<Vec<_>, _>>(),
        };
        Ok(match tree.r#match.as_ref().ok_or(MatchError::Missing("match"))? {
            wire::Match::All(parts) => Self::All(seq(parts, "all")?),
            wire::Match::Any(parts) => Self::Any(seq(parts, "any")?),
            wire::Match::Not(part) => Self::Not(Box::new(Self::of(part, budget, depth)?)),
            wire::Match::Source(tcp) => Self::Source(Tcp::of(tcp)?),
            wire::Match::Destination(tcp) => Self::Destination(Tcp::of(tcp)?),
            wire::Match::Http(http) => Self::Http(Http::of(http)?),
            wire::Match::DestinationLabel(label) => {
                let (key, value) = of_label(label)?;
                Self::DestinationLabel(key, value)
            }
            wire::Match::RouteLabel(label) => of_label(label).map(|_| Self::RouteLabel)?,
        })
    }

    pub(super) fn matches(&self, subject: &Subject, head: &RequestHead<'_>) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(subject, head)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(subject, head)),
            Self::Not(part) => !part.matches(subject, head),
            Self::Source(tcp) => tcp.matches(subject.src),
            Self::Destination(tcp) => tcp.matches(subject.dst),
            Self::Http(http) => http.matches(head),
            Self::DestinationLabel(key, value) => destination_label(subject, key) == Some(value.as_str()),
            Self::RouteLabel => false,
        }
    }
}

impl Tcp {
    fn of(tcp: &wire::Tcp) -> Result<Self, MatchError> {
        match tcp.r#match.as_ref().ok_or(MatchError::Missing("tcp"))? {
            wire::tcp::Match::Netmask(netmask) => {
                let ip = netmask.ip.ok_or(MatchError::Missing("netmask.ip"))?;
                let ip = IpAddr::try_from(ip).map_err(|_| MatchError::Missing("netmask.ip"))?;
                let max = if ip.is_ipv4() { 32 } else { 128 };
                let wrong = MatchError::Mask { ip, mask: netmask.mask, max };
                let prefix =
                    u8::try_from(netmask.mask).ok().filter(|prefix| *prefix > 0).ok_or(wrong.clone())?;
                Ok(Self::Network(IpNet::new(ip, prefix).map_err(|_| wrong)?))
            }
            wire::tcp::Match::Ports(range) => {
                let (min, max) = (range.min, range.max);
                let wrong = MatchError::Ports { min, max };
                let (low, high) = match (min, max) {
                    (0, 0) => return Err(wrong),
                    (0, port) | (port, 0) => (port, port),
                    both => both,
                };
                match (u16::try_from(low), u16::try_from(high)) {
                    (Ok(low), Ok(high)) if low <= high => Ok(Self::Ports(low..=high)),
                    _ => Err(wrong),
                }
            }
        }
    }

    fn matches(&self, addr: SocketAddr) -> bool {
        match self {
            Self::Network(network) => network.contains(&addr.ip().to_canonical()),
            Self::Ports(ports) => ports.contains(&addr.port()),
        }
    }
}

impl Http {
    fn of(http: &wire::Http) -> Result<Self, MatchError> {
        use wire::http::Match as Wire;
        Ok(match http.r#match.as_ref().ok_or(MatchError::Missing("http"))? {
            Wire::Scheme(scheme) => Self::Scheme(of_scheme(scheme)?),
            Wire::Method(method) => Self::Method(of_method(method)?),
            Wire::Authority(text) => Self::Authority(Text::of(text, "authority")?),
            Wire::Path(text) => Self::Path(Text::of(text, "path")?),
        })
    }

    fn matches(&self, head: &RequestHead<'_>) -> bool {
        match self {
            Self::Scheme(scheme) => head.scheme.eq_ignore_ascii_case(scheme),
            // Methods are case-sensitive (RFC 9110 9.1).
            Self::Method(method) => head.method == method.as_str(),
            Self::Authority(text) => text.matches(&head.authority),
            Self::Path(text) => text.matches(&head.path),
        }
    }
}

impl Text {
    fn of(text: &wire::http::StringMatch, name: &'static str) -> Result<Self, MatchError> {
        use wire::http::string_match::Match as Wire;
        Ok(match text.r#match.as_ref().ok_or(MatchError::Missing(name))? {
            Wire::Exact(text) => Self::Exact(text.clone()),
            Wire::Prefix(text) => Self::Prefix(text.clone()),
        })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
        }
    }
}

fn of_label(label: &wire::Label) -> Result<(String, String), MatchError> {
    if label.key.is_empty() || label.value.is_empty() {
        return Err(MatchError::Missing("label"));
    }
    Ok((label.key.clone(), label.value.clone()))
}

fn of_scheme(scheme: &Scheme) -> Result<String, MatchError> {
    match scheme.r#type.as_ref().ok_or(MatchError::Missing("scheme"))? {
        scheme::Type::Registered(number) => match scheme::Registered::try_from(*number) {
            Ok(scheme::Registered::Http) => Ok("http".to_owned()),
            Ok(scheme::Registered::Https) => Ok("https".to_owned()),
            Err(_) => Err(MatchError::Unknown("scheme")),
        },
        scheme::Type::Unregistered(text) => Ok(text.clone()),
    }
}

fn of_method(method: &HttpMethod) -> Result<String, MatchError> {
    match method.r#type.as_ref().ok_or(MatchError::Missing("method"))? {
        http_method::Type::Registered(number) => http_method::Registered::try_from(*number)
            .map(|method| method.as_str_name().to_owned())
            .map_err(|_| MatchError::Unknown("method")),
        http_method::Type::Unregistered(text) => Ok(text.clone()),
    }
}

/// A label of the destination as events show it: what protects it, or what discovery and policy say.
fn destination_label<'a>(subject: &'a Subject, key: &str) -> Option<&'a str> {
    match key {
        "tls" if subject.direction == Direction::Inbound => Some(PlaintextReason::Loopback.label()),
        "tls" => Some(subject.security.tap_label()),
        "server_id" if subject.direction == Direction::Outbound => {
            subject.security.proven_peer().map(ringmail_identity::Identity::as_str)
        }
        _ => subject
            .labels
            .iter()
            .find(|(name, _)| name.strip_prefix("dst_").unwrap_or(name) == key)
            .map(|(_, value)| value),
    }
}

const MAX_CONDITIONS: usize = 1_024;
const MAX_DEPTH: usize = 32;
