//! Controllers: what a workload wants, what there is, and the next steps between them. Pure, so that each rule has a test
//! without a namespace.
//!
//! Start here: [`PodView`] is what a controller sees of a pod, [`Plan`] what it answers. The engine carries the steps out and asks
//! again whenever a pod changes.

pub mod daemon_set;
pub mod deployment;
pub mod job;
pub mod stateful_set;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A pod's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all of its containers have started yet.
    Pending,
    /// Its containers have started.
    Running,
    /// Every container ended well and none will start again.
    Succeeded,
    /// Every container ended, one of them badly, and none will start again.
    Failed,
}

impl Phase {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// Whether the pod is over.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What a controller sees of one of its pods.
#[derive(Clone, Debug)]
pub struct PodView {
    /// The pod's name.
    pub name: String,
    /// The revision of the template it was made from.
    pub revision: String,
    /// A stateful set's ordinal, an indexed job's index.
    pub ordinal: Option<u32>,
    /// Its phase.
    pub phase: Phase,
    /// For how long it has been ready; `None` when it is not.
    pub ready_for: Option<Duration>,
    /// For how long it has been over; `None` when it is not.
    pub over_for: Option<Duration>,
    /// Whether it is being removed.
    pub terminating: bool,
    /// Order of creation.
    pub sequence: u64,
    /// How often its containers were started again.
    pub restarts: u32,
}

impl PodView {
    /// Neither over nor being removed.
    fn is_live(&self) -> bool {
        !self.terminating && !self.phase.is_final()
    }

    /// Ready for as long as asked.
    fn is_available(&self, min_ready: Duration) -> bool {
        self.ready_for.is_some_and(|ready| ready >= min_ready)
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a pod from the current template.
    Create {
        /// Its ordinal or index, where it has one.
        ordinal: Option<u32>,
    },
    /// Remove a pod.
    Delete {
        /// Its name.
        name: String,
    },
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// When to ask again although nothing changed: a time that must pass is part of the rule.
    pub again_after: Option<Duration>,
}

impl Plan {
    fn create(&mut self, ordinal: Option<u32>) {
        self.steps.push(Step::Create { ordinal });
    }

    fn delete(&mut self, name: &str) {
        self.steps.push(Step::Delete { name: name.to_owned() });
    }

    fn again(&mut self, after: Duration) {
        self.again_after = Some(self.again_after.map_or(after, |known| known.min(after)));
    }
}

/// `maxSurge` and its like: a number, or a percentage of the replicas, rounded up or down.
fn share(value: Option<&IntOrString>, default: &str, replicas: u32, round_up: bool) -> u32 {
    let percent = |text: &str| {
        let percent: u64 = text.trim_end_matches('%').parse().unwrap_or(0);
        let product = u64::from(replicas) * percent;
        let share = if round_up { product.div_ceil(100) } else { product / 100 };
        u32::try_from(share).unwrap_or(u32::MAX)
    };
    match value {
        None => percent(default),
        Some(IntOrString::Int(number)) => u32::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => percent(text),
    }
}

fn seconds(value: Option<i32>) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(0)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_in_the_direction_that_kubernetes_chose() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!(share(Some(&quarter), "25%", 3, true), 1);
        assert_eq!(share(Some(&quarter), "25%", 3, false), 0);
        assert_eq!(share(None, "25%", 8, false), 2);
        assert_eq!(share(Some(&IntOrString::Int(2)), "25%", 8, false), 2);
    }
}

#[cfg(test)]
mod testing {
    use super::*;

    /// A running, ready pod of a revision.
    pub(super) fn ready(name: &str, revision: &str, sequence: u64) -> PodView {
        PodView {
            name: name.into(),
            revision: revision.into(),
            ordinal: None,
            phase: Phase::Running,
            ready_for: Some(Duration::from_mins(1)),
            over_for: None,
            terminating: false,
            sequence,
            restarts: 0,
        }
    }

    pub(super) fn unready(name: &str, revision: &str, sequence: u64) -> PodView {
        PodView { ready_for: None, ..ready(name, revision, sequence) }
    }

    pub(super) fn over(name: &str, phase: Phase, sequence: u64) -> PodView {
        PodView {
            phase,
            ready_for: None,
            over_for: Some(Duration::from_mins(1)),
            ..ready(name, "a", sequence)
        }
    }

    pub(super) fn terminating(mut pod: PodView) -> PodView {
        pod.terminating = true;
        pod
    }

    pub(super) fn delete(name: &str) -> Step {
        Step::Delete { name: name.into() }
    }

    pub(super) const CREATE: Step = Step::Create { ordinal: None };
}
