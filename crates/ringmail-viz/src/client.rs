//! Asking viz, over any byte stream that leads to its API.

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use ringmail_api::viz::viz_client::VizClient as VizApi;
use ringmail_api::viz::{EdgesRequest, EdgesResponse, TapItem, TapRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::collect::said;

/// A connection to viz.
#[derive(Clone, Debug)]
pub struct VizClient(VizApi<Channel>);

/// Why viz gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The stream leads to nobody who speaks the API.
    #[error("RM1704: viz does not answer: {0}; `ringmail ps -n ringmail` shows whether it runs")]
    Connect(String),
    /// Viz refused, with its own words.
    #[error("{0}")]
    Refused(String),
    /// The connection broke in the middle of an answer.
    #[error("RM1705: the connection to viz ended: {0}")]
    Broken(String),
}

impl VizClient {
    /// Speaks the API over `io`.
    pub async fn over<IO>(io: IO) -> Result<Self, ClientError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = Mutex::new(Some(TokioIo::new(io)));
        let connector = tower::service_fn(move |_: http::Uri| {
            // There is one stream and it cannot be opened again: a second call is the end.
            let io = io.lock().take().ok_or(std::io::ErrorKind::NotConnected);
            std::future::ready(io.map_err(std::io::Error::from))
        });
        let channel = Endpoint::from_static("http://viz.ringmail").connect_with_connector(connector).await;
        channel
            .map(|channel| Self(VizApi::new(channel)))
            .map_err(|error| ClientError::Connect(error.to_string()))
    }

    /// Which resources are connected, and how.
    pub async fn edges(&mut self, request: EdgesRequest) -> Result<EdgesResponse, ClientError> {
        self.0.edges(request).await.map(tonic::Response::into_inner).map_err(|status| refused(&status))
    }

    /// Requests or connections as they happen.
    pub async fn tap(&mut self, request: TapRequest) -> Result<Tap, ClientError> {
        self.0.tap(request).await.map(|stream| Tap(stream.into_inner())).map_err(|status| refused(&status))
    }
}

/// A running tap.
#[derive(Debug)]
pub struct Tap(Streaming<TapItem>);

impl Tap {
    /// The next item; `None` when viz has ended the tap.
    pub async fn next(&mut self) -> Result<Option<TapItem>, ClientError> {
        self.0.message().await.map_err(|status| ClientError::Broken(said(&status)))
    }
}

fn refused(status: &tonic::Status) -> ClientError {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown => ClientError::Connect(said(status)),
        _ => ClientError::Refused(said(status)),
    }
}
