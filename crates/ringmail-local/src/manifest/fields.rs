//! Fields that Kubernetes does not know, and those that the local mesh does not do.
//!
//! Nothing is dropped in silence: a field that Kubernetes would refuse is an error, one that would change what the
//! program does is an error or a warning by name. Fields that only say where, when or how cheaply a pod runs (scheduling, image
//! pulling, resource limits) have no meaning on one machine and are accepted.

use serde::Serialize;
use serde_json::Value;

use super::{Document, Object};
use crate::problem::{Problem, Problems};

/// Fields of the document that its type does not have.
pub(super) fn unknown<T: Serialize>(document: &Document, object: &T) -> Result<(), Problems> {
    let mut problems = Problems::default();
    if let Ok(known) = serde_json::to_value(object) {
        compare(&document.value, &known, "", &mut |path| {
            problems.push(Problem::new(
                "RM1543",
                document.place(path),
                format!("`{path}` is not a field of {}", kind_of(document)),
                "check its spelling and its indentation",
            ));
        });
    }
    problems.into_result()
}

/// Fields that are known and not done here: errors where the program would not work as meant, else warnings.
pub(super) fn check(document: &Document, object: &Object) -> Result<Vec<Problem>, Problems> {
    let mut warnings = Vec::new();
    let mut problems = Problems::default();
    let kind = object.kind().as_str();
    let value = object.to_json();
    let pod_path = object.template().map(|t| t.path);
    walk(&value, "", &mut |path, value| {
        let plain = without_indices(path).replace("initContainers[]", "containers[]");
        let in_pod = pod_path.and_then(|p| plain.strip_prefix(p)).and_then(|p| p.strip_prefix('.'));
        for rule in RULES {
            let matches = match rule.at.split_once(':') {
                Some(("pod", field)) => in_pod == Some(field),
                Some((rule_kind, field)) => rule_kind == kind && plain == field,
                None => false,
            };
            if !matches || !rule.when.holds(value) {
                continue;
            }
            let shown = if value.is_object() || value.is_array() {
                format!("`{path}`")
            } else {
                format!("`{path}: {}`", value.to_string().trim_matches('"'))
            };
            let place = document.place(path);
            match rule.verdict {
                Verdict::Refuse(cure) => problems.push(Problem::new(
                    "RM1544",
                    place,
                    format!("{shown} is not done by the local mesh"),
                    cure,
                )),
                Verdict::Warn(effect) => {
                    warnings.push(Problem::new("RM1545", place, format!("{shown}: {effect}"), ""));
                }
            }
        }
    });
    problems.into_result()?;
    Ok(warnings)
}

struct Rule {
    /// `pod:<path in the pod spec>` or `<Kind>:<path>`; init containers count as containers.
    at: &'static str,
    when: When,
    verdict: Verdict,
}

enum When {
    Given,
    True,
    NotOneOf(&'static [&'static str]),
    Is(&'static str),
}

impl When {
    fn holds(&self, value: &Value) -> bool {
        match self {
            Self::Given => match value {
                Value::Array(items) => !items.is_empty(),
                Value::Object(fields) => !fields.is_empty(),
                other => !other.is_null(),
            },
            Self::True => value == &Value::Bool(true),
            Self::NotOneOf(allowed) => value.as_str().is_some_and(|v| !v.is_empty() && !allowed.contains(&v)),
            Self::Is(text) => value.as_str() == Some(text),
        }
    }
}

