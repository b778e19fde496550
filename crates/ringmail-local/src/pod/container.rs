//! One container of a pod: started, watched, started again.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use super::hooks;
use super::probe::{ProbePlan, Purpose, Verdict};
use super::spec;
use super::state::{ContainerKind, ContainerState, Ended};
use super::worker::Shared;
use crate::env;
use crate::logs::Log;
use crate::machine::{Exit, Running};
use crate::protocol::Severity;

/// Keeps a container running until its policy says that it is done. Returns whether it ended well. Dropped, it leaves the container
/// as it is, except one that is just being started, which ends.
pub(super) async fn supervise(me: Arc<Shared>, index: usize) -> bool {
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        let (good, why) = match run_once(&me, index).await {
            Ok(exit) => (exit.code == 0, None),
            Err(why) => {
                me.event(
                    Severity::Warning,
                    "Failed",
                    format!("container {}: {}", me.name_of(index), why.message),
                );
                (false, Some(why))
            }
        };
        let again = match me.kind_of(index) {
            ContainerKind::Sidecar => true,
            ContainerKind::Init => !good && me.restart_policy() != "Never",
            ContainerKind::App => match me.restart_policy() {
                "Never" => false,
                "OnFailure" => !good,
                _ => true,
            },
        };
        match (again, why) {
            (false, None) => return good,
            (false, Some(why)) if why.reason == RUN_ERROR => {
                // Its program cannot be run at all: that counts as a run that failed, as on a cluster.
                ended(&me, index, Exit { code: 128, signal: None }, Timestamp::now(), Some(why.message));
                return false;
            }
            (_, why) => {
                let pause = backoff.next(begun.elapsed());
                wait(&me, index, pause, why).await;
            }
        }
    }
}

/// Waits until the next try, and says what for.
async fn wait(me: &Arc<Shared>, index: usize, pause: Duration, why: Option<NotStarted>) {
    let state = match why {
        Some(NotStarted { reason, message }) => Some(ContainerState::Waiting { reason, message }),
        None if pause.is_zero() => None,
        None => Some(ContainerState::Waiting {
            reason: "CrashLoopBackOff",
            message: format!("back-off {}s restarting failed container", pause.as_secs()),
        }),
    };
    if let Some(waiting) = state {
        me.change(|state| {
            let record = &mut state.containers[index];
            if let ContainerState::Terminated(ended) = std::mem::replace(&mut record.state, waiting) {
                record.last = Some(ended);
            }
        });
    }
    me.wait_or_store_change(pause).await;
}

/// Why a container did not start.
struct NotStarted {
    reason: &'static str,
    message: String,
}

async fn run_once(me: &Arc<Shared>, index: usize) -> Result<Exit, NotStarted> {
    let running = start(me, index).await?;
    let began = Instant::now();
    let started = Timestamp::now();
    let record = me.record(index);
    let env = record.env.clone();
    let address = me.address();

    let post_start = record.spec.lifecycle.as_ref().and_then(|l| l.post_start.clone());
    let health = async {
        if let Some(hook) = post_start {
            let limit = Duration::from_mins(1);
            if let Err(error) = hooks::run_hook(&hook, &record.spec, &running, &env, address, limit).await {
                return Unhealthy { message: format!("postStart hook: {error}"), grace: None };
            }
        }
        watch(me, index, &running, &env, began).await
    };
    let mut killed = None;
    let exit = tokio::select! {
        exit = running.exited() => exit,
        unhealthy = health => {
            me.event(Severity::Warning, "Unhealthy", format!("container {}: {}", record.name(), unhealthy.message));
            me.change(|state| state.containers[index].ready = false);
            let grace = unhealthy.grace.unwrap_or_else(|| me.grace());
            killed = Some(unhealthy.message);
            hooks::stop(&record.spec, &running, &env, address, grace).await
        }
    };
    ended(me, index, exit, started, killed);
    Ok(exit)
}

