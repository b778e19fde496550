//! The environment of a container, by Kubernetes' rules.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{
    Container, EnvVar, ObjectFieldSelector, Pod, ResourceFieldSelector, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::store::Store;

/// Why a container cannot be made: kubelet's `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// The machine, as `resourceFieldRef` and `fieldRef` show it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address as pods see it.
    pub ip: String,
    /// Processors.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
}

/// The variables of a container: service links first, then `envFrom`, then `env` in order; later ones win, and `$(NAME)` refers to
/// what stands before.
pub fn environment(
    store: &Store,
    node: &Node,
    pod: &Pod,
    container: &Container,
) -> Result<Vec<(String, String)>, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut variables = Variables::default();
    if pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true) {
        for service in store.services().filter(|s| s.metadata.namespace.as_deref() == Some(namespace)) {
            service_links(service, &mut variables);
        }
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        if let Some(from) = &source.config_map_ref {
            match store.config_map(namespace, &from.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        variables.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if from.optional == Some(true) => {}
                None => return Err(ConfigError(format!("configmap \"{}\" not found", from.name))),
            }
        }
        if let Some(from) = &source.secret_ref {
            match store.secret(namespace, &from.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        variables
                            .set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if from.optional == Some(true) => {}
                None => return Err(ConfigError(format!("secret \"{}\" not found", from.name))),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(store, node, pod, container, namespace, variable, &variables)? {
            variables.set(variable.name.clone(), value);
        }
    }
    Ok(variables.in_order)
}

/// Replaces `$(NAME)` by its value. An unknown name stays as it is; `$$` is a dollar sign, so that `$$(NAME)` is not replaced.
pub fn expand(text: &str, variables: &[(String, String)]) -> String {
    expand_with(text, |name| variables.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str()))
}

/// Value of a downward API field of a pod.
pub fn field(pod: &Pod, node: &Node, selector: &ObjectFieldSelector) -> Result<String, ConfigError> {
    let metadata = &pod.metadata;
    let path = selector.field_path.as_str();
    let map = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    if let Some((which, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        return match which {
            "metadata.labels" => Ok(map(&metadata.labels, key)),
            "metadata.annotations" => Ok(map(&metadata.annotations, key)),
            _ => Err(ConfigError(format!("fieldPath `{path}` is not known"))),
        };
    }
    let status = pod.status.as_ref();
    let ips = || status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.clone());
    let lines = |map: &Option<BTreeMap<String, String>>| {
        map.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
    };
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(&metadata.labels),
        "metadata.annotations" => lines(&metadata.annotations),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => account(pod),
        "status.hostIP" | "status.hostIPs" => node.ip.clone(),
        "status.podIP" => status.and_then(|s| s.pod_ip.clone()).unwrap_or_default(),
        "status.podIPs" => ips().collect::<Vec<_>>().join(","),
        _ => return Err(ConfigError(format!("fieldPath `{path}` is not known"))),
    })
}

/// Value of a resource of a container: the limit, the request, or what the machine has.
pub fn resource(
    container: &Container,
    node: &Node,
    selector: &ResourceFieldSelector,
) -> Result<String, ConfigError> {
    let unknown = || ConfigError(format!("resource `{}` is not known", selector.resource));
    let (which, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(name));
    let requests = resources.and_then(|r| r.requests.as_ref()).and_then(|l| l.get(name));
    let milli = match (which, name) {
        ("limits", "cpu") => limits.map_or(Ok(u128::from(node.cpus) * 1000), milli)?,
        ("limits", "memory") => limits.map_or(Ok(u128::from(node.memory) * 1000), milli)?,
        ("limits" | "requests", "ephemeral-storage") => limits.or(requests).map_or(Ok(0), milli)?,
        ("requests", "cpu" | "memory") => requests.or(limits).map_or(Ok(0), milli)?,
        _ => return Err(unknown()),
    };
    let default = Quantity("1".into());
    let divisor = selector.divisor.as_ref().filter(|d| d.0 != "0").unwrap_or(&default);
    let divisor = self::milli(divisor)?.max(1);
    Ok(milli.div_ceil(divisor).to_string())
}

/// The service account of a pod.
pub fn account(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.service_account_name.clone().or_else(|| s.service_account.clone()))
        .filter(|a| !a.is_empty())
        .unwrap_or_else(|| "default".to_owned())
}

