//! From annotations to the settings of one pod's proxy.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::OPTION_PREFIX;
use crate::error::{InjectError, Warning};
use crate::inject::{Namespace, Request};
use crate::options::{self, OPTIONS, Opt};
use crate::ports::Ports;
use crate::values::Values;

/// What one pod's proxy is told, each value checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) skip_inbound: Ports,
    pub(crate) skip_outbound: Ports,
    pub(crate) skip_subnets: Vec<IpNet>,
    pub(crate) opaque: Ports,
    pub(crate) policy: String,
    pub(crate) inbound_port: u16,
    pub(crate) outbound_port: u16,
    pub(crate) control_port: u16,
    pub(crate) admin_port: u16,
    pub(crate) image: String,
    pub(crate) version: String,
    pub(crate) pull_policy: String,
    /// `requests` and `limits`, by resource.
    pub(crate) requests: Map<String, Value>,
    pub(crate) limits: Map<String, Value>,
    /// Threads, from the CPU limit.
    pub(crate) cores: Option<u64>,
    pub(crate) uid: u32,
    pub(crate) gid: Option<u32>,
    pub(crate) awaited: bool,
    pub(crate) native: bool,
    pub(crate) wait_before_exit: u32,
    /// Variables of the proxy that are durations, by the part of their name after the prefix.
    pub(crate) durations: Vec<(&'static str, String)>,
    pub(crate) log_level: String,
    pub(crate) log_format: String,
    pub(crate) additional: Vec<Value>,
    pub(crate) warnings: Vec<Warning>,
}

impl Settings {
    pub(crate) fn read(request: &Request<'_>, values: &Values) -> Result<Self, InjectError> {
        let lookup = Lookup { request, options: &values.options, read: RefCell::default() };
        Self::collect(&lookup)
    }

    fn collect(lookup: &Lookup<'_>) -> Result<Self, InjectError> {
        let mut warnings = lookup.unknown();
        let mut ports = |name| lookup.ports(name, &mut warnings);
        let (skip_inbound, skip_outbound) = (ports("skip-inbound-ports")?, ports("skip-outbound-ports")?);
        let opaque = ports("opaque-ports")?;
        let port = |name| lookup.parse(name, |text| number(text, 1, u16::MAX).ok_or("a port is 1 to 65535"));
        let cpu_limit = lookup.quantity("proxy-cpu-limit")?;
        let resources = |suffix: &str| {
            let mut all = Map::new();
            for resource in ["cpu", "memory", "ephemeral-storage"] {
                if let Some(quantity) = lookup.quantity(&format!("proxy-{resource}-{suffix}"))? {
                    all.insert(resource.to_owned(), Value::String(quantity));
                }
            }
            Ok::<_, InjectError>(all)
        };
        let settings = Self {
            skip_inbound,
            skip_outbound,
            skip_subnets: lookup.parse("skip-subnets", networks)?,
            opaque,
            policy: lookup.one_of("default-inbound-policy", POLICIES)?,
            inbound_port: port("inbound-port")?,
            outbound_port: port("outbound-port")?,
            control_port: port("control-port")?,
            admin_port: port("admin-port")?,
            image: lookup.parse("proxy-image", word)?,
            version: lookup.parse("proxy-version", word)?,
            pull_policy: lookup.one_of("image-pull-policy", &["Always", "IfNotPresent", "Never"])?,
            requests: resources("request")?,
            limits: resources("limit")?,
            cores: cpu_limit.as_deref().and_then(cores),
            uid: lookup.parse("proxy-uid", |text| {
                number(text, 1, u32::MAX)
                    .ok_or("a number above 0, since uid 0 would exempt all of root's programs")
            })?,
            gid: lookup
                .optional("proxy-gid", |text| number(text, 0, u32::MAX).ok_or("a group id is a number"))?,
            awaited: lookup.one_of("proxy-await", &["enabled", "disabled"])? == "enabled",
            native: lookup.one_of("proxy-enable-native-sidecar", &["true", "false"])? == "true",
            wait_before_exit: lookup.parse("proxy-wait-before-exit-seconds", |text| {
                number(text, 0, 86_400).ok_or("seconds are a whole number, at most 86400")
            })?,
            durations: lookup.durations()?,
            log_level: lookup.parse("proxy-log-level", word)?,
            log_format: lookup.one_of("proxy-log-format", &["plain", "json"])?,
            additional: lookup.optional("proxy-additional-env", variables)?.unwrap_or_default(),
            warnings,
        };
        settings.check(lookup)?;
        Ok(settings)
    }

    /// What only several options together can get wrong.
    fn check(&self, lookup: &Lookup<'_>) -> Result<(), InjectError> {
        let ports = [
            ("inbound-port", self.inbound_port),
            ("outbound-port", self.outbound_port),
            ("control-port", self.control_port),
            ("admin-port", self.admin_port),
        ];
        for (index, (name, port)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[..index].iter().find(|(_, other)| other == port) {
                return Err(lookup.found(option(name)).refuse(&format!("is the `{other}` already")));
            }
        }
        Ok(())
    }
}

