//! Ending in order: draining, then a deadline, then force.
//!
//! Draining does not close a listener: a client that does not know yet goes on being served. The proxy leaves when
//! nothing holds it any more, when the grace period is over, or when it is told a second time.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Where the proxy is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Running,
    /// It was told to end, and serves until nothing holds it.
    Draining,
    /// Its time is over: what is still open is reset.
    Forced,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every guard was dropped in time.
    Drained,
    /// The grace period was over first.
    DeadlinePassed,
    /// It was forced first.
    Forced,
}

/// The listening end, for whoever serves connections.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Receiver<Phase>,
    held: TaskTracker,
}

/// The deciding end, for whoever hears the signals.
#[derive(Debug)]
pub struct DrainTrigger {
    phase: watch::Sender<Phase>,
    held: TaskTracker,
}

/// Holds the drain back while it lives: one for each connection.
#[derive(Debug)]
pub struct Guard {
    _token: TaskTrackerToken,
}

impl Drain {
    /// A drain in the phase [`Phase::Running`], and the trigger that moves it.
    pub fn new() -> (DrainTrigger, Self) {
        let (sender, receiver) = watch::channel(Phase::Running);
        let held = TaskTracker::new();
        (DrainTrigger { phase: sender, held: held.clone() }, Self { phase: receiver, held })
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Ends when draining starts (or is forced); at once when it has.
    pub async fn signaled(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Ends when connections must end now: the deadline passed, or a second signal came.
    pub async fn forced(&self) {
        self.reached(Phase::Forced).await;
    }

    /// Holds the drain back until the guard is dropped.
    pub fn hold(&self) -> Guard {
        Guard { _token: self.held.token() }
    }

    /// How many guards live.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    async fn reached(&self, phase: Phase) {
        let mut receiver = self.phase.clone();
        // A trigger that is gone cannot move the phase any more: then there is nothing to wait for.
        if receiver.wait_for(|now| *now >= phase).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl DrainTrigger {
    /// Starts draining; a second call changes nothing.
    pub fn start(&self) {
        self.raise(Phase::Draining);
    }

    /// Ends the patience.
    pub fn force(&self) {
        self.raise(Phase::Forced);
    }

    /// Ends when nothing holds the drain any more, after `grace`, or when it is forced, whichever comes first. Leaves
    /// the phase at [`Phase::Forced`] unless everything was drained.
    pub async fn finished(&self, grace: Duration) -> Outcome {
        self.held.close();
        let mut phase = self.phase.subscribe();
        let outcome = tokio::select! {
            biased;
            () = self.held.wait() => return Outcome::Drained,
            _ = phase.wait_for(|now| *now == Phase::Forced) => Outcome::Forced,
            () = tokio::time::sleep(grace) => Outcome::DeadlinePassed,
        };
        self.force();
        outcome
    }

    fn raise(&self, to: Phase) {
        self.phase.send_if_modified(|now| {
            let moves = *now < to;
            *now = (*now).max(to);
            moves
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Longer than any test runs.
    const GRACE: Duration = Duration::from_hours(1);

    #[tokio::test]
    async fn a_proxy_without_connections_leaves_at_once() {
        let (trigger, drain) = Drain::new();
        assert_eq!(drain.phase(), Phase::Running);
        assert_eq!(drain.signaled().now_or_never(), None);
        trigger.start();
        drain.signaled().await;
        assert_eq!(trigger.finished(GRACE).now_or_never(), Some(Outcome::Drained));
    }

    #[tokio::test]
    async fn a_connection_holds_the_proxy_until_it_ends() {
        let (trigger, drain) = Drain::new();
        let guard = drain.hold();
        trigger.start();
        let mut finished = std::pin::pin!(trigger.finished(GRACE));
        assert_eq!(finished.as_mut().now_or_never(), None);
        // A connection that is accepted while draining counts too.
        let late = drain.hold();
        drop(guard);
        assert_eq!(finished.as_mut().now_or_never(), None);
        drop(late);
        assert_eq!(finished.await, Outcome::Drained);
        assert_eq!((drain.held(), drain.phase()), (0, Phase::Draining));
    }

    #[tokio::test]
    async fn the_deadline_forces_what_is_still_open() {
        let (trigger, drain) = Drain::new();
        let _guard = drain.hold();
        trigger.start();
        assert_eq!(drain.forced().now_or_never(), None);
        assert_eq!(trigger.finished(Duration::from_millis(10)).await, Outcome::DeadlinePassed);
        drain.forced().await;
        assert_eq!(drain.phase(), Phase::Forced);
    }

    #[tokio::test]
    async fn a_second_signal_forces_before_the_deadline() {
        let (trigger, drain) = Drain::new();
        let _guard = drain.hold();
        trigger.start();
        trigger.force();
        assert_eq!(trigger.finished(GRACE).await, Outcome::Forced);
        // Draining cannot be taken back.
        trigger.start();
        assert_eq!(drain.phase(), Phase::Forced);
    }
}
