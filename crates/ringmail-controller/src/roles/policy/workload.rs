//! The text with which a proxy names its own pod.

use ringmail_registry::ObjectName;
use serde::Deserialize;

use crate::fault::{Refusal, printable};

/// Reads `{"ns": …, "pod": …}`, or the older `<ns>:<pod>`.
pub fn read_workload(text: &str) -> Result<ObjectName, Refusal> {
    let refused =
        |problem: &str| Refusal::Workload { text: printable(text.trim()), problem: problem.to_owned() };
    if !text.trim_start().starts_with('{') {
        return match text.trim().split_once(':') {
            Some((namespace, pod)) if !namespace.is_empty() && !pod.is_empty() => {
                Ok(ObjectName::new(namespace, pod))
            }
            _ => Err(refused("it is no JSON object")),
        };
    }
    let workload: Workload = serde_json::from_str(text).map_err(|error| refused(&error.to_string()))?;
    match (workload.ns, workload.pod, workload.external) {
        (Some(namespace), Some(pod), None) if !namespace.is_empty() && !pod.is_empty() => {
            Ok(ObjectName::new(&namespace, &pod))
        }
        (_, _, Some(_)) => Err(refused("workloads outside the cluster are not served")),
        (None, ..) => Err(refused("`ns` is missing")),
        (_, None, _) => Err(refused("`pod` is missing")),
        _ => Err(refused("`ns` or `pod` is empty")),
    }
}

#[derive(Deserialize)]
struct Workload {
    ns: Option<String>,
    pod: Option<String>,
    #[serde(rename = "external_workload")]
    external: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_a_pod() {
        let pod = ObjectName::new("ballot", "web-1");
        for text in [
            "{\"ns\":\"ballot\", \"pod\":\"web-1\"}\n",
            "ballot:web-1",
            " {\"pod\":\"web-1\",\"ns\":\"ballot\"}",
        ] {
            assert_eq!(read_workload(text), Ok(pod.clone()), "{text}");
        }
    }

    #[test]
    fn what_names_no_pod_is_refused_with_the_field() {
        for (text, problem) in [
            ("", "no JSON"),
            ("{", "EOF"),
            ("{\"pod\":\"p\"}", "`ns` is missing"),
            ("{\"ns\":\"n\"}", "`pod` is missing"),
            ("{\"ns\":\"\",\"pod\":\"p\"}", "empty"),
            ("{\"ns\":\"n\",\"external_workload\":\"w\"}", "outside the cluster"),
        ] {
            let error = read_workload(text).expect_err(text).to_string();
            assert!(error.starts_with("RM1620") && error.contains(problem), "{error}");
        }
    }
}