/// Whether a mesh could have these values of options.
pub(crate) fn check(options: &BTreeMap<String, String>) -> Result<(), InjectError> {
    options.iter().try_for_each(|(name, value)| options::check_name(name, value))?;
    let nothing = Value::Null;
    let request =
        Request { pod: &nothing, namespace: Namespace { name: None, annotations: None }, owner: None };
    let lookup = Lookup { request: &request, options, read: RefCell::default() };
    Settings::collect(&lookup).map(|_| ())
}

/// Finds an option's value: the pod's, else its namespace's, else the mesh's, else the default.
struct Lookup<'a> {
    request: &'a Request<'a>,
    /// The mesh's own.
    options: &'a BTreeMap<String, String>,
    /// Which options were asked for, so that a test can tell whether one is forgotten.
    read: RefCell<Vec<&'static str>>,
}

struct Found {
    text: String,
    /// The annotation and the object that has it; `None` for the mesh's own settings.
    place: Option<(String, String)>,
    name: &'static str,
}

impl Found {
    fn refuse(self, why: &str) -> InjectError {
        match self.place {
            Some((annotation, object)) => {
                InjectError::Annotation { annotation, object, value: self.text, why: why.to_owned() }
            }
            None => {
                InjectError::Values { field: self.name.to_owned(), value: self.text, why: why.to_owned() }
            }
        }
    }
}

impl Lookup<'_> {
    fn found(&self, option: &'static Opt) -> Found {
        self.read.borrow_mut().push(option.name);
        let request = self.request;
        let mut places = vec![(request.annotations(), request.object())];
        if option.inherited {
            places.push((request.namespace.annotations, request.namespace.object()));
        }
        for (annotations, object) in places {
            let ours = format!("{OPTION_PREFIX}{}", option.name);
            for key in std::iter::once(ours.as_str()).chain(option.linkerd.iter().copied()) {
                if let Some(value) = annotations.and_then(|annotations| annotations.get(key)) {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    return Found { text, place: Some((key.to_owned(), object)), name: option.name };
                }
            }
        }
        let text = self.options.get(option.name).map_or(option.default, String::as_str).to_owned();
        Found { text, place: None, name: option.name }
    }

    fn parse<T, E: AsRef<str>>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, InjectError> {
        let found = self.found(option(name));
        match read(&found.text) {
            Ok(value) => Ok(value),
            Err(why) => Err(found.refuse(why.as_ref())),
        }
    }

    fn optional<T, E: AsRef<str>>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, InjectError> {
        self.parse(name, |text| if text.is_empty() { Ok(None) } else { read(text).map(Some) })
    }

    fn one_of(&self, name: &str, allowed: &[&str]) -> Result<String, InjectError> {
        let why = format!("expected {}", listed(allowed));
        self.parse(name, |text| if allowed.contains(&text) { Ok(text.to_owned()) } else { Err(&why) })
    }

    fn quantity(&self, name: &str) -> Result<Option<String>, InjectError> {
        self.optional(name, |text| {
            if is_quantity(text) {
                Ok(text.to_owned())
            } else {
                Err("expected a quantity such as `100m`, `1` or `64Mi`")
            }
        })
    }

    fn ports(&self, name: &str, warnings: &mut Vec<Warning>) -> Result<Ports, InjectError> {
        let found = self.found(option(name));
        match Ports::read(&found.text, |port| self.request.named_ports(port)) {
            Ok((ports, unknown)) => {
                if let Some((annotation, object)) = found.place {
                    warnings.extend(unknown.into_iter().map(|port| Warning::PortName {
                        annotation: annotation.clone(),
                        object: object.clone(),
                        port,
                    }));
                }
                Ok(ports)
            }
            Err(why) => Err(found.refuse(&why)),
        }
    }

    fn durations(&self) -> Result<Vec<(&'static str, String)>, InjectError> {
        let mut all = Vec::new();
        for (name, variable) in [
            ("shutdown-grace-period", "SHUTDOWN_GRACE_PERIOD"),
            ("proxy-outbound-connect-timeout", "OUTBOUND_CONNECT_TIMEOUT"),
            ("proxy-inbound-connect-timeout", "INBOUND_CONNECT_TIMEOUT"),
            ("proxy-handshake-timeout", "HANDSHAKE_TIMEOUT"),
            ("proxy-discovery-timeout", "DISCOVERY_TIMEOUT"),
            ("proxy-silent-grace", "SILENT_GRACE"),
        ] {
            let value = self.optional(name, |text| {
                if is_duration(text) {
                    Ok(text.to_owned())
                } else {
                    Err("expected a duration such as `300ms`, `10s` or `2m`")
                }
            })?;
            all.extend(value.map(|value| (variable, value)));
        }
        Ok(all)
    }

    /// Annotations that look like options and are none.
    fn unknown(&self) -> Vec<Warning> {
        let request = self.request;
        let mut warnings = Vec::new();
        for (annotations, object, namespace) in [
            (request.annotations(), request.object(), false),
            (request.namespace.annotations, request.namespace.object(), true),
        ] {
            for key in annotations.into_iter().flat_map(Map::keys) {
                let ours = key.strip_prefix(OPTION_PREFIX);
                let name = ours.or_else(|| {
                    let rest = key.strip_prefix("config.")?;
                    let rest =
                        rest.strip_prefix("alpha.").or_else(|| rest.strip_prefix("beta.")).unwrap_or(rest);
                    rest.strip_prefix("linkerd.io/")
                });
                let Some(name) = name else { continue };
                let known = OPTIONS.iter().find(|option| match ours {
                    Some(name) => option.name == name,
                    None => option.linkerd.contains(&key.as_str()),
                });
                let (annotation, object) = (key.clone(), object.clone());
                match known {
                    None => {
                        warnings.push(Warning::Unknown { annotation, object, near: options::nearest(name) });
                    }
                    Some(option) if namespace && !option.inherited => {
                        warnings.push(Warning::NotInherited { annotation, object });
                    }
                    Some(_) => {}
                }
            }
        }
        warnings
    }
}

