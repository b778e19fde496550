//! Deployment: replicas, and new pods ready before old ones go.

use k8s_openapi::api::apps::v1::DeploymentSpec;

use super::{Plan, PodView, seconds, share};

/// The next steps towards `spec` with the template revision `revision`.
pub fn plan(spec: &DeploymentSpec, revision: &str, pods: &[PodView]) -> Plan {
    let mut plan = Plan::default();
    if spec.paused == Some(true) && pods.iter().any(|p| p.revision != revision) {
        return plan;
    }
    let replicas = u32::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0) as usize;
    let min_ready = seconds(spec.min_ready_seconds);
    // Pods that are over (evicted, in a cluster) are of no more use to a deployment.
    for pod in pods.iter().filter(|p| p.phase.is_final() && !p.terminating) {
        plan.delete(&pod.name);
    }
    let live: Vec<&PodView> = pods.iter().filter(|p| p.is_live()).collect();
    let (mut new, mut old): (Vec<&PodView>, Vec<&PodView>) =
        live.iter().partition(|p| p.revision == revision);

    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        for pod in &old {
            plan.delete(&pod.name);
        }
        // "Recreate" promises that two revisions never run at once: wait until the old ones are gone.
        if pods.iter().any(|p| p.revision != revision) {
            return plan;
        }
        scale(&mut plan, &mut new, replicas);
        return plan;
    }

    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let count = u32::try_from(replicas).unwrap_or(u32::MAX);
    let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), "25%", count, true) as usize;
    let mut unavailable =
        share(rolling.and_then(|r| r.max_unavailable.as_ref()), "25%", count, false) as usize;
    if surge == 0 && unavailable == 0 {
        // Both zero could never make progress; Kubernetes rounds the second one up as well.
        unavailable = 1;
    }
    let room = (replicas + surge).saturating_sub(live.len());
    for _ in 0..replicas.saturating_sub(new.len()).min(room) {
        plan.create(None);
    }
    if new.len() > replicas {
        scale(&mut plan, &mut new, replicas);
    }

    // Old pods that serve nobody go at once; the others only as far as enough pods stay available.
    let available = live.iter().filter(|p| p.is_available(min_ready)).count();
    let mut spare = available.saturating_sub(replicas.saturating_sub(unavailable));
    old.sort_by_key(|p| (p.ready_for.is_some(), p.sequence));
    for pod in old {
        if !pod.is_available(min_ready) {
            plan.delete(&pod.name);
        } else if spare > 0 {
            spare -= 1;
            plan.delete(&pod.name);
        }
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

/// To the right number of pods of one revision: the youngest and unready ones go first.
fn scale(plan: &mut Plan, pods: &mut [&PodView], replicas: usize) {
    for _ in pods.len()..replicas {
        plan.create(None);
    }
    pods.sort_by_key(|p| (p.ready_for.is_some(), std::cmp::Reverse(p.sequence)));
    for pod in pods.iter().take(pods.len().saturating_sub(replicas)) {
        plan.delete(&pod.name);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::apps::v1::{DeploymentStrategy, RollingUpdateDeployment};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    use super::super::testing::{CREATE, delete, ready, terminating, unready};
    use super::*;

    fn spec(replicas: i32) -> DeploymentSpec {
        DeploymentSpec { replicas: Some(replicas), ..DeploymentSpec::default() }
    }

    #[test]
    fn missing_pods_are_made() {
        assert_eq!(plan(&spec(2), "a", &[]).steps, [CREATE, CREATE]);
        assert_eq!(plan(&spec(2), "a", &[ready("x", "a", 1)]).steps, [CREATE]);
    }

    #[test]
    fn a_new_pod_is_ready_before_the_old_one_goes() {
        let old = ready("old", "a", 1);
        assert_eq!(plan(&spec(1), "b", std::slice::from_ref(&old)).steps, [CREATE]);
        assert_eq!(plan(&spec(1), "b", &[old.clone(), unready("new", "b", 2)]).steps, []);
        assert_eq!(plan(&spec(1), "b", &[old.clone(), ready("new", "b", 2)]).steps, [delete("old")]);
        assert_eq!(plan(&spec(1), "b", &[terminating(old), ready("new", "b", 2)]).steps, []);
    }

    #[test]
    fn min_ready_seconds_delays_the_old_pods_end() {
        let mut spec = spec(1);
        spec.min_ready_seconds = Some(10);
        let mut new = ready("new", "b", 2);
        new.ready_for = Some(Duration::from_secs(4));
        let plan = plan(&spec, "b", &[ready("old", "a", 1), new]);
        assert_eq!(plan.steps, []);
        assert_eq!(plan.again_after, Some(Duration::from_secs(6)));
    }

    #[test]
    fn an_old_pod_that_serves_nobody_goes_at_once() {
        let pods = [unready("old", "a", 1)];
        assert_eq!(plan(&spec(1), "b", &pods).steps, [CREATE, delete("old")]);
    }

    #[test]
    fn a_rollout_of_many_keeps_to_surge_and_unavailable() {
        let mut spec = spec(4);
        spec.strategy = Some(DeploymentStrategy {
            type_: None,
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(1)),
                max_unavailable: Some(IntOrString::Int(1)),
            }),
        });
        let old: Vec<PodView> = (0..4).map(|i| ready(&format!("o{i}"), "a", i)).collect();
        let first = plan(&spec, "b", &old);
        assert_eq!(first.steps, [CREATE, delete("o0")]);
    }

    #[test]
    fn scaling_down_removes_the_unready_and_then_the_youngest() {
        let pods = [ready("p1", "a", 1), unready("p2", "a", 2), ready("p3", "a", 3)];
        assert_eq!(plan(&spec(1), "a", &pods).steps, [delete("p2"), delete("p3")]);
    }

    #[test]
    fn recreate_never_runs_two_revisions_at_once() {
        let mut spec = spec(1);
        spec.strategy = Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
        let old = ready("old", "a", 1);
        assert_eq!(plan(&spec, "b", std::slice::from_ref(&old)).steps, [delete("old")]);
        assert_eq!(plan(&spec, "b", &[terminating(old)]).steps, []);
        assert_eq!(plan(&spec, "b", &[]).steps, [CREATE]);
    }
}
