//! The table of options: annotations `config.ringmail.dev/<name>` of pods and namespaces.

use std::collections::BTreeMap;

use crate::OPTION_PREFIX;
use crate::error::InjectError;

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// Its name, without `config.ringmail.dev/`.
    pub name: &'static str,
    /// Its value where nobody sets it; empty where there is none.
    pub default: &'static str,
    /// What it takes.
    pub takes: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Whether a namespace may set it for its pods.
    pub inherited: bool,
    /// Linkerd's annotations that mean the same, best first.
    pub linkerd: &'static [&'static str],
}

macro_rules! options {
    ($($name:literal = $default:expr, $takes:expr, $scope:ident, [$($linkerd:literal),*], $meaning:literal;)+) => {
        /// All options, in the order of the documentation.
        pub const OPTIONS: &[Opt] = &[$(Opt {
            name: $name,
            default: $default,
            takes: $takes,
            meaning: $meaning,
            inherited: scope!($scope),
            linkerd: &[$(concat!("config.", $linkerd)),*],
        }),+];
    };
}

macro_rules! scope {
    (anywhere) => {
        true
    };
    (pod) => {
        false
    };
}

const PORTS: &str = "comma list of ports, ranges (`3306-3310`) and names of container ports";
const NETWORKS: &str = "comma list of networks, such as `10.0.0.0/8`";
const PORT: &str = "port";
const POLICY: &str = "`all-unauthenticated`, `all-authenticated`, `cluster-unauthenticated`, `cluster-authenticated`, `deny` or `audit`";
const TEXT: &str = "text";
const PULL: &str = "`Always`, `IfNotPresent` or `Never`";
const QUANTITY: &str = "quantity, such as `100m` or `64Mi`";
const ID: &str = "number";
const SWITCH: &str = "`enabled` or `disabled`";
const BOOL: &str = "`true` or `false`";
const SECONDS: &str = "seconds";
const DURATION: &str = "duration: a whole number with `ms`, `s`, `m`, `h` or `d`";

options! {
    "skip-inbound-ports" = "", PORTS, anywhere, ["linkerd.io/skip-inbound-ports"],
        "Ports of the pod that clients reach directly, without the proxy. They are not encrypted.";
    "skip-outbound-ports" = "", PORTS, anywhere, ["linkerd.io/skip-outbound-ports"],
        "Ports elsewhere that the pod reaches directly, without the proxy. They are not encrypted.";
    "skip-subnets" = "", NETWORKS, anywhere, ["linkerd.io/skip-subnets"],
        "Networks whose clients reach the pod directly, without the proxy.";
    "opaque-ports" = "25,587,3306,4444,5432,6379,9300,11211", PORTS, anywhere, ["linkerd.io/opaque-ports"],
        "Ports whose bytes are never read in passing: no tap, no HTTP metrics. They are encrypted like all others. On a pod, a namespace or a Service.";
    "default-inbound-policy" = "all-unauthenticated", POLICY, anywhere, ["linkerd.io/default-inbound-policy"],
        "Who may call the pod. `authenticated`: only clients that prove an identity of the mesh; `cluster`: only from the mesh's networks. Probes always may.";
    "inbound-port" = "4143", PORT, anywhere, ["linkerd.io/inbound-port"],
        "Where the proxy takes connections to the pod.";
    "outbound-port" = "4140", PORT, anywhere, ["linkerd.io/outbound-port"],
        "Where the proxy takes connections from the pod.";
    "control-port" = "4190", PORT, anywhere, ["linkerd.io/control-port"],
        "Where the proxy serves taps and flows.";
    "admin-port" = "4191", PORT, anywhere, ["linkerd.io/admin-port"],
        "Where the proxy serves `/live`, `/ready` and `/metrics`.";
    "proxy-image" = "ringmail/proxy", TEXT, anywhere, [],
        "Image of the proxy and of the init container, without its tag.";
    "proxy-version" = env!("CARGO_PKG_VERSION"), TEXT, anywhere, [],
        "Tag of that image.";
    "image-pull-policy" = "IfNotPresent", PULL, anywhere, ["linkerd.io/image-pull-policy"],
        "When that image is pulled.";
    "proxy-cpu-request" = "", QUANTITY, anywhere, ["linkerd.io/proxy-cpu-request"], "CPU that the proxy asks for.";
    "proxy-cpu-limit" = "", QUANTITY, anywhere, ["linkerd.io/proxy-cpu-limit"],
        "CPU that the proxy gets at most; it runs as many threads, rounded up.";
    "proxy-memory-request" = "", QUANTITY, anywhere, ["linkerd.io/proxy-memory-request"], "Memory that the proxy asks for.";
    "proxy-memory-limit" = "", QUANTITY, anywhere, ["linkerd.io/proxy-memory-limit"], "Memory that the proxy gets at most.";
    "proxy-ephemeral-storage-request" = "", QUANTITY, anywhere, ["linkerd.io/proxy-ephemeral-storage-request"],
        "Ephemeral storage that the proxy asks for.";
    "proxy-ephemeral-storage-limit" = "", QUANTITY, anywhere, ["linkerd.io/proxy-ephemeral-storage-limit"],
        "Ephemeral storage that the proxy gets at most.";
    "proxy-uid" = "2102", ID, anywhere, ["linkerd.io/proxy-uid"],
        "User id of the proxy, whose connections are not redirected. No other container may have it.";
    "proxy-gid" = "", ID, anywhere, ["linkerd.io/proxy-gid"], "Group id of the proxy.";
    "proxy-await" = "enabled", SWITCH, anywhere, ["linkerd.io/proxy-await"],
        "Whether the application waits until the proxy is ready.";
    "proxy-enable-native-sidecar" = "true", BOOL, anywhere,
        ["linkerd.io/proxy-enable-native-sidecar", "beta.linkerd.io/proxy-enable-native-sidecar", "alpha.linkerd.io/proxy-enable-native-sidecar"],
        "Whether the proxy is a sidecar in Kubernetes' sense (an init container that keeps running), which starts before and ends after the application; else an ordinary container.";
    "proxy-wait-before-exit-seconds" = "0", SECONDS, anywhere, ["alpha.linkerd.io/proxy-wait-before-exit-seconds"],
        "How long an ordinary container's proxy stays up after the pod was told to end. A native sidecar needs none.";
    "shutdown-grace-period" = "", DURATION, anywhere, ["linkerd.io/shutdown-grace-period"],
        "How long open connections may go on when the proxy is told to end.";
    "proxy-outbound-connect-timeout" = "", DURATION, anywhere, ["linkerd.io/proxy-outbound-connect-timeout"],
        "How long dialling an endpoint may take.";
    "proxy-inbound-connect-timeout" = "", DURATION, anywhere, ["linkerd.io/proxy-inbound-connect-timeout"],
        "How long dialling the application may take.";
    "proxy-handshake-timeout" = "", DURATION, anywhere, [], "How long a TLS handshake may take.";
    "proxy-discovery-timeout" = "", DURATION, anywhere, [],
        "How long a connection to an unknown address of the mesh's networks is held while the control plane does not answer.";
    "proxy-silent-grace" = "", DURATION, anywhere, [],
        "How long a silent client that is known to be unmeshed is waited for before it is taken for plaintext.";
    "proxy-log-level" = "info", TEXT, anywhere, ["linkerd.io/proxy-log-level"],
        "What the proxy logs: a level, or a filter such as `warn,ringmail_proxy=debug`.";
    "proxy-log-format" = "plain", "`plain` or `json`", anywhere, ["linkerd.io/proxy-log-format"],
        "How the proxy logs.";
    "proxy-additional-env" = "", "JSON list of environment variables, as in a container's `env`", pod, ["linkerd.io/proxy-additional-env"],
        "Further environment variables of the proxy; they win over the others.";
}

