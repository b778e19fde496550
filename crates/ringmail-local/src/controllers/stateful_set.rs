//! StatefulSet: stable names, in order.

use k8s_openapi::api::apps::v1::StatefulSetSpec;

use super::{Plan, PodView, seconds};

/// The next steps towards `spec` with the template revision `revision`.
pub fn plan(spec: &StatefulSetSpec, revision: &str, pods: &[PodView]) -> Plan {
    let mut plan = Plan::default();
    let replicas = u32::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let first = spec.ordinals.as_ref().and_then(|o| o.start).map_or(0, |s| u32::try_from(s).unwrap_or(0));
    let wanted = first..first.saturating_add(replicas);
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    let min_ready = seconds(spec.min_ready_seconds);
    let at = |ordinal: u32| pods.iter().find(|p| p.ordinal == Some(ordinal));
    let healthy = |pod: &PodView| pod.is_live() && pod.is_available(min_ready);
    for pod in pods {
        if let Some(ready) = pod.ready_for
            && ready < min_ready
        {
            plan.again(min_ready.saturating_sub(ready));
        }
    }

    // Missing ones, from the lowest; a pod that is over is replaced under its own name.
    for ordinal in wanted.clone() {
        match at(ordinal) {
            None => plan.create(Some(ordinal)),
            Some(pod) if pod.phase.is_final() && !pod.terminating => plan.delete(&pod.name),
            Some(pod) if healthy(pod) => continue,
            Some(_) => {}
        }
        if !parallel {
            break;
        }
    }

    // Surplus ones, from the highest, one at a time.
    let mut surplus: Vec<&PodView> =
        pods.iter().filter(|p| p.ordinal.is_none_or(|o| !wanted.contains(&o))).collect();
    surplus.sort_by_key(|p| std::cmp::Reverse(p.ordinal));
    for pod in &surplus {
        if !pod.terminating {
            plan.delete(&pod.name);
        }
        if !parallel {
            break;
        }
    }
    if !plan.steps.is_empty() || !surplus.is_empty() {
        return plan;
    }

    // Outdated ones, from the highest, one at a time. One that is not healthy may go although another is not healthy
    // either: waiting for a pod of a broken revision would wait for ever.
    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
        return plan;
    }
    let partition = strategy
        .and_then(|s| s.rolling_update.as_ref())
        .and_then(|r| r.partition)
        .map_or(0, |p| u32::try_from(p).unwrap_or(0));
    let outdated = wanted.rev().filter(|o| *o >= partition).filter_map(at).find(|p| p.revision != revision);
    if let Some(pod) = outdated {
        let others_healthy = pods.iter().filter(|p| p.name != pod.name).all(healthy);
        if !pod.terminating && (others_healthy || !healthy(pod)) {
            plan.delete(&pod.name);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSetUpdateStrategy};

    use super::super::testing::{delete, over, ready, terminating, unready};
    use super::super::{Phase, Step};
    use super::*;

    fn spec(replicas: i32) -> StatefulSetSpec {
        StatefulSetSpec { replicas: Some(replicas), ..StatefulSetSpec::default() }
    }

    fn ordinal(mut pod: PodView, ordinal: u32) -> PodView {
        pod.ordinal = Some(ordinal);
        pod
    }

    fn create(ordinal: u32) -> Step {
        Step::Create { ordinal: Some(ordinal) }
    }

    #[test]
    fn pods_are_made_one_after_the_other() {
        assert_eq!(plan(&spec(3), "a", &[]).steps, [create(0)]);
        let db0 = ordinal(unready("db-0", "a", 1), 0);
        assert_eq!(plan(&spec(3), "a", &[db0]).steps, []);
        let db0 = ordinal(ready("db-0", "a", 1), 0);
        assert_eq!(plan(&spec(3), "a", &[db0]).steps, [create(1)]);
    }

    #[test]
    fn parallel_makes_all_at_once() {
        let mut spec = spec(3);
        spec.pod_management_policy = Some("Parallel".into());
        assert_eq!(plan(&spec, "a", &[]).steps, [create(0), create(1), create(2)]);
    }

    #[test]
    fn a_name_is_used_again_only_when_its_pod_is_gone() {
        let gone = terminating(ordinal(ready("db-0", "a", 1), 0));
        assert_eq!(plan(&spec(1), "a", &[gone]).steps, []);
        let failed = ordinal(over("db-0", Phase::Failed, 1), 0);
        assert_eq!(plan(&spec(1), "a", &[failed]).steps, [delete("db-0")]);
    }

    #[test]
    fn updates_go_from_the_highest_and_wait_for_health() {
        let pods = [ordinal(ready("db-0", "a", 1), 0), ordinal(ready("db-1", "a", 2), 1)];
        assert_eq!(plan(&spec(2), "b", &pods).steps, [delete("db-1")]);
        let pods = [ordinal(ready("db-0", "a", 1), 0), ordinal(unready("db-1", "b", 3), 1)];
        assert_eq!(plan(&spec(2), "b", &pods).steps, []);
    }

    #[test]
    fn a_broken_revision_does_not_block_its_successor() {
        let pods = [ordinal(ready("db-0", "a", 1), 0), ordinal(unready("db-1", "b", 3), 1)];
        assert_eq!(plan(&spec(2), "c", &pods).steps, [delete("db-1")]);
    }

    #[test]
    fn a_partition_keeps_the_lower_ordinals() {
        let mut spec = spec(2);
        spec.update_strategy = Some(StatefulSetUpdateStrategy {
            type_: None,
            rolling_update: Some(RollingUpdateStatefulSetStrategy {
                partition: Some(1),
                ..RollingUpdateStatefulSetStrategy::default()
            }),
        });
        let pods = [ordinal(ready("db-0", "a", 1), 0), ordinal(ready("db-1", "b", 2), 1)];
        assert_eq!(plan(&spec, "b", &pods).steps, []);
    }

    #[test]
    fn scaling_down_removes_the_highest_first() {
        let pods = [
            ordinal(ready("db-0", "a", 1), 0),
            ordinal(ready("db-1", "a", 2), 1),
            ordinal(ready("db-2", "a", 3), 2),
        ];
        assert_eq!(plan(&spec(1), "a", &pods).steps, [delete("db-2")]);
    }
}
