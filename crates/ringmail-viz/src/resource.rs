//! Kinds of resources and how people write them: `deploy/web`, `deployments`, `po web-1`.

use std::fmt;

/// A kind of resource that edges and tap speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `cronjob`
    CronJob,
    /// `daemonset`
    DaemonSet,
    /// `deployment`
    Deployment,
    /// `job`
    Job,
    /// `namespace`
    Namespace,
    /// `pod`
    Pod,
    /// `replicaset`
    ReplicaSet,
    /// `replicationcontroller`
    ReplicationController,
    /// `service`
    Service,
    /// `statefulset`
    StatefulSet,
}

impl Kind {
    /// Reads a kind in any of its spellings: singular, plural, short, any letter case.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let text = text.strip_suffix(".apps").or_else(|| text.strip_suffix(".batch")).unwrap_or(&text);
        SPELLINGS.iter().find(|(_, spellings)| spellings.contains(&text)).map(|(kind, _)| *kind)
    }

    /// The kind in the singular and lower case.
    pub fn name(self) -> &'static str {
        SPELLINGS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, spellings)| spellings[0])
    }

    /// The label that tap gives it; a job's is `k8s_job`, since `job` is Prometheus' own label.
    pub fn label(owner_kind: &str) -> &str {
        if owner_kind == "job" { "k8s_job" } else { owner_kind }
    }

    /// Whether edges can be listed by this kind.
    pub fn has_edges(self) -> bool {
        !matches!(self, Self::Namespace | Self::Service)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One resource, or all of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The kind.
    pub kind: Kind,
    /// The name; `None` for all of the kind.
    pub name: Option<String>,
}

/// Why arguments name no resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// Edges are between all resources of a kind.
    #[error("Edges cannot be returned for a specific resource name; remove {0} from query")]
    EdgesOfOne(String),
    /// A kind that has none.
    #[error("Resource type is not supported: {0}")]
    NotSupported(String),
    /// Not a kind at all.
    #[error("`{0}` is no kind of resource; one of: {known}", known = known())]
    Unknown(String),
    /// Too many or too few arguments.
    #[error("expected `<kind>`, `<kind>/<name>` or `<kind> <name>`, got: {0}")]
    Shape(String),
    /// A name that no object can have.
    #[error("`{0}` is no resource name")]
    Name(String),
}

impl Resource {
    /// Reads `deploy`, `deploy/web` or `deploy web`.
    pub fn parse(args: &[String]) -> Result<Self, ResourceError> {
        let (kind, name) = match args {
            [one] => match one.split_once('/') {
                Some((kind, name)) => (kind, Some(name)),
                None => (one.as_str(), None),
            },
            [kind, name] if !kind.contains('/') && !name.contains('/') => {
                (kind.as_str(), Some(name.as_str()))
            }
            _ => return Err(ResourceError::Shape(args.join(" "))),
        };
        if ["authority", "au", "all", "server", "srv"].contains(&kind) {
            return Err(ResourceError::NotSupported(kind.to_owned()));
        }
        let kind = Kind::parse(kind).ok_or_else(|| ResourceError::Unknown(kind.to_owned()))?;
        let valid = |name: &str| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
            !name.is_empty() && name.len() <= 253 && name.bytes().all(allowed)
        };
        match name {
            Some(name) if !valid(name) => Err(ResourceError::Name(name.to_owned())),
            name => Ok(Self { kind, name: name.map(str::to_owned) }),
        }
    }

    /// Reads the arguments of `edges`: a kind and nothing else.
    pub fn kind_for_edges(args: &[String]) -> Result<Kind, ResourceError> {
        if let Some(kind) = args.first().and_then(|kind| kind.split('/').next())
            && (["authority", "au", "all"].contains(&kind)
                || Kind::parse(kind).is_some_and(|kind| !kind.has_edges()))
        {
            let kind = Kind::parse(kind).map_or_else(|| kind.to_owned(), |kind| kind.name().to_owned());
            return Err(ResourceError::NotSupported(kind));
        }
        match Self::parse(args)? {
            Self { kind, name: None } => Ok(kind),
            Self { name: Some(name), .. } => Err(ResourceError::EdgesOfOne(name)),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}/{name}", self.kind),
            None => write!(f, "{}", self.kind),
        }
    }
}

fn known() -> String {
    SPELLINGS.iter().map(|(kind, _)| kind.name()).collect::<Vec<_>>().join(", ")
}

/// The name first, then the other spellings of `kubectl`.
const SPELLINGS: &[(Kind, &[&str])] = &[
    (Kind::CronJob, &["cronjob", "cronjobs", "cj"]),
    (Kind::DaemonSet, &["daemonset", "daemonsets", "ds"]),
    (Kind::Deployment, &["deployment", "deployments", "deploy", "deploys"]),
    (Kind::Job, &["job", "jobs"]),
    (Kind::Namespace, &["namespace", "namespaces", "ns"]),
    (Kind::Pod, &["pod", "pods", "po"]),
    (Kind::ReplicaSet, &["replicaset", "replicasets", "rs"]),
    (Kind::ReplicationController, &["replicationcontroller", "replicationcontrollers", "rc"]),
    (Kind::Service, &["service", "services", "svc"]),
    (Kind::StatefulSet, &["statefulset", "statefulsets", "sts"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn every_spelling_of_kubectl_is_understood() {
        for (text, kind) in [
            ("deploy", Kind::Deployment),
            ("Deployments.apps", Kind::Deployment),
            ("po", Kind::Pod),
            ("sts", Kind::StatefulSet),
            ("ds", Kind::DaemonSet),
            ("rs", Kind::ReplicaSet),
            ("cj", Kind::CronJob),
            ("rc", Kind::ReplicationController),
            ("jobs", Kind::Job),
            ("ns", Kind::Namespace),
        ] {
            assert_eq!(Kind::parse(text), Some(kind), "{text}");
        }
        assert_eq!(Kind::parse("node"), None);
    }

    #[test]
    fn a_resource_is_written_in_three_ways() {
        let web = Resource { kind: Kind::Deployment, name: Some("web".to_owned()) };
        assert_eq!(Resource::parse(&args("deploy/web")), Ok(web.clone()));
        assert_eq!(Resource::parse(&args("deploy web")), Ok(web));
        assert_eq!(Resource::parse(&args("deploy")), Ok(Resource { kind: Kind::Deployment, name: None }));
        for wrong in ["", "deploy/web extra", "deploy web extra", "deploy/", "deploy/We_b", "node/x"] {
            assert!(Resource::parse(&args(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn edges_refuse_names_and_kinds_without_edges_in_known_words() {
        for (text, error) in [
            ("deploy/web", "Edges cannot be returned for a specific resource name; remove web from query"),
            ("deploy web", "Edges cannot be returned for a specific resource name; remove web from query"),
            ("svc", "Resource type is not supported: service"),
            ("service/web", "Resource type is not supported: service"),
            ("authority", "Resource type is not supported: authority"),
            ("all", "Resource type is not supported: all"),
        ] {
            assert_eq!(Resource::kind_for_edges(&args(text)).expect_err(text).to_string(), error);
        }
        assert_eq!(Resource::kind_for_edges(&args("deploy")), Ok(Kind::Deployment));
    }
}