/// Writes down how a container ended.
pub(super) fn ended(me: &Arc<Shared>, index: usize, exit: Exit, started: Timestamp, killed: Option<String>) {
    let name = me.name_of(index);
    let reason = match exit.code {
        0 => "Completed",
        _ => "Error",
    };
    me.change(|state| {
        let record = &mut state.containers[index];
        let mut message = killed.map(|why| format!("ended because of its health: {why}")).unwrap_or_default();
        if exit.code != 0 && message.is_empty() {
            let last = record.log.lines(Some(1));
            message = last.first().map(|line| line.chars().take(400).collect()).unwrap_or_default();
        }
        record.state =
            ContainerState::Terminated(Ended { exit, reason, message, started, finished: Timestamp::now() });
        record.ready = false;
        record.started = false;
        record.running = None;
    });
    if exit.code != 0 {
        me.event(Severity::Warning, "Exited", format!("container {name} ended with {}", exit.code));
    }
}

async fn start(me: &Arc<Shared>, index: usize) -> Result<Arc<dyn Running>, NotStarted> {
    let record = me.record(index);
    let config = |message: String| NotStarted { reason: "CreateContainerConfigError", message };
    let store = me.events().store();
    let pod = me.pod_with_status();
    let node = &me.context().volumes.node;
    let programs = me.events().programs();
    let variables = env::environment(&store, node, &pod, &record.spec).map_err(|e| config(e.to_string()))?;
    let facts = me.facts();
    let variables = spec::base_environment(&facts.hostname, &programs.path_variable(), variables);
    let mounts = me.mounts(&record.spec, &variables).map_err(|e| config(e.to_string()))?;
    let profile = me.profile(record.name());
    let spec = spec::container_spec(&pod, &record.spec, profile, &programs, &variables, mounts, &facts)
        .map_err(|e| config(e.to_string()))?;
    let log = Log::default();
    let sandbox = me.sandbox().ok_or_else(|| config("the pod has no network".to_owned()))?;
    let running = sandbox.start(spec, log.clone()).await.map_err(|error| NotStarted {
        reason: if error.permanent { RUN_ERROR } else { "CreateContainerError" },
        message: error.to_string(),
    })?;
    let again = me.change(|state| {
        let record = &mut state.containers[index];
        let before =
            std::mem::replace(&mut record.state, ContainerState::Running { since: Timestamp::now() });
        if let ContainerState::Terminated(ended) = before {
            record.last = Some(ended);
        }
        let ran_before = record.ran;
        if ran_before {
            record.restarts += 1;
            record.previous_log = Some(std::mem::replace(&mut record.log, log));
        } else {
            record.log = log;
        }
        record.ran = true;
        record.running = Some(running.clone());
        record.env = variables;
        record.trouble = None;
        ran_before
    });
    let what = if again { "started again" } else { "started" };
    me.event(Severity::Normal, "Started", format!("container {} {what}", record.name()));
    Ok(running)
}

/// Reason of a container whose program cannot be run.
const RUN_ERROR: &str = "RunContainerError";

/// A container that must end.
struct Unhealthy {
    message: String,
    grace: Option<Duration>,
}