/// The option whose name comes nearest, where one is near.
pub fn nearest(name: &str) -> Option<&'static str> {
    let distance = |option: &Opt| edits(name, option.name);
    let best = OPTIONS.iter().min_by_key(|option| distance(option))?;
    (distance(best) <= 1 + name.len() / 4).then_some(best.name)
}

/// Refuses the name of an option that does not exist; `value` is for the message.
pub(crate) fn check_name(name: &str, value: &str) -> Result<(), InjectError> {
    if OPTIONS.iter().any(|option| option.name == name) {
        return Ok(());
    }
    let near = nearest(name).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    let (field, value) = (name.to_owned(), value.to_owned());
    Err(InjectError::Values { field, value, why: format!("there is no such option{near}") })
}

/// Whether these values of options, by name, are ones that an annotation could have.
pub fn check(values: &BTreeMap<String, String>) -> Result<(), InjectError> {
    crate::settings::check(values)
}

/// The options as a table in Markdown, for `docs/injection.md`.
pub fn table() -> String {
    let mut text = String::from("| annotation | takes | default | meaning |\n|---|---|---|---|\n");
    for option in OPTIONS {
        let default = match option.default {
            "" => "–".to_owned(),
            version if option.name == "proxy-version" && version == env!("CARGO_PKG_VERSION") => {
                "Ringmail's version".to_owned()
            }
            default => format!("`{default}`"),
        };
        let linkerd = match option.linkerd {
            [] => String::new(),
            [first, ..] => format!("<br>`{first}`"),
        };
        let scope = if option.inherited { "" } else { " Only on pods." };
        let line = format!(
            "| `{OPTION_PREFIX}{}`{linkerd} | {} | {default} | {}{scope} |\n",
            option.name, option.takes, option.meaning
        );
        text.push_str(&line);
    }
    text
}

/// Levenshtein's distance.
fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_option_has_a_neighbour_and_a_foreign_one_has_none() {
        assert_eq!(nearest("skip-inbound-port"), Some("skip-inbound-ports"));
        assert_eq!(nearest("proxy-loglevel"), Some("proxy-log-level"));
        assert_eq!(nearest("enable-gateway"), None);
    }

    #[test]
    fn values_are_checked_as_annotations_are() {
        let check = |name: &str, value: &str| check(&[(name.to_owned(), value.to_owned())].into());
        assert_eq!(check("opaque-ports", "25,mysql"), Ok(()));
        for (name, value) in [("opaque-ports", "0"), ("proxy-await", "yes"), ("no-option", "1")] {
            assert_eq!(check(name, value).expect_err(name).code(), "RM1401");
        }
    }
}
