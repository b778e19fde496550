//! Job: pods until enough of them ended well.

use std::time::Duration;

use k8s_openapi::api::batch::v1::JobSpec;

use super::{Phase, Plan, PodView};

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Pods are still running or to be made.
    Active,
    /// Enough pods ended well.
    Complete,
    /// It was given up.
    Failed {
        /// `BackoffLimitExceeded` or `DeadlineExceeded`.
        reason: &'static str,
        /// One sentence.
        message: String,
    },
}

/// The next steps of a job that was started `age` ago, and where it stands.
pub fn plan(spec: &JobSpec, age: Duration, pods: &[PodView]) -> (Plan, Progress) {
    let mut plan = Plan::default();
    let number = |value: Option<i32>, default: u32| value.map_or(default, |v| u32::try_from(v).unwrap_or(0));
    let parallelism = number(spec.parallelism, 1);
    let work_queue = spec.completions.is_none() && spec.parallelism.is_some_and(|p| p > 1);
    let completions = number(spec.completions, 1);
    let limit = number(spec.backoff_limit, 6);
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");

    let active: Vec<&PodView> = pods.iter().filter(|p| p.is_live()).collect();
    let succeeded: Vec<&PodView> = pods.iter().filter(|p| p.phase == Phase::Succeeded).collect();
    let failed = pods.iter().filter(|p| p.phase == Phase::Failed).count();
    // With restartPolicy OnFailure the containers' restarts are the retries.
    let retries = failed as u64 + active.iter().map(|p| u64::from(p.restarts)).sum::<u64>();

    let done: usize = if indexed {
        (0..completions).filter(|i| succeeded.iter().any(|p| p.ordinal == Some(*i))).count()
    } else {
        succeeded.len()
    };
    let complete = if work_queue {
        !succeeded.is_empty() && active.is_empty()
    } else {
        done as u64 >= u64::from(completions)
    };
    let stop = |plan: &mut Plan| {
        for pod in &active {
            plan.delete(&pod.name);
        }
    };
    if complete {
        stop(&mut plan);
        return (plan, Progress::Complete);
    }
    if retries > u64::from(limit) {
        stop(&mut plan);
        let message = format!("{retries} attempts failed, more than backoffLimit ({limit})");
        return (plan, Progress::Failed { reason: "BackoffLimitExceeded", message });
    }
    if let Some(deadline) =
        spec.active_deadline_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs)
    {
        if age >= deadline {
            stop(&mut plan);
            let message = format!("it ran longer than activeDeadlineSeconds ({})", deadline.as_secs());
            return (plan, Progress::Failed { reason: "DeadlineExceeded", message });
        }
        plan.again(deadline.saturating_sub(age));
    }
    if spec.suspend == Some(true) {
        stop(&mut plan);
        return (plan, Progress::Active);
    }
    for pod in active.iter().skip(parallelism as usize) {
        plan.delete(&pod.name);
    }

    // A failed attempt is repeated after a pause that doubles.
    let pause = retry_pause(u32::try_from(failed).unwrap_or(u32::MAX));
    let since = pods.iter().filter(|p| p.phase == Phase::Failed).filter_map(|p| p.over_for).min();
    if let Some(since) = since
        && since < pause
    {
        plan.again(pause.saturating_sub(since));
        return (plan, Progress::Active);
    }
    let room = (parallelism as usize).saturating_sub(active.len());
    if indexed {
        let taken = |i: u32| active.iter().chain(&succeeded).any(|p| p.ordinal == Some(i));
        for index in (0..completions).filter(|i| !taken(*i)).take(room) {
            plan.create(Some(index));
        }
    } else if work_queue {
        // Once one pod of a work queue ended well, no new ones are made.
        for _ in 0..if succeeded.is_empty() { room } else { 0 } {
            plan.create(None);
        }
    } else {
        let missing = (completions as usize).saturating_sub(done + active.len());
        for _ in 0..room.min(missing) {
            plan.create(None);
        }
    }
    (plan, Progress::Active)
}

/// One second after the first failure, doubling up to a minute: a person waits in front of a local mesh.
fn retry_pause(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    Duration::from_secs(1u64.checked_shl(failures - 1).unwrap_or(u64::MAX).min(60))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CREATE, delete, over, ready};
    use super::super::{Phase, Step};
    use super::*;

    const AGE: Duration = Duration::from_secs(5);

    #[test]
    fn one_completion_is_the_default() {
        let spec = JobSpec::default();
        assert_eq!(plan(&spec, AGE, &[]).0.steps, [CREATE]);
        assert_eq!(plan(&spec, AGE, &[ready("x", "a", 1)]).0.steps, []);
        assert_eq!(
            plan(&spec, AGE, &[over("x", Phase::Succeeded, 1)]),
            (Plan::default(), Progress::Complete)
        );
    }

    #[test]
    fn failed_attempts_are_repeated_up_to_the_limit() {
        let spec = JobSpec { backoff_limit: Some(1), ..JobSpec::default() };
        assert_eq!(plan(&spec, AGE, &[over("x", Phase::Failed, 1)]).0.steps, [CREATE]);
        let (_, progress) = plan(&spec, AGE, &[over("x", Phase::Failed, 1), over("y", Phase::Failed, 2)]);
        assert!(matches!(progress, Progress::Failed { reason: "BackoffLimitExceeded", .. }));
    }

    #[test]
    fn a_retry_waits_for_its_pause() {
        let mut pod = over("x", Phase::Failed, 1);
        pod.over_for = Some(Duration::from_millis(300));
        let (plan, progress) = plan(&JobSpec::default(), AGE, &[pod]);
        assert_eq!(plan.steps, []);
        assert_eq!(plan.again_after, Some(Duration::from_millis(700)));
        assert_eq!(progress, Progress::Active);
    }

    #[test]
    fn restarts_in_place_count_as_attempts() {
        let spec = JobSpec { backoff_limit: Some(2), ..JobSpec::default() };
        let mut pod = ready("x", "a", 1);
        pod.restarts = 3;
        let (plan, progress) = plan(&spec, AGE, &[pod]);
        assert_eq!(plan.steps, [delete("x")]);
        assert!(matches!(progress, Progress::Failed { .. }));
    }

    #[test]
    fn parallel_completions_and_indices() {
        let spec = JobSpec { completions: Some(3), parallelism: Some(2), ..JobSpec::default() };
        assert_eq!(plan(&spec, AGE, &[]).0.steps, [CREATE, CREATE]);
        let spec = JobSpec { completion_mode: Some("Indexed".into()), ..spec };
        let mut done = over("x", Phase::Succeeded, 1);
        done.ordinal = Some(0);
        let steps = plan(&spec, AGE, &[done]).0.steps;
        assert_eq!(steps, [Step::Create { ordinal: Some(1) }, Step::Create { ordinal: Some(2) }]);
    }

    #[test]
    fn a_deadline_ends_the_job() {
        let spec = JobSpec { active_deadline_seconds: Some(10), ..JobSpec::default() };
        let (plan_before, _) = plan(&spec, AGE, &[ready("x", "a", 1)]);
        assert_eq!(plan_before.again_after, Some(Duration::from_secs(5)));
        let (plan, progress) = plan(&spec, Duration::from_secs(10), &[ready("x", "a", 1)]);
        assert_eq!(plan.steps, [delete("x")]);
        assert!(matches!(progress, Progress::Failed { reason: "DeadlineExceeded", .. }));
    }
}