enum Verdict {
    /// Error; the text is the hint.
    Refuse(&'static str),
    /// Warning; the text says what is different here.
    Warn(&'static str),
}

const fn refuse(at: &'static str, when: When, cure: &'static str) -> Rule {
    Rule { at, when, verdict: Verdict::Refuse(cure) }
}

const fn warn(at: &'static str, when: When, effect: &'static str) -> Rule {
    Rule { at, when, verdict: Verdict::Warn(effect) }
}

const OTHER_VOLUME: &str = "use emptyDir, configMap, secret, projected, downwardAPI or hostPath; a stateful set's \
                            volumeClaimTemplates become directories that live as long as the mesh";
const ENDLESS: &str = "take the field out for the local mesh";

const RULES: &[Rule] = &[
    refuse(
        "pod:hostNetwork",
        When::True,
        "a pod always has its own network here; publish a port of its Service instead",
    ),
    refuse("pod:hostPID", When::True, "a pod sees its own processes only"),
    refuse("pod:hostIPC", When::True, ENDLESS),
    refuse("pod:shareProcessNamespace", When::True, "containers see their own processes only"),
    refuse("pod:ephemeralContainers", When::Given, "use `ringmail exec` to look into a running pod"),
    refuse("pod:readinessGates", When::Given, ENDLESS),
    refuse("pod:schedulingGates", When::Given, ENDLESS),
    refuse("pod:resourceClaims", When::Given, ENDLESS),
    refuse(
        "pod:dnsPolicy",
        When::NotOneOf(&["ClusterFirst", "ClusterFirstWithHostNet"]),
        "pods resolve the mesh's names only",
    ),
    refuse("pod:os.name", When::NotOneOf(&["linux"]), "containers are programs of this machine"),
    warn("pod:dnsConfig", When::Given, "ignored, pods use the mesh's resolver and search list"),
    warn("pod:setHostnameAsFQDN", When::True, "ignored, the host name is the pod's short name"),
    warn("pod:runtimeClassName", When::Given, "ignored, containers are programs of this machine"),
    refuse("pod:volumes[].persistentVolumeClaim", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].nfs", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].csi", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].iscsi", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].image", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].ephemeral", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].gitRepo", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].fc", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].flexVolume", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].awsElasticBlockStore", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].gcePersistentDisk", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].azureDisk", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].azureFile", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].cephfs", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].rbd", When::Given, OTHER_VOLUME),
    refuse("pod:volumes[].glusterfs", When::Given, OTHER_VOLUME),
    refuse(
        "pod:volumes[].projected.sources[].clusterTrustBundle",
        When::Given,
        "mount a configMap with the certificates",
    ),
    refuse("pod:volumes[].projected.sources[].podCertificate", When::Given, ENDLESS),
    refuse("pod:containers[].volumeDevices", When::Given, "mount a volume with `volumeMounts`"),
    refuse("pod:containers[].restartPolicyRules", When::Given, ENDLESS),
    refuse(
        "pod:containers[].volumeMounts[].mountPropagation",
        When::NotOneOf(&["None"]),
        "mounts stay within their container here",
    ),
    warn(
        "pod:containers[].tty",
        When::True,
        "ignored, a container's output goes to its log; `ringmail exec -t` has a terminal",
    ),
    warn(
        "pod:containers[].securityContext.privileged",
        When::True,
        "ignored, a container never has the machine's rights",
    ),
    warn("pod:containers[].securityContext.procMount", When::NotOneOf(&["Default"]), "ignored"),
    warn("pod:containers[].securityContext.seLinuxOptions", When::Given, "ignored"),
    warn("pod:containers[].securityContext.appArmorProfile.type", When::Is("Localhost"), "ignored"),
    warn("pod:containers[].securityContext.seccompProfile.type", When::Is("Localhost"), "ignored"),
    warn("pod:securityContext.seLinuxOptions", When::Given, "ignored"),
    warn("pod:securityContext.sysctls", When::Given, "ignored"),
    refuse(
        "pod:containers[].livenessProbe.httpGet.scheme",
        When::Is("HTTPS"),
        "probe with tcpSocket or exec",
    ),
    refuse(
        "pod:containers[].readinessProbe.httpGet.scheme",
        When::Is("HTTPS"),
        "probe with tcpSocket or exec",
    ),
    refuse("pod:containers[].startupProbe.httpGet.scheme", When::Is("HTTPS"), "probe with tcpSocket or exec"),
    refuse("pod:containers[].lifecycle.preStop.tcpSocket", When::Given, "use exec or httpGet"),
    refuse("pod:containers[].lifecycle.postStart.tcpSocket", When::Given, "use exec or httpGet"),
    refuse("pod:containers[].lifecycle.preStop.httpGet.scheme", When::Is("HTTPS"), "use exec"),
    refuse("pod:containers[].lifecycle.postStart.httpGet.scheme", When::Is("HTTPS"), "use exec"),
    refuse(
        "Service:spec.type",
        When::Is("ExternalName"),
        "pods reach services of the mesh only; leave the Service out",
    ),
    refuse(
        "Service:spec.externalIPs",
        When::Given,
        "publish the Service instead: `local.ringmail.dev/publish: \"127.0.0.1:8080\"`",
    ),
    refuse(
        "Service:spec.sessionAffinity",
        When::Is("ClientIP"),
        "the local mesh chooses an endpoint for each connection",
    ),
    warn(
        "Service:spec.type",
        When::Is("NodePort"),
        "not reachable from outside the mesh by this; publish it with the annotation `local.ringmail.dev/publish`",
    ),
    warn(
        "Service:spec.type",
        When::Is("LoadBalancer"),
        "not reachable from outside the mesh by this; publish it with the annotation `local.ringmail.dev/publish`",
    ),
    refuse("Service:spec.ports[].protocol", When::Is("SCTP"), "use TCP or UDP"),
    warn("Deployment:spec.paused", When::True, "a changed template is not rolled out until it is false"),
    refuse("Job:spec.podFailurePolicy", When::Given, ENDLESS),
    refuse("Job:spec.successPolicy", When::Given, ENDLESS),
    refuse("Job:spec.backoffLimitPerIndex", When::Given, "use backoffLimit"),
    refuse("Job:spec.maxFailedIndexes", When::Given, "use backoffLimit"),
    refuse("Job:spec.managedBy", When::NotOneOf(&["kubernetes.io/job-controller"]), ENDLESS),
    warn("Job:spec.manualSelector", When::True, "ignored, a job finds its pods by their owner"),
];

fn walk(value: &Value, path: &str, see: &mut impl FnMut(&str, &Value)) {
    if !path.is_empty() {
        see(path, value);
    }
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(value, &path, see);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                walk(value, &format!("{path}[{index}]"), see);
            }
        }
        _ => {}
    }
}

fn compare(given: &Value, known: &Value, path: &str, unknown: &mut impl FnMut(&str)) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(known) => compare(value, known, &path, unknown),
                    None if value.is_null() => {}
                    None => unknown(&path),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                compare(given, known, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

fn without_indices(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => {
                inside = true;
                plain.push('[');
            }
            ']' => {
                inside = false;
                plain.push(']');
            }
            _ if inside => {}
            _ => plain.push(c),
        }
    }
    plain
}

fn kind_of(document: &Document) -> &str {
    document.value.get("kind").and_then(Value::as_str).unwrap_or("this object")
}
