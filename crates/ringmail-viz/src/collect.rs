//! Keeps a stream open to the proxy of each meshed pod.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use ringmail_api::flows::WatchFlowsRequest;
use ringmail_api::flows::flows_client::FlowsClient;
use ringmail_vocab::Flow;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

use crate::join::Account;
use crate::names::{NamedPod, Names};
use crate::store::Store;

/// Who is asked, and where the answers go.
#[derive(Clone)]
pub(crate) struct Collector {
    pub(crate) names: Arc<dyn Names>,
    pub(crate) store: Arc<Store>,
    /// The proxies' control port.
    pub(crate) port: u16,
}

impl Collector {
    /// Follows the pods that there are; for ever.
    pub(crate) async fn run(self) {
        let mut changes = self.names.changes();
        let mut watched: HashMap<String, Watched> = HashMap::new();
        loop {
            self.follow(&mut watched);
            tokio::select! {
                change = changes.next() => if change.is_none() {
                    changes = self.names.changes();
                    sleep(TICK).await;
                },
                () = sleep(TICK) => {}
            }
            // Pods change in bursts; one look takes in several changes.
            sleep(BURST).await;
            self.store.forget_old(now_ms());
        }
    }

    fn follow(&self, watched: &mut HashMap<String, Watched>) {
        let meshed = |pod: &Arc<NamedPod>| pod.identity.is_some() && !pod.ips.is_empty();
        let pods: HashMap<String, Arc<NamedPod>> =
            self.names.pods().into_iter().filter(meshed).map(|pod| (pod.uid.clone(), pod)).collect();
        watched.retain(|uid, watched| {
            let stays = pods.get(uid).is_some_and(|pod| *pod == watched.pod);
            if !pods.contains_key(uid) {
                self.store.gone(uid, now_ms());
            }
            stays
        });
        for (uid, pod) in pods {
            watched.entry(uid).or_insert_with(|| {
                self.store.expect(&pod, now_ms());
                let task = tokio::spawn(self.clone().watch(pod.clone()));
                Watched { pod, task }
            });
        }
    }

    async fn watch(self, pod: Arc<NamedPod>) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let begin = Instant::now();
            let reason = self.stream(&pod).await;
            self.store.lost(&pod, &reason, now_ms());
            tracing::info!(pod = %pod.full_name(), reason, "nothing is heard from this pod's proxy; trying again");
            backoff = if begin.elapsed() > STEADY { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            sleep(jittered(backoff)).await;
        }
    }

    /// Reads one stream to its end; returns why it ended.
    async fn stream(&self, pod: &Arc<NamedPod>) -> String {
        let Some(ip) = pod.ips.first() else { return "it has no address".to_owned() };
        let address = SocketAddr::new(*ip, self.port);
        let channel = match connect(address).await {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let mut client = FlowsClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut batches = match client.watch(WatchFlowsRequest {}).await {
            Ok(response) => response.into_inner(),
            Err(status) => return format!("RM1703: {address} refused: {}", said(&status)),
        };
        let mut known = false;
        let mut malformed = 0_u64;
        loop {
            let batch = match batches.message().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return format!("RM1703: {address} ended the stream"),
                Err(status) => return format!("RM1703: {address} broke the stream: {}", said(&status)),
            };
            let now = now_ms();
            if let Some(proxy) = &batch.proxy {
                // The name on which every √ of this proxy rests: what it says of itself must be what its pod must have,
                // which is also what our own proxy demanded in the handshake.
                let expected = pod.identity.as_ref().map_or("", |identity| identity.as_str());
                if proxy.identity != expected {
                    return format!(
                        "RM1703: {address} bears the identity `{}`, expected `{expected}`",
                        proxy.identity
                    );
                }
                self.store.connected(pod, &proxy.run, now);
                known = true;
            }
            if !known {
                return format!("RM1703: {address} does not say who it is");
            }
            if batch.dropped > 0 {
                self.store.missed(pod, now);
            }
            for wire in batch.flows {
                match Flow::try_from(wire) {
                    Ok(flow) => {
                        let peer = self.names.by_ip(Account::peer_address(&flow).ip().to_canonical());
                        self.store.record(pod, flow, peer, now);
                    }
                    Err(error) => {
                        malformed += 1;
                        if malformed == 1 {
                            tracing::warn!(pod = %pod.full_name(), %error, "a flow cannot be read and does not count");
                        }
                    }
                }
            }
        }
    }
}

/// A pod that is asked. Dropped, the asking ends.
struct Watched {
    pod: Arc<NamedPod>,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A channel to a proxy's control port, in plaintext: our own proxy makes it mutual TLS.
pub(crate) async fn connect(address: SocketAddr) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(|error| format!("RM1703: {address} cannot be reached: {}", root_cause(&error)))
}

/// What a gRPC status says, without the names of its types.
pub(crate) fn said(status: &tonic::Status) -> String {
    if status.message().is_empty() {
        status.code().description().to_owned()
    } else {
        status.message().to_owned()
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Between half and the whole of a duration, so that many do not come at once.
fn jittered(duration: Duration) -> Duration {
    let nanos =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    duration / 2 + duration.mul_f64(f64::from(nanos % 1_000) / 2_000.0)
}

const TICK: Duration = Duration::from_secs(2);
const BURST: Duration = Duration::from_millis(50);
const STEADY: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// One batch of flows; a proxy sends a few hundred at once, each about half a kilobyte.
const MAX_MESSAGE: usize = 16 << 20;
