//! Everything that can be known before anything is started: names, references between objects, programs.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Document, Kind, Object, ObjectKey, Template};
use crate::problem::{Problem, Problems};
use crate::programs::Programs;
use crate::store::Store;

/// Objects that may be started.
#[derive(Debug, Default)]
pub struct Checked {
    /// In the order in which they are applied: namespaces first, workloads last.
    pub objects: Vec<Object>,
    /// What works differently than written, or probably not as meant.
    pub warnings: Vec<Problem>,
}

/// Checks documents together with what the mesh already has. Documents of the kinds in `skip` are left out.
pub fn check(
    store: &Store,
    documents: &[Document],
    programs: &Programs,
    skip: &[String],
) -> Result<Checked, Problems> {
    let mut problems = Problems::default();
    let mut warnings = Vec::new();
    let mut given: Vec<(&Document, Object)> = Vec::new();
    let mut places: BTreeMap<ObjectKey, String> = BTreeMap::new();
    for document in documents {
        let kind = document.value.get("kind").and_then(serde_json::Value::as_str).unwrap_or_default();
        if skip.iter().any(|s| s.eq_ignore_ascii_case(kind)) {
            continue;
        }
        match Object::parse(document) {
            Ok((object, found)) => {
                warnings.extend(found);
                let place = document.place("metadata.name");
                if let Some(earlier) = places.insert(object.key(), place.clone()) {
                    problems.push(Problem::new(
                        "RM1546",
                        place,
                        format!("{} is given twice, first at {earlier}", object.key()),
                        "keep one of them",
                    ));
                }
                given.push((document, object));
            }
            Err(found) => problems.0.extend(found.0),
        }
    }
    problems.into_result()?;

    let mut merged = store.clone();
    given.sort_by_key(|(_, object)| object.kind());
    for (_, object) in &given {
        merged.apply(object.clone(), Timestamp::UNIX_EPOCH);
    }
    let mut check =
        Check { store: &merged, programs, problems: Problems::default(), warnings, document: None };
    for (document, object) in &given {
        check.document = Some(document);
        check.object(object);
    }
    let Check { problems, warnings, .. } = check;
    problems.into_result()?;
    Ok(Checked { objects: given.into_iter().map(|(_, object)| object).collect(), warnings })
}

