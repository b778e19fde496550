//! Streams that follow an answer of the registry.
//!
//! A stream computes its next message when the client is ready to take one, from the registry as it is then. So there
//! is no queue: whatever happened while a client was slow arrives as one change.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::{self, Stream};
use ringmail_registry::{Index, Key, Registry, Subscription};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::fault::Refusal;
use crate::metrics::{Metrics, OpenStream};

/// A stream of answers as tonic takes it.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What one stream tells: the difference between what it has told and what is.
pub trait View: Send + 'static {
    /// One message.
    type Message: Send + 'static;

    /// The messages that bring the client up to date, none if it is; or why the stream ends. At the first call a
    /// view that does not end returns at least one message. `synced`: whether absence means absence.
    fn update(&mut self, index: &Index, synced: bool) -> Result<Vec<Self::Message>, Refusal>;
}

/// What all streams of a process share.
#[derive(Clone, Debug)]
pub struct Streams {
    registry: Registry,
    metrics: Metrics,
    shutdown: CancellationToken,
}

impl Streams {
    /// Streams over one registry, which end when `shutdown` is cancelled.
    pub fn new(registry: Registry, metrics: Metrics, shutdown: CancellationToken) -> Self {
        Self { registry, metrics, shutdown }
    }

    /// The registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Waits for the registry's first sync, a while. `asked` is what for, in words.
    pub async fn synced(&self, asked: impl FnOnce() -> String) -> Result<(), Refusal> {
        match tokio::time::timeout(SYNC_WAIT, self.registry.synced()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Refusal::NotSynced(asked())),
        }
    }

    /// Counts a question that gets no answer and turns it into a status.
    pub fn refuse(&self, rpc: &'static str, refusal: Refusal) -> Status {
        tracing::debug!(rpc, "refused: {refusal}");
        let status = Status::from(refusal);
        self.metrics.not_answered(rpc, &status);
        status
    }

    /// Follows the answer that depends on `key`.
    pub fn follow<V: View>(
        &self,
        rpc: &'static str,
        key: Key,
        mut view: V,
    ) -> Result<Answers<V::Message>, Status> {
        let changes = self.registry.subscribe(key);
        let synced = self.registry.is_synced();
        let first =
            view.update(&self.registry.read(), synced).map_err(|refusal| self.refuse(rpc, refusal))?;
        let state = Follow {
            view,
            changes,
            synced,
            streams: self.clone(),
            pending: first.into(),
            open: self.metrics.stream(rpc),
            rpc,
        };
        Ok(Box::pin(stream::unfold(Some(state), async |state| {
            let mut state = state?;
            match state.next().await {
                Ok(message) => {
                    state.open.sent();
                    Some((Ok(message), Some(state)))
                }
                Err(refusal) => Some((Err(state.streams.refuse(state.rpc, refusal)), None)),
            }
        })))
    }
}

struct Follow<V: View> {
    streams: Streams,
    view: V,
    changes: Subscription,
    synced: bool,
    /// Messages of one update that are still to be sent.
    pending: VecDeque<V::Message>,
    open: OpenStream,
    rpc: &'static str,
}

impl<V: View> Follow<V> {
    async fn next(&mut self) -> Result<V::Message, Refusal> {
        loop {
            if let Some(message) = self.pending.pop_front() {
                return Ok(message);
            }
            tokio::select! {
                () = self.streams.shutdown.cancelled() => return Err(Refusal::ShuttingDown),
                () = self.changes.changed() => {}
                () = self.streams.registry.synced(), if !self.synced => self.synced = true,
            }
            self.pending = self.view.update(&self.streams.registry.read(), self.synced)?.into();
        }
    }
}

/// How long a question waits for the registry's first sync.
const SYNC_WAIT: Duration = Duration::from_secs(2);
