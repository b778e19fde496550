//! What a tap is asked to show.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ringmail_api::viz::TapRequest;

use crate::edges::resource;
use crate::names::{NamedPod, Names};
use crate::resource::{Kind, Resource, ResourceError};
use crate::selector::{Selector, SelectorError};

/// A request for a tap, checked.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) from: Place,
    pub(super) selector: Selector,
    pub(super) to: Option<Place>,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) authority: String,
    pub(super) scheme: String,
    pub(super) max_rps: f32,
    pub(super) headers: bool,
    pub(super) tcp: bool,
    /// The selector as it was written, for notes.
    selector_text: String,
}

/// A resource in a namespace.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) resource: Resource,
    pub(super) namespace: String,
}

/// Why a request for a tap is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PlanError {
    #[error("RM1701: {0}")]
    Resource(#[from] ResourceError),
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error("RM1701: `--max-rps {0}` is no rate: give requests a second, more than 0")]
    Rate(String),
    #[error("RM1701: `{0}` is about requests, and `--tcp` shows connections; leave one of them out")]
    NotForTcp(&'static str),
    #[error("RM1702: {0}")]
    NoPods(String),
}

impl Plan {
    pub(super) fn of(request: TapRequest) -> Result<Self, PlanError> {
        let unknown = |kind: &str| PlanError::Resource(ResourceError::Unknown(kind.to_owned()));
        let kind = Kind::parse(&request.kind).ok_or_else(|| unknown(&request.kind))?;
        if kind == Kind::Service {
            return Err(ResourceError::NotSupported(kind.name().to_owned()).into());
        }
        let named = |name: String| (!name.is_empty()).then_some(name);
        let place = |kind: Kind, name: String, namespace: String| match kind {
            // A namespace is all pods in it.
            Kind::Namespace => {
                let namespace = named(name).unwrap_or(namespace);
                Place { resource: Resource { kind, name: Some(namespace.clone()) }, namespace }
            }
            kind => Place { resource: Resource { kind, name: named(name) }, namespace },
        };
        let to_namespace = if request.to_namespace.is_empty() {
            request.namespace.clone()
        } else {
            request.to_namespace.clone()
        };
        let to = match (request.to_kind.as_str(), request.to_namespace.is_empty()) {
            ("", true) => None,
            ("", false) => Some(place(Kind::Namespace, String::new(), to_namespace)),
            (kind, _) => {
                Some(place(Kind::parse(kind).ok_or_else(|| unknown(kind))?, request.to_name, to_namespace))
            }
        };
        let max_rps = if request.max_rps == 0.0 { DEFAULT_RPS } else { request.max_rps };
        if !max_rps.is_finite() || max_rps <= 0.0 {
            return Err(PlanError::Rate(max_rps.to_string()));
        }
        if request.tcp {
            let http = [
                ("--method", !request.method.is_empty()),
                ("--path", !request.path.is_empty()),
                ("--authority", !request.authority.is_empty()),
                ("--scheme", !request.scheme.is_empty()),
                ("--headers", request.headers),
            ];
            if let Some((name, _)) = http.into_iter().find(|(_, given)| *given) {
                return Err(PlanError::NotForTcp(name));
            }
        }
        Ok(Self {
            from: place(kind, request.name, request.namespace),
            selector: Selector::parse(&request.selector)?,
            to,
            method: request.method.to_ascii_uppercase(),
            path: request.path,
            authority: request.authority,
            scheme: request.scheme.to_ascii_lowercase(),
            max_rps,
            headers: request.headers,
            tcp: request.tcp,
            selector_text: request.selector,
        })
    }

