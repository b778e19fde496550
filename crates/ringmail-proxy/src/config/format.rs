//! How values are written (wire.md 1.2).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use ringmail_identity::Identity;
use ringmail_identity::anchors::TrustAnchors;

use super::values::{ControlAddress, DefaultPolicy, LogFormat, PortSet};

/// A way to write a value.
pub(super) struct Format<T> {
    /// What is written, for errors and the documentation.
    pub(super) says: &'static str,
    /// Reads it. The error quotes what came.
    pub(super) read: fn(&str) -> Result<T, String>,
    /// Whether an empty value is one, rather than unset.
    pub(super) takes_empty: bool,
}

const fn format<T>(says: &'static str, read: fn(&str) -> Result<T, String>) -> Format<T> {
    Format { says, read, takes_empty: false }
}

pub(super) const ADDRESS: Format<SocketAddr> = format("an address `IP:PORT`", address);
pub(super) const ADDRESS_LIST: Format<Vec<SocketAddr>> =
    format("one or two addresses `IP:PORT`, separated by a comma", addresses);
pub(super) const CONTROL_ADDRESS: Format<ControlAddress> =
    format("an address `IP:PORT` or `NAME:PORT`; `localhost.` (with the dot) is loopback", control_address);
pub(super) const IDENTITY: Format<Identity> =
    format("an identity, such as `web.ballot.serviceaccount.identity.ringmail.cluster.local`", identity);
pub(super) const PATH: Format<PathBuf> = format("a path", |text| Ok(PathBuf::from(text)));
pub(super) const TRUST_ANCHORS: Format<TrustAnchors> =
    format("PEM text with at least one CA certificate, not a path", trust_anchors);
pub(super) const TEXT: Format<String> = format("text", |text| Ok(text.to_owned()));
pub(super) const IPS: Format<BTreeSet<IpAddr>> =
    format("IP addresses, separated by commas", |text| list(text, "IP address"));
pub(super) const PORTS: Format<PortSet> = format("ports and ranges, such as `25,3306,9000-9010`", ports);
pub(super) const POLICY: Format<DefaultPolicy> = format(
    "`deny`, `all-authenticated`, `all-unauthenticated`, `cluster-authenticated`, `cluster-unauthenticated` or `audit`",
    policy,
);
pub(super) const NETWORKS: Format<Vec<IpNet>> =
    format("networks such as `10.0.0.0/8`, separated by commas", |text| list(text, "network"));
pub(super) const DURATION: Format<Duration> =
    format("a whole number with `ms`, `s`, `m`, `h` or `d`", duration);
pub(super) const OPTIONAL_DURATION: Format<Option<Duration>> = Format {
    says: "a whole number with `ms`, `s`, `m`, `h` or `d`, or an empty value for none",
    read: |text| if text.trim().is_empty() { Ok(None) } else { duration(text).map(Some) },
    takes_empty: true,
};
pub(super) const MARK: Format<u32> = format("a number from 1 to 4294967295, also as `0x…`", mark);
pub(super) const LOG_FILTER: Format<String> =
    format("a level (`error`, `warn`, `info`, `debug`, `trace`) or a list of `target=level`", log_filter);
pub(super) const LOG_FORMAT: Format<LogFormat> = format("`plain` or `json`", log_format);
pub(super) const CORES: Format<NonZeroUsize> = format("a whole number from 1 to 256", cores);

/// What came, short enough for a message.
fn quote(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{}`", short.escape_debug())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{} is no address with a port", quote(text)))
}

fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    let all = text.split(',').map(|part| address(part.trim())).collect::<Result<Vec<_>, _>>()?;
    if all.len() > 2 { Err(format!("{} has {} addresses", quote(text), all.len())) } else { Ok(all) }
}

fn control_address(text: &str) -> Result<ControlAddress, String> {
    if let Ok(addr) = text.parse() {
        return Ok(ControlAddress::Ip(addr));
    }
    let no = || format!("{} is no `IP:PORT` and no `NAME:PORT`", quote(text));
    let (name, port) = text.rsplit_once(':').ok_or_else(no)?;
    let port: u16 = port.parse().map_err(|_| no())?;
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let bare = name.strip_suffix('.').unwrap_or(name);
    // No top-level domain is a number: what looks like an address and is none is a mistake, not a name.
    let number = bare.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if port == 0 || bare.len() > 253 || !bare.split('.').all(label) || number {
        return Err(no());
    }
    Ok(ControlAddress::Name(name.to_owned(), port))
}

fn identity(text: &str) -> Result<Identity, String> {
    text.trim().parse().map_err(|error: ringmail_identity::NameError| error.to_string())
}

fn trust_anchors(text: &str) -> Result<TrustAnchors, String> {
    TrustAnchors::from_pem(text).map_err(|error| error.to_string())
}

/// Comma separated; blanks around and empty items are let pass.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn list<T: std::str::FromStr, C: FromIterator<T>>(text: &str, what: &str) -> Result<C, String> {
    items(text).map(|item| item.parse().map_err(|_| format!("{} is no {what}", quote(item)))).collect()
}

fn ports(text: &str) -> Result<PortSet, String> {
    let port = |text: &str, item: &str| match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{} is no port and no range", quote(item))),
    };
    let ranges = items(text).map(|item| {
        let (low, high) = item.split_once('-').unwrap_or((item, item));
        let (low, high) = (port(low, item)?, port(high, item)?);
        if low <= high { Ok(low..=high) } else { Err(format!("{} ends before it begins", quote(item))) }
    });
    ranges.collect::<Result<Vec<_>, _>>().map(PortSet::new)
}

fn policy(text: &str) -> Result<DefaultPolicy, String> {
    let known = DefaultPolicy::ALL.iter().find(|policy| policy.label() == text.trim());
    known.copied().ok_or_else(|| format!("{} is no default policy", quote(text)))
}

fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let no = || format!("{} is no duration", quote(text));
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| no())?;
    let per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if number == 0 => 0,
        "" => return Err(format!("{} has no unit", quote(text))),
        _ => return Err(no()),
    };
    // A century is longer than any of them can mean, and far from where adding to a time overflows.
    let ms = number.checked_mul(per_unit).filter(|ms| *ms <= 36_500 * 86_400_000);
    ms.map(Duration::from_millis).ok_or_else(|| format!("{} is longer than a century", quote(text)))
}

fn mark(text: &str) -> Result<u32, String> {
    let text = text.trim();
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.ok().filter(|mark| *mark != 0).ok_or_else(|| format!("{} is no mark", quote(text)))
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{}: {error}", quote(text))),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text.trim() {
        "plain" => Ok(LogFormat::Plain),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("{} is no format", quote(other))),
    }
}

fn cores(text: &str) -> Result<NonZeroUsize, String> {
    let parsed = text.trim().parse::<NonZeroUsize>().ok().filter(|cores| cores.get() <= 256);
    parsed.ok_or_else(|| format!("{} is no number of threads", quote(text)))
}
