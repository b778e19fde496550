//! DaemonSet: one pod, since a local mesh is one node.

use k8s_openapi::api::apps::v1::DaemonSetSpec;

use super::{Plan, PodView, seconds, share};

/// The next steps towards `spec` with the template revision `revision`.
pub fn plan(spec: &DaemonSetSpec, revision: &str, pods: &[PodView]) -> Plan {
    let mut plan = Plan::default();
    for pod in pods.iter().filter(|p| p.phase.is_final() && !p.terminating) {
        plan.delete(&pod.name);
    }
    let strategy = spec.update_strategy.as_ref();
    let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    let surge = share(
        strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_surge.as_ref()),
        "0%",
        1,
        true,
    ) > 0;
    let min_ready = seconds(spec.min_ready_seconds);
    let live: Vec<&PodView> = pods.iter().filter(|p| p.is_live()).collect();
    let (new, old): (Vec<&PodView>, Vec<&PodView>) =
        live.iter().partition(|p| p.revision == revision || on_delete);

    if new.is_empty() {
        let gone = pods.iter().all(|p| !p.terminating);
        if old.is_empty() && gone || surge {
            plan.create(None);
        }
        if !surge {
            for pod in old {
                plan.delete(&pod.name);
            }
        }
        return plan;
    }
    let ready = new.iter().any(|p| p.is_available(min_ready));
    for pod in old.into_iter().filter(|p| ready || p.ready_for.is_none()) {
        plan.delete(&pod.name);
    }
    for pod in new.iter().skip(1) {
        plan.delete(&pod.name);
    }
    for pod in &new {
        if let Some(ready) = pod.ready_for
            && ready < min_ready
        {
            plan.again(min_ready.saturating_sub(ready));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    use super::super::testing::{CREATE, delete, ready, terminating};
    use super::*;

    #[test]
    fn there_is_one_pod_and_an_update_replaces_it() {
        let spec = DaemonSetSpec::default();
        assert_eq!(plan(&spec, "a", &[]).steps, [CREATE]);
        assert_eq!(plan(&spec, "a", &[ready("x", "a", 1)]).steps, []);
        assert_eq!(plan(&spec, "b", &[ready("x", "a", 1)]).steps, [delete("x")]);
        assert_eq!(plan(&spec, "b", &[terminating(ready("x", "a", 1))]).steps, []);
    }

    #[test]
    fn with_surge_the_new_pod_comes_first() {
        let spec = DaemonSetSpec {
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: None,
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            ..DaemonSetSpec::default()
        };
        assert_eq!(plan(&spec, "b", &[ready("x", "a", 1)]).steps, [CREATE]);
        assert_eq!(plan(&spec, "b", &[ready("x", "a", 1), ready("y", "b", 2)]).steps, [delete("x")]);
    }
}