/// Whether labels satisfy a selector (`matchLabels` and `matchExpressions`).
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let expressions = selector.match_expressions.iter().flatten().all(|e| {
        let value = labels.get(&e.key);
        let among = value.is_some_and(|v| e.values.iter().flatten().any(|w| w == v));
        match e.operator.as_str() {
            "In" => among,
            "NotIn" => !among,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    equal && expressions
}

struct Check<'a> {
    store: &'a Store,
    programs: &'a Programs,
    problems: Problems,
    warnings: Vec<Problem>,
    document: Option<&'a Document>,
}

impl Check<'_> {
    fn place(&self, path: &str) -> String {
        self.document.map(|d| d.place(path)).unwrap_or_default()
    }

    fn problem(&mut self, code: &'static str, path: &str, what: impl Into<String>, cure: impl Into<String>) {
        let place = self.place(path);
        self.problems.push(Problem::new(code, place, what, cure));
    }

    fn warn(&mut self, path: &str, what: impl Into<String>, cure: impl Into<String>) {
        let place = self.place(path);
        self.warnings.push(Problem::new("RM1548", place, what, cure));
    }

    fn object(&mut self, object: &Object) {
        let key = object.key();
        self.name(object);
        if key.kind != Kind::Namespace && self.store.namespace(&key.namespace).is_none() {
            self.problem(
                "RM1547",
                "metadata.namespace",
                format!("{key}: there is no namespace `{}`", key.namespace),
                format!(
                    "add a document `{{apiVersion: v1, kind: Namespace, metadata: {{name: {}}}}}`",
                    key.namespace
                ),
            );
        }
        if let Some(template) = object.template() {
            self.template(&key, object, &template);
        }
        if let Object::Service(service) = object {
            self.service(&key, service);
        }
    }

    fn name(&mut self, object: &Object) {
        let name = object.metadata().name.clone().unwrap_or_default();
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let single = matches!(object.kind(), Kind::Namespace | Kind::Service);
        let limit = if single { 63 } else { 253 };
        let valid = !name.is_empty()
            && name.len() <= limit
            && name.chars().all(|c| label(c) || (c == '.' && !single))
            && !name.starts_with(['-', '.'])
            && !name.ends_with(['-', '.']);
        if !valid {
            let what = if name.is_empty() && object.metadata().generate_name.is_some() {
                "`generateName` is not done here, an object has a name".to_owned()
            } else {
                format!("`{name}` is not a name: lower-case letters, digits and `-`, at most {limit}")
            };
            self.problem("RM1543", "metadata.name", what, "give `metadata.name`");
        }
        if matches!(object, Object::Service(_)) && name.starts_with(|c: char| c.is_ascii_digit()) {
            self.problem(
                "RM1543",
                "metadata.name",
                format!("a Service's name cannot start with a digit: `{name}`"),
                "",
            );
        }
    }

    fn template(&mut self, key: &ObjectKey, object: &Object, template: &Template<'_>) {
        let labels = template.labels();
        if let Some(selector) = template.selector
            && !selects(selector, &labels)
        {
            self.problem(
                "RM1543",
                "spec.selector",
                format!(
                    "{key}: its selector does not match the labels of its own template ({})",
                    shown(&labels)
                ),
                "make `spec.selector.matchLabels` a part of `spec.template.metadata.labels`",
            );
        }
        let Some(spec) = template.spec else {
            self.problem("RM1543", template.path, format!("{key} has no pod spec"), "add `spec.containers`");
            return;
        };
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        let allowed: &[&str] = match object {
            Object::Job(_) => &["Never", "OnFailure"],
            Object::Pod(_) => &["Always", "Never", "OnFailure"],
            _ => &["Always"],
        };
        if !allowed.contains(&policy) {
            self.problem(
                "RM1543",
                &format!("{}.restartPolicy", template.path),
                format!("{key}: restartPolicy is `{policy}`"),
                format!("a {} takes {}", key.kind.as_str(), allowed.join(" or ")),
            );
        }
        self.account(key, template, spec);
        self.volumes(key, template, spec, object);
        self.containers(key, template, spec);
        if let Object::StatefulSet(set) = object {
            let service = set.spec.as_ref().and_then(|s| s.service_name.clone()).unwrap_or_default();
            let wanted = ObjectKey::new(Kind::Service, key.namespace.clone(), service.clone());
            if !service.is_empty() && self.store.get(&wanted).is_none() {
                self.warn(
                    "spec.serviceName",
                    format!("{key}: there is no Service `{service}`, so its pods have no names of their own"),
                    format!("add a headless Service `{service}`"),
                );
            }
        }
    }

    fn account(&mut self, key: &ObjectKey, template: &Template<'_>, spec: &PodSpec) {
        let account = spec.service_account_name.as_ref().or(spec.service_account.as_ref());
        let account = account.map_or("default", String::as_str);
        // A namespace that is missing is reported once; its default account is missing with it.
        if self.store.namespace(&key.namespace).is_some()
            && self.store.service_account(&key.namespace, account).is_none()
        {
            self.problem(
                "RM1547",
                &format!("{}.serviceAccountName", template.path),
                format!("{key}: there is no ServiceAccount `{account}` in namespace `{}`", key.namespace),
                format!(
                    "add a document `{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {account}, namespace: \
                     {}}}}}`, or correct `serviceAccountName`",
                    key.namespace
                ),
            );
        }
    }

    fn volumes(&mut self, key: &ObjectKey, template: &Template<'_>, spec: &PodSpec, object: &Object) {
        let mut names = BTreeSet::new();
        for (index, volume) in spec.volumes.iter().flatten().enumerate() {
            let path = format!("{}.volumes[{index}]", template.path);
            if !names.insert(volume.name.clone()) {
                self.problem("RM1543", &path, format!("{key}: volume `{}` is given twice", volume.name), "");
            }
            if let Some(source) = &volume.config_map {
                self.reference(key, Kind::ConfigMap, &source.name, source.optional, &path);
            }
            if let Some(source) = &volume.secret {
                self.reference(
                    key,
                    Kind::Secret,
                    source.secret_name.as_deref().unwrap_or(""),
                    source.optional,
                    &path,
                );
            }
            for projection in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
                if let Some(source) = &projection.config_map {
                    self.reference(key, Kind::ConfigMap, &source.name, source.optional, &path);
                }
                if let Some(source) = &projection.secret {
                    self.reference(key, Kind::Secret, &source.name, source.optional, &path);
                }
            }
        }
        if let Object::StatefulSet(set) = object {
            let claims = set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_ref());
            names.extend(claims.into_iter().flatten().filter_map(|c| c.metadata.name.clone()));
        }
        let containers = spec
            .init_containers
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, c)| (format!("initContainers[{i}]"), c));
        let containers = containers
            .chain(spec.containers.iter().enumerate().map(|(i, c)| (format!("containers[{i}]"), c)));
        for (at, container) in containers {
            for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
                let path = format!("{}.{at}.volumeMounts[{index}]", template.path);
                if !names.contains(&mount.name) {
                    self.problem(
                        "RM1547",
                        &path,
                        format!(
                            "{key}: container `{}` mounts volume `{}`, which the pod does not have",
                            container.name, mount.name
                        ),
                        format!("add it under `{}.volumes`, or correct `volumeMounts`", template.path),
                    );
                }
                if !mount.mount_path.starts_with('/') {
                    self.problem(
                        "RM1543",
                        &path,
                        format!(
                            "{key}: mountPath `{}` of container `{}` is not absolute",
                            mount.mount_path, container.name
                        ),
                        "start it with `/`",
                    );
                }
            }
        }
    }

    fn reference(&mut self, key: &ObjectKey, kind: Kind, name: &str, optional: Option<bool>, path: &str) {
        let wanted = ObjectKey::new(kind, key.namespace.clone(), name);
        if optional == Some(true) || self.store.get(&wanted).is_some() {
            return;
        }
        self.problem(
            "RM1547",
            path,
            format!("{key}: there is no {} `{name}` in namespace `{}`", kind.as_str(), key.namespace),
            "add it, or mark the reference `optional: true`",
        );
    }

    fn containers(&mut self, key: &ObjectKey, template: &Template<'_>, spec: &PodSpec) {
        if spec.containers.is_empty() {
            self.problem("RM1543", template.path, format!("{key} has no containers"), "add `containers`");
        }
        let mut names = BTreeSet::new();
        let lists = [
            ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
            ("containers", &spec.containers),
        ];
        for (list, containers) in lists {
            for (index, container) in containers.iter().enumerate() {
                let path = format!("{}.{list}[{index}]", template.path);
                if container.name.is_empty() || !names.insert(container.name.clone()) {
                    self.problem(
                        "RM1543",
                        &path,
                        format!("{key}: container name `{}` is empty or given twice", container.name),
                        "",
                    );
                }
                self.container(key, container, &path, list == "initContainers");
            }
        }
    }

    fn container(&mut self, key: &ObjectKey, container: &Container, path: &str, init: bool) {
        let place = self.place(&format!("{path}.command"));
        if let Err(problem) = self.programs.check(&place, container) {
            self.problems.push(problem);
        }
        for (index, variable) in container.env.iter().flatten().enumerate() {
            let path = format!("{path}.env[{index}]");
            let Some(from) = &variable.value_from else { continue };
            if let Some(from) = &from.config_map_key_ref {
                self.reference(key, Kind::ConfigMap, &from.name, from.optional, &path);
            }
            if let Some(from) = &from.secret_key_ref {
                self.reference(key, Kind::Secret, &from.name, from.optional, &path);
            }
            if from.file_key_ref.is_some() {
                self.problem(
                    "RM1544",
                    &path,
                    "`fileKeyRef` is not done by the local mesh",
                    "use configMapKeyRef",
                );
            }
        }
        for (index, from) in container.env_from.iter().flatten().enumerate() {
            let path = format!("{path}.envFrom[{index}]");
            if let Some(from) = &from.config_map_ref {
                self.reference(key, Kind::ConfigMap, &from.name, from.optional, &path);
            }
            if let Some(from) = &from.secret_ref {
                self.reference(key, Kind::Secret, &from.name, from.optional, &path);
            }
        }
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let probes = [
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
            ("startupProbe", &container.startup_probe),
        ];
        for (name, probe) in probes {
            let Some(probe) = probe else { continue };
            let path = format!("{path}.{name}");
            if init && !sidecar {
                self.problem(
                    "RM1543",
                    &path,
                    format!("init container `{}` cannot have a {name}", container.name),
                    "only a sidecar (`restartPolicy: Always`) can",
                );
            }
            self.probe(container, probe, &path);
        }
        if container.restart_policy.is_some() && !(init && sidecar) {
            self.problem(
                "RM1543",
                &format!("{path}.restartPolicy"),
                format!("container `{}` has a restartPolicy of its own", container.name),
                "only `Always` in initContainers (a sidecar) is known",
            );
        }
    }

    fn probe(&mut self, container: &Container, probe: &Probe, path: &str) {
        let handlers = [
            probe.http_get.is_some(),
            probe.tcp_socket.is_some(),
            probe.exec.is_some(),
            probe.grpc.is_some(),
        ];
        if handlers.iter().filter(|h| **h).count() != 1 {
            self.problem("RM1543", path, "a probe has exactly one of httpGet, tcpSocket, exec and grpc", "");
        }
        let ports = [probe.http_get.as_ref().map(|h| &h.port), probe.tcp_socket.as_ref().map(|t| &t.port)];
        for port in ports.into_iter().flatten() {
            if let IntOrString::String(name) = port
                && named_port(container, name).is_none()
            {
                self.problem(
                    "RM1547",
                    path,
                    format!("container `{}` has no port named `{name}`", container.name),
                    "name the port under `ports`, or give its number",
                );
            }
        }
    }

    fn service(&mut self, key: &ObjectKey, service: &k8s_openapi::api::core::v1::Service) {
        let Some(spec) = &service.spec else { return };
        let headless = spec.cluster_ip.as_deref() == Some("None");
        if spec.ports.as_deref().unwrap_or_default().is_empty() && !headless {
            self.problem("RM1543", "spec.ports", format!("{key} has no ports"), "add `spec.ports`");
        }
        let selector = spec.selector.clone().unwrap_or_default();
        if selector.is_empty() {
            self.warn("spec.selector", format!("{key} has no selector and therefore no endpoints"), "");
            return;
        }
        let templates: Vec<(ObjectKey, BTreeMap<String, String>, &PodSpec)> = self
            .store
            .iter()
            .filter(|(k, _)| k.namespace == key.namespace)
            .filter_map(|(k, o)| {
                let template = o.template()?;
                Some((k.clone(), template.labels(), template.spec?))
            })
            .collect();
        let matching: Vec<_> = templates
            .iter()
            .filter(|(_, labels, _)| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
            .collect();
        if matching.is_empty() {
            let nearest = templates
                .iter()
                .max_by_key(|(_, labels, _)| nearness(&selector, labels))
                .map(|(k, labels, _)| format!("; nearest is {k} with {}", shown(labels)))
                .unwrap_or_default();
            self.warn(
                "spec.selector",
                format!("{key} selects no pods: nothing has the labels {}{nearest}", shown(&selector)),
                "make the selector equal to labels of a pod template in the same namespace",
            );
            return;
        }
        let named: Vec<(String, String)> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| match &port.target_port {
                Some(IntOrString::String(name)) => Some((name.clone(), port.port.to_string())),
                _ => None,
            })
            .filter(|(name, _)| {
                !matching
                    .iter()
                    .any(|(_, _, spec)| spec.containers.iter().any(|c| named_port(c, name).is_some()))
            })
            .collect();
        for (name, port) in named {
            self.warn(
                "spec.ports",
                format!(
                    "{key}: port {port} goes to a container port named `{name}`, which none of its pods has"
                ),
                "name the container's port under `ports`, or give its number as targetPort",
            );
        }
    }
}

/// The number of a container's named port.
pub fn named_port(container: &Container, name: &str) -> Option<i32> {
    container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port)
}

fn nearness(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> usize {
    selector
        .iter()
        .map(|(k, v)| if labels.get(k) == Some(v) { 2 } else { usize::from(labels.contains_key(k)) })
        .sum()
}

fn shown(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "no labels".to_owned();
    }
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}