/// The option of that name; the first of the table where a caller misspelt it, which a test finds out.
fn option(name: &str) -> &'static Opt {
    OPTIONS.iter().find(|option| option.name == name).unwrap_or(&OPTIONS[0])
}

fn number<T: std::str::FromStr + PartialOrd + Copy>(text: &str, low: T, high: T) -> Option<T> {
    text.trim().parse().ok().filter(|number| *number >= low && *number <= high)
}

fn word(text: &str) -> Result<String, &'static str> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err("must not be empty, nor hold blanks") }
}

fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let read = |item: &str| item.parse().map_err(|_| format!("`{item}` is no network such as 10.0.0.0/8"));
    items.map(read).collect()
}

/// As Kubernetes writes them: a decimal number with a suffix.
fn is_quantity(text: &str) -> bool {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = &text[..text.len() - digits.len()];
    let suffixes = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    number.parse::<f64>().is_ok() && suffixes.contains(&digits)
}

/// Whole CPUs that a quantity makes, rounded up.
fn cores(quantity: &str) -> Option<u64> {
    let cpus = match quantity.strip_suffix('m') {
        Some(thousandths) => thousandths.parse::<f64>().ok()? / 1000.0,
        None => quantity.parse::<f64>().ok()?,
    };
    Some(cpus.ceil().max(1.0) as u64)
}

fn is_duration(text: &str) -> bool {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &text[..text.len() - unit.len()];
    !digits.is_empty() && digits.len() <= 9 && ["ms", "s", "m", "h", "d"].contains(&unit)
}

/// A JSON list of `EnvVar`.
fn variables(text: &str) -> Result<Vec<Value>, String> {
    let all: Vec<Value> = serde_json::from_str(text).map_err(|error| format!("is no JSON list: {error}"))?;
    for variable in &all {
        let name = variable.get("name").and_then(Value::as_str);
        if name.is_none_or(str::is_empty) {
            return Err(format!("`{variable}` has no `name`"));
        }
    }
    Ok(all)
}

fn listed(allowed: &[&str]) -> String {
    allowed.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", ")
}

const POLICIES: &[&str] = &[
    "all-unauthenticated",
    "all-authenticated",
    "cluster-unauthenticated",
    "cluster-authenticated",
    "deny",
    "audit",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_option_of_the_table_is_read() {
        let pod = json!({});
        let request =
            Request { pod: &pod, namespace: Namespace { name: None, annotations: None }, owner: None };
        let lookup = Lookup { request: &request, options: &BTreeMap::new(), read: RefCell::default() };
        Settings::collect(&lookup).expect("the defaults are valid");
        let read = lookup.read.borrow();
        let forgotten: Vec<_> =
            OPTIONS.iter().map(|option| option.name).filter(|name| !read.contains(name)).collect();
        assert!(forgotten.is_empty(), "{forgotten:?}");
    }

    #[test]
    fn quantities_durations_and_cores_are_read_as_kubernetes_and_the_proxy_do() {
        for (text, good) in
            [("100m", true), ("1.5", true), ("64Mi", true), ("Mi", false), ("1 Gi", false), ("-1", false)]
        {
            assert_eq!(is_quantity(text), good, "{text}");
        }
        for (text, good) in
            [("300ms", true), ("2m", true), ("1.5s", false), ("10", false), ("s", false), ("", false)]
        {
            assert_eq!(is_duration(text), good, "{text}");
        }
        assert_eq!([cores("100m"), cores("1500m"), cores("2")], [Some(1), Some(2), Some(2)]);
    }
}