    /// That there is something to tap now, and somewhere for it to go.
    pub(super) fn check(&self, names: &dyn Names) -> Result<(), PlanError> {
        let pods = self.chosen(names);
        if !pods.iter().any(is_meshed) {
            let Place { resource: Resource { kind, name }, namespace } = &self.from;
            let mut text = format!(
                "no pods to tap for type=\"{kind}\" name=\"{}\"",
                name.as_deref().unwrap_or_default()
            );
            if *kind != Kind::Namespace {
                let _ = write!(text, " in namespace \"{namespace}\"");
            }
            if !self.selector_text.is_empty() {
                let _ = write!(text, " with labels \"{}\"", self.selector_text);
            }
            if !pods.is_empty() {
                let _ = write!(text, "\n{} pods found without a proxy of this mesh:\n", pods.len());
                for pod in &pods {
                    let _ = writeln!(text, "\t* {}", pod.workload.pod);
                }
                text += "tap shows what proxies see: tap the meshed pods that these talk to, or mesh them";
            }
            return Err(PlanError::NoPods(text));
        }
        match &self.to {
            Some(to) if self.to_ips(names).is_some_and(|ips| ips.is_empty()) => Err(PlanError::NoPods(
                format!("no pods for the destination {} in namespace \"{}\"", to.resource, to.namespace),
            )),
            _ => Ok(()),
        }
    }

    /// Every pod that is asked about, meshed or not.
    pub(super) fn chosen(&self, names: &dyn Names) -> Vec<Arc<NamedPod>> {
        let mut pods: Vec<_> = names
            .pods()
            .into_iter()
            .filter(|pod| self.from.holds(pod) && self.selector.matches(&pod.labels))
            .collect();
        pods.sort_by_key(|pod| pod.full_name());
        pods
    }

    /// The pods that can be tapped.
    pub(super) fn tapped(&self, names: &dyn Names) -> Vec<Arc<NamedPod>> {
        self.chosen(names).into_iter().filter(is_meshed).collect()
    }

    /// The addresses that requests must go to; `None` for any.
    pub(super) fn to_ips(&self, names: &dyn Names) -> Option<HashSet<IpAddr>> {
        let to = self.to.as_ref()?;
        if let Resource { kind: Kind::Service, name: Some(name) } = &to.resource {
            return Some(names.service(&to.namespace, name).unwrap_or_default().into_iter().collect());
        }
        Some(names.pods().iter().filter(|pod| to.holds(pod)).flat_map(|pod| pod.ips.clone()).collect())
    }

    /// How many requests one proxy may show in how long.
    pub(super) fn budget(&self, pods: usize) -> (u32, Duration) {
        let share = self.max_rps / pods.max(1) as f32;
        let window = if self.max_rps < 1.0 {
            Duration::from_secs_f32((1.0 / self.max_rps).min(3_600.0))
        } else {
            SECOND
        };
        (share.floor().clamp(1.0, 1e6) as u32, window)
    }

    /// What is watched, as a person reads it.
    pub(super) fn describe(&self, pods: &[Arc<NamedPod>]) -> String {
        let names: Vec<_> = pods.iter().take(5).map(|pod| pod.workload.pod.as_str()).collect();
        let more = if pods.len() > names.len() {
            format!(", and {} more", pods.len() - names.len())
        } else {
            String::new()
        };
        let filters = self.filters();
        let filters = if filters.is_empty() { String::new() } else { format!(" for {}", filters.join(" ")) };
        format!(
            "watching {}{filters} at {}: {}{more}",
            plural(pods.len(), "pod"),
            self.from,
            names.join(", ")
        )
    }

    fn filters(&self) -> Vec<String> {
        let mut filters = Vec::new();
        let options = [
            ("--method", &self.method),
            ("--path", &self.path),
            ("--authority", &self.authority),
            ("--scheme", &self.scheme),
        ];
        filters.extend(
            options
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| format!("{name}={value}")),
        );
        filters.extend(self.to.as_ref().map(|to| format!("--to {to}")));
        filters
    }
}

impl Place {
    fn holds(&self, pod: &Arc<NamedPod>) -> bool {
        if pod.workload.namespace != self.namespace {
            return false;
        }
        match &self.resource {
            Resource { kind: Kind::Namespace, .. } => true,
            Resource { kind, name } => resource(&pod.workload, *kind)
                .is_some_and(|(_, found)| name.as_ref().is_none_or(|name| *name == found)),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.resource.kind {
            Kind::Namespace => write!(f, "{}", self.resource),
            _ => write!(f, "{} in namespace {}", self.resource, self.namespace),
        }
    }
}

pub(super) fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn is_meshed(pod: &Arc<NamedPod>) -> bool {
    pod.identity.is_some() && !pod.ips.is_empty()
}

const DEFAULT_RPS: f32 = 100.0;
const SECOND: Duration = Duration::from_secs(1);