/// A quantity such as `250m`, `1.5` or `64Mi` in bytes, rounded up.
pub fn bytes_of(quantity: &Quantity) -> Result<u64, ConfigError> {
    Ok(u64::try_from(milli(quantity)?.div_ceil(1000)).unwrap_or(u64::MAX))
}

fn milli(quantity: &Quantity) -> Result<u128, ConfigError> {
    let bad = || ConfigError(format!("`{}` is not a quantity", quantity.0));
    let text = quantity.0.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
        return Err(bad());
    }
    let digits: u128 = format!("{whole}{fraction}").trim_start_matches('+').parse().map_err(|_| bad())?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let factor: u128 = match unit {
        "n" | "u" => return Ok(1),
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        "Pi" => 1000 << 50,
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E']).and_then(|e| e.parse::<u32>().ok());
            1000 * 10u128.checked_pow(exponent.ok_or_else(bad)?).ok_or_else(bad)?
        }
    };
    Ok(digits.checked_mul(factor).ok_or_else(bad)?.div_ceil(scale))
}

#[derive(Default)]
struct Variables {
    in_order: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        if let Some(at) = self.index.get(&name) {
            self.in_order[*at].1 = value;
        } else {
            self.index.insert(name.clone(), self.in_order.len());
            self.in_order.push((name, value));
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|at| self.in_order[*at].1.as_str())
    }
}

fn value_of(
    store: &Store,
    node: &Node,
    pod: &Pod,
    container: &Container,
    namespace: &str,
    variable: &EnvVar,
    known: &Variables,
) -> Result<Option<String>, ConfigError> {
    let Some(from) = &variable.value_from else {
        let text = variable.value.as_deref().unwrap_or_default();
        return Ok(Some(expand_with(text, |name| known.get(name))));
    };
    if let Some(selector) = &from.field_ref {
        return field(pod, node, selector).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        let name = selector.container_name.as_deref().unwrap_or(&container.name);
        let spec = pod.spec.as_ref();
        let all =
            spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        let found = all.into_iter().find(|c| c.name == name).unwrap_or(container);
        return resource(found, node, selector).map(Some);
    }
    if let Some(from) = &from.config_map_key_ref {
        let map = store.config_map(namespace, &from.name);
        let value = map.and_then(|m| m.data.as_ref()).and_then(|d| d.get(&from.key)).cloned();
        return match value {
            Some(value) => Ok(Some(value)),
            None if from.optional == Some(true) => Ok(None),
            None if map.is_none() => Err(ConfigError(format!("configmap \"{}\" not found", from.name))),
            None => Err(ConfigError(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                from.key, from.name
            ))),
        };
    }
    if let Some(from) = &from.secret_key_ref {
        let secret = store.secret(namespace, &from.name);
        let value = secret.and_then(|s| s.data.as_ref()).and_then(|d| d.get(&from.key));
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if from.optional == Some(true) => Ok(None),
            None if secret.is_none() => Err(ConfigError(format!("secret \"{}\" not found", from.name))),
            None => Err(ConfigError(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                from.key, from.name
            ))),
        };
    }
    Ok(None)
}

fn expand_with<'a>(text: &str, value: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
            // `$$(NAME)`: the reference that follows is text.
        } else if let Some(end) = rest.strip_prefix('(').and_then(|inner| inner.find(')')) {
            let name = &rest[1..=end];
            if let Some(value) = value(name) {
                result.push_str(value);
            } else {
                result.push('$');
                result.push_str(&rest[..end + 2]);
            }
            rest = &rest[end + 2..];
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

/// The variables that tell a pod about a service of its namespace.
fn service_links(service: &Service, variables: &mut Variables) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| *ip != "None" && !ip.is_empty()) else { return };
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let upper = |text: &str| text.to_ascii_uppercase().replace(['-', '.'], "_");
    let name = upper(name);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    variables.set(format!("{name}_SERVICE_HOST"), ip.to_owned());
    variables.set(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = &port.name {
            variables.set(format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_ascii_lowercase(), port.port);
        if index == 0 {
            variables.set(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        variables.set(prefix.clone(), url);
        variables.set(format!("{prefix}_PROTO"), protocol.to_ascii_lowercase());
        variables.set(format!("{prefix}_PORT"), port.port.to_string());
        variables.set(format!("{prefix}_ADDR"), ip.to_owned());
    }
}
