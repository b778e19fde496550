//! Which objects have pods, and where in them the pod's template is.

use serde_json::{Map, Value};

use crate::inject::Owner;

/// What an object is to injection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// It has pods: their template is at this JSON pointer (a Pod is its own template).
    Pods(&'static str),
    /// It is a namespace, whose annotations hold for its pods.
    Namespace,
    /// It holds other objects, in `items`.
    List,
    /// It is something else.
    Other,
    /// It does not say what it is.
    NoKind,
}

/// What an object is.
pub fn shape(object: &Value) -> Shape {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let group = text("apiVersion").rsplit_once('/').map_or("", |(group, _)| group);
    match (group, text("kind")) {
        (_, "") => Shape::NoKind,
        ("", "Pod") => Shape::Pods(""),
        ("", "Namespace") => Shape::Namespace,
        ("", "List") => Shape::List,
        ("", "ReplicationController")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => Shape::Pods("/spec/template"),
        ("batch", "CronJob") => Shape::Pods("/spec/jobTemplate/spec/template"),
        _ => Shape::Other,
    }
}

/// The workload as the owner of its pods; a Pod owns itself and counts as none.
pub fn owner(object: &Value) -> Option<Owner> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let (kind, name) = (text("/kind")?, text("/metadata/name")?);
    (kind != "Pod").then(|| Owner { kind: kind.to_owned(), name: name.to_owned() })
}

/// `deployment/web`, as reports name objects.
pub fn title(object: &Value) -> (String, String) {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text("/metadata/name");
    let name = if name.is_empty() { text("/metadata/generateName") } else { name };
    (text("/kind").to_ascii_lowercase(), name)
}

/// The object's own annotations.
pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    object.pointer("/metadata/annotations").and_then(Value::as_object)
}
