//! Whether a silent client is meshed: what the control plane knows of the source of a connection.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ringmail_api::sources as wire;
use ringmail_api::sources::sources_client::SourcesClient;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::cache::{Cache, Expire, Standing, sweep_regularly};
use crate::follow::{Channel, Heard, follow};
use crate::report::{Code, trouble};

/// What is known of sources, kept by watches. Cheap to clone.
#[derive(Clone)]
pub struct Sources(Arc<Inner>);

struct Inner {
    open: Box<OpenWatch>,
    runtime: Handle,
    known: Cache<(IpAddr, u16), Source>,
}

type OpenWatch = dyn Fn((IpAddr, u16), Listener, &Handle) -> JoinHandle<()> + Send + Sync;

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is known: it may be meshed.
    Unknown,
    /// Its proxy starts each connection to this port with TLS.
    Meshed,
    /// It has no proxy, or its proxy skips this port.
    Unmeshed,
}

impl Sources {
    /// Asks through `channel`, the destination service's. Watches run on the runtime that this is called on.
    pub fn start<C: Channel>(channel: C) -> Self {
        let open = move |key: (IpAddr, u16), listener: Listener, runtime: &Handle| {
            runtime.spawn(watch_source(channel.clone(), key, listener))
        };
        let known = Cache::new(MAX_SOURCES, IDLE);
        let inner = Arc::new(Inner { open: Box::new(open), runtime: Handle::current(), known });
        sweep_regularly(&inner, |inner| &inner.known);
        Self(inner)
    }

    /// What the client at `ip` is with regard to our `port`. Waits for the first answer, for ever if none comes: the
    /// caller has a deadline, after which nothing is known. An answer that was heard once serves while the control
    /// plane is away.
    pub async fn kind(&self, ip: IpAddr, port: u16) -> Kind {
        let key = (ip.to_canonical(), port);
        let made = self.0.known.get(&key, || {
            let (kind, receiver) = watch::channel(None);
            let standing = Standing::default();
            let listener = Listener { key, kind, standing: standing.clone() };
            Source {
                kind: receiver,
                standing,
                _task: AbortOnDropHandle::new((self.0.open)(key, listener, &self.0.runtime)),
            }
        });
        let Ok(source) = made else { return Kind::Unknown };
        let mut kind = source.kind.clone();
        match kind.wait_for(Option::is_some).await {
            Ok(known) => known.unwrap_or(Kind::Unknown),
            Err(_) => Kind::Unknown,
        }
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

struct Source {
    kind: watch::Receiver<Option<Kind>>,
    standing: Standing,
    _task: AbortOnDropHandle<()>,
}

impl Expire for Source {
    fn may_expire(&self) -> bool {
        self.standing.may_expire()
    }
}

struct Listener {
    key: (IpAddr, u16),
    kind: watch::Sender<Option<Kind>>,
    standing: Standing,
}

impl Listener {
    fn heard(&self, heard: Heard<wire::Source>) {
        match heard {
            Heard::Message(source) => {
                self.standing.heard();
                self.kind.send_replace(Some(match source.kind() {
                    wire::source::Kind::Unknown => Kind::Unknown,
                    wire::source::Kind::Meshed => Kind::Meshed,
                    wire::source::Kind::Unmeshed => Kind::Unmeshed,
                }));
            }
            Heard::Lost(status) => {
                self.standing.lost();
                trouble(Code::SourcesWatch, &format_args!("{} to port {}", self.key.0, self.key.1), &status);
            }
        }
    }
}

async fn watch_source<C: Channel>(channel: C, (ip, port): (IpAddr, u16), listener: Listener) {
    let open = || {
        let mut client = SourcesClient::new(channel.clone());
        async move { client.watch(wire::SourceRequest { ip: ip.to_string(), port: u32::from(port) }).await }
    };
    follow(open, |heard| listener.heard(heard)).await;
}

/// Sources that are watched at once.
const MAX_SOURCES: usize = 1_024;
const IDLE: Duration = Duration::from_secs(90);
