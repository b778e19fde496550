//! Watches on the control plane that never give up: a stream that ends or fails is opened again, with backoff and
//! jitter, and whatever was last heard stays with the caller.

use std::time::Duration;

use rand::Rng as _;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::{Response, Status, Streaming};

/// A way to a control-plane service: whatever the gRPC clients take.
pub trait Channel:
    GrpcService<
        Body,
        Error: Into<StdError>,
        Future: Send,
        ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<C> Channel for C where
    C: GrpcService<
            Body,
            Error: Into<StdError>,
            Future: Send,
            ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// What a watch brings.
pub(crate) enum Heard<M> {
    /// A message.
    Message(M),
    /// The stream is gone, and is opened again after a while.
    Lost(Status),
}

/// Opens the stream again and again, and tells `heard` what it brings. Never returns.
pub(crate) async fn follow<M, F>(
    mut open: impl FnMut() -> F,
    mut heard: impl FnMut(Heard<M>),
) -> std::convert::Infallible
where
    F: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let mut backoff = Backoff::default();
    loop {
        let lost = match open().await {
            Err(status) => status,
            Ok(response) => {
                let mut stream = response.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            backoff = Backoff::default();
                            heard(Heard::Message(message));
                        }
                        Ok(None) => break Status::unavailable("the stream ended"),
                        Err(status) => break status,
                    }
                }
            }
        };
        heard(Heard::Lost(lost));
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Growing pauses, each up to a half longer by chance, so that a fleet does not come back in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: SHORTEST }
    }
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST);
        pause + pause.mul_f64(rand::rng().random_range(0.0..0.5))
    }
}

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(pauses[0] >= SHORTEST && pauses[0] < SHORTEST * 2);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST + LONGEST / 2));
        assert!(pauses[11] >= LONGEST);
    }
}
