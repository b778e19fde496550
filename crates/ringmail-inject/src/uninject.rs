//! Takes out what injection put in.

use serde_json::{Map, Value};

use crate::decide::{Wish, wish};
use crate::patch::{Operation, Patch, escape};
use crate::{
    ANCHORS_ANNOTATION, CONTROL_PLANE_LABEL, CREATED_BY_ANNOTATION, EFFECTIVE_ANNOTATION, INIT_CONTAINER,
    INJECT_ANNOTATION, OPTION_PREFIX, OWNER_LABEL_PREFIX, PROXY_CONTAINER, TOKEN_VOLUME, VERSION_ANNOTATION,
    WORKLOAD_NAMESPACE_LABEL,
};

/// The patch that removes the proxy, its volume, and its labels and annotations from a pod or pod template; also the
/// wish to be injected, but not the wish not to be. Options that the author set stay. Empty where there is nothing.
pub fn uninject(pod: &Value) -> Patch {
    let mut patch = Vec::new();
    for (list, names) in [
        ("/spec/initContainers", &[INIT_CONTAINER, PROXY_CONTAINER][..]),
        ("/spec/containers", &[PROXY_CONTAINER]),
        ("/spec/volumes", &[TOKEN_VOLUME]),
    ] {
        let elements = pod.pointer(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let ours = |element: &Value| {
            element.get("name").and_then(Value::as_str).is_some_and(|name| names.contains(&name))
        };
        let found: Vec<usize> = (0..elements.len()).filter(|index| ours(&elements[*index])).collect();
        // A pod without containers is none, so that list stays.
        if found.len() == elements.len() && !found.is_empty() && list != "/spec/containers" {
            patch.push(Operation::Remove { path: list.to_owned() });
        } else {
            // From the end, so that the numbers of those before stay right.
            patch.extend(
                found.iter().rev().map(|index| Operation::Remove { path: format!("{list}/{index}") }),
            );
        }
    }
    let injected = !patch.is_empty();
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    let label = |key: &str| {
        key == CONTROL_PLANE_LABEL || key == WORKLOAD_NAMESPACE_LABEL || key.starts_with(OWNER_LABEL_PREFIX)
    };
    patch.extend(remove_members("/metadata/labels", labels, injected, label));

    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    let written = annotations.and_then(|all| all.get(EFFECTIVE_ANNOTATION)).and_then(Value::as_str);
    let written: Vec<String> =
        written.unwrap_or_default().split(',').map(|name| format!("{OPTION_PREFIX}{name}")).collect();
    let wished = wish(annotations) == Wish::Enabled;
    let annotation = |key: &str| {
        [CREATED_BY_ANNOTATION, VERSION_ANNOTATION, ANCHORS_ANNOTATION, EFFECTIVE_ANNOTATION].contains(&key)
            || (key == INJECT_ANNOTATION && wished)
            || written.iter().any(|written| written == key)
    };
    patch.extend(remove_members("/metadata/annotations", annotations, true, annotation));
    patch
}

fn remove_members(
    path: &str,
    members: Option<&Map<String, Value>>,
    enabled: bool,
    ours: impl Fn(&str) -> bool,
) -> Patch {
    let Some(members) = members.filter(|_| enabled) else { return Vec::new() };
    let found: Vec<&String> = members.keys().filter(|key| ours(key)).collect();
    if found.len() == members.len() && !found.is_empty() {
        return vec![Operation::Remove { path: path.to_owned() }];
    }
    found.into_iter().map(|key| Operation::Remove { path: format!("{path}/{}", escape(key)) }).collect()
}