/// Runs a container's probes for as long as it is healthy.
async fn watch(
    me: &Arc<Shared>,
    index: usize,
    running: &Arc<dyn Running>,
    env: &[(String, String)],
    began: Instant,
) -> Unhealthy {
    let record = me.record(index);
    let spec = &record.spec;
    let plan = |probe: &Option<_>, purpose| match probe {
        None => Ok(None),
        Some(probe) => ProbePlan::new(probe, spec, purpose).map(Some),
    };
    let plans = (
        plan(&spec.startup_probe, Purpose::Startup),
        plan(&spec.readiness_probe, Purpose::Readiness),
        plan(&spec.liveness_probe, Purpose::Liveness),
    );
    let (startup, readiness, liveness) = match plans {
        (Ok(a), Ok(b), Ok(c)) => (a, b, c),
        (Err(message), ..) | (_, Err(message), _) | (.., Err(message)) => {
            return Unhealthy { message, grace: None };
        }
    };
    let probing = Probing { me, index, running, env, began };
    if let Some(plan) = startup
        && let Some(unhealthy) = probing.run(&plan, Purpose::Startup).await
    {
        return unhealthy;
    }
    me.change(|state| {
        let record = &mut state.containers[index];
        record.started = true;
        record.ready = readiness.is_none() && record.kind != ContainerKind::Init;
    });
    let ready = async {
        match readiness {
            Some(plan) => probing.run(&plan, Purpose::Readiness).await,
            None => None,
        };
        std::future::pending::<Unhealthy>().await
    };
    let live = async {
        match liveness {
            Some(plan) => probing.run(&plan, Purpose::Liveness).await,
            None => None,
        }
    };
    let live = live.then(|unhealthy| async {
        match unhealthy {
            Some(unhealthy) => unhealthy,
            None => std::future::pending().await,
        }
    });
    tokio::select! {
        unhealthy = live => unhealthy,
        unhealthy = ready => unhealthy,
    }
}

struct Probing<'a> {
    me: &'a Arc<Shared>,
    index: usize,
    running: &'a Arc<dyn Running>,
    env: &'a [(String, String)],
    began: Instant,
}

impl Probing<'_> {
    /// Probes: until good for startup, until bad for startup and liveness, for ever for readiness.
    async fn run(&self, plan: &ProbePlan, purpose: Purpose) -> Option<Unhealthy> {
        let mut state = plan.state(purpose);
        let mut answered = 0;
        let mut ready = false;
        let wait = plan.delay.saturating_sub(self.began.elapsed());
        tokio::time::sleep(wait).await;
        loop {
            let answer =
                hooks::check(&plan.action, self.running, self.env, self.me.address(), plan.timeout).await;
            answered += 1;
            let failure =
                answer.as_ref().err().map(|error| format!("{} probe failed: {error}", purpose.as_str()));
            let verdict = state.answer(answer.is_ok(), self.began.elapsed());
            self.remember(failure.as_deref());
            match (purpose, verdict) {
                (Purpose::Startup, Verdict::Good) => return None,
                (Purpose::Startup | Purpose::Liveness, Verdict::Bad) => {
                    return Some(Unhealthy { message: failure.unwrap_or_default(), grace: plan.grace });
                }
                (Purpose::Readiness, Verdict::Good) if !ready => {
                    ready = true;
                    self.set_ready(true);
                }
                (Purpose::Readiness, Verdict::Bad) if ready => {
                    ready = false;
                    let message =
                        format!("container {}: {}", self.me.name_of(self.index), failure.unwrap_or_default());
                    self.me.event(Severity::Warning, "Unhealthy", message);
                    self.set_ready(false);
                }
                _ => {}
            }
            tokio::time::sleep(plan.wait(&state, answered)).await;
        }
    }

    fn set_ready(&self, ready: bool) {
        self.me.change(|state| state.containers[self.index].ready = ready);
    }

    /// For people who wonder what a container waits for; no change that others must hear of.
    fn remember(&self, failure: Option<&str>) {
        self.me.quietly(|state| state.containers[self.index].trouble = failure.map(str::to_owned));
    }
}

/// Pauses between starts: none before the first restart, then from a second on doubling up to a minute. A run of two minutes makes
/// good for what was before. Shorter than on a cluster, since a person waits.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn next(&mut self, ran: Duration) -> Duration {
        if ran >= Duration::from_mins(2) {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            n => Duration::from_secs(1u64.checked_shl(n - 1).unwrap_or(u64::MAX).min(60)),
        };
        self.failures = self.failures.saturating_add(1).min(32);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_a_long_run_makes_good() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..9).map(|_| backoff.next(Duration::ZERO).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.next(Duration::from_secs(121)).as_secs(), 0);
    }
}
