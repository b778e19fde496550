//! The end of a program, asked for by a signal.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Knows whether SIGTERM or SIGINT has come.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Watches for the signals from now on. Must be called inside a runtime, before serving, so that none is missed.
    pub fn watch() -> anyhow::Result<Self> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            sender.send_replace(true);
        });
        Ok(Self(receiver))
    }

    /// Completes at the signal: time to stop accepting and to finish what is in flight.
    pub async fn requested(mut self) {
        // The sender leaves only after it has sent.
        let _ = self.0.wait_for(|requested| *requested).await;
    }

    /// Completes some seconds after the signal: what is still in flight will not finish by itself, such as a stream that a
    /// client keeps open.
    pub async fn overdue(self) {
        self.requested().await;
        tokio::time::sleep(GRACE).await;
    }
}

const GRACE: Duration = Duration::from_secs(3);
