//! A pod's life on a machine that only pretends: order, probes, restarts, the end.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use ringmail_local::controllers::Phase;
use ringmail_local::env::Node;
use ringmail_local::logs::Log;
use ringmail_local::machine::{Duplex, ExecHandle, Exit, Machine, MachineError, PodSandbox, Running};
use ringmail_local::pod::{PodContext, PodEvents, PodHandle, PodPlan, PodState};
use ringmail_local::programs::Programs;
use ringmail_local::protocol::Severity;
use ringmail_local::sandbox::{ContainerSpec, ExecSpec, Ids};
use ringmail_local::store::Store;
use ringmail_local::tokens::{Bearer, Tokens};
use ringmail_local::volumes::VolumeContext;
use tokio::sync::watch;

/// What happened, in order, and the programs that run.
#[derive(Default)]
struct Pretend {
    events: Mutex<Vec<String>>,
    running: Mutex<HashMap<String, Arc<Program>>>,
    changes: watch::Sender<u64>,
    store_changes: watch::Sender<u64>,
    store: Mutex<Arc<Store>>,
}

/// A program by its first argument; what it does on a signal and on exec is in its name.
struct Program {
    name: String,
    exit: watch::Sender<Option<Exit>>,
    world: Arc<Pretend>,
}

impl Pretend {
    fn say(&self, what: String) {
        self.events.lock().push(what);
        self.changes.send_modify(|n| *n += 1);
    }

    fn said(&self) -> Vec<String> {
        self.events.lock().clone()
    }

    fn end(&self, name: &str, code: i32) {
        let program = self.running.lock().get(name).cloned().unwrap();
        program.exit.send_replace(Some(Exit { code, signal: None }));
    }
}

struct Pretending(Arc<Pretend>);

impl Machine for Pretending {
    fn create_pod(
        &self,
        _: String,
        _: Vec<IpAddr>,
    ) -> BoxFuture<'_, Result<Arc<dyn PodSandbox>, MachineError>> {
        self.0.say("network".into());
        let pod: Arc<dyn PodSandbox> = Arc::new(Pretending(self.0.clone()));
        async { Ok(pod) }.boxed()
    }
}

impl PodSandbox for Pretending {
    fn start(&self, spec: ContainerSpec, log: Log) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>> {
        let name = spec.argv[0].clone();
        self.0.say(format!("start {name}"));
        if name == "missing" {
            let error = MachineError { message: "no such program".into(), permanent: true };
            return async { Err(error) }.boxed();
        }
        log.close();
        let exit = match name.as_str() {
            "good" => Some(Exit { code: 0, signal: None }),
            "bad" => Some(Exit { code: 7, signal: None }),
            _ => None,
        };
        let program =
            Arc::new(Program { name: name.clone(), exit: watch::Sender::new(exit), world: self.0.clone() });
        self.0.running.lock().insert(name, program.clone());
        let running: Arc<dyn Running> = program;
        async { Ok(running) }.boxed()
    }

    fn dial(&self, _: u16) -> BoxFuture<'_, std::io::Result<Box<dyn Duplex>>> {
        async { Err(std::io::ErrorKind::ConnectionRefused.into()) }.boxed()
    }

    fn remove(&self) -> BoxFuture<'_, ()> {
        self.0.say("removed".into());
        async {}.boxed()
    }
}

impl Running for Program {
    fn exited(&self) -> BoxFuture<'_, Exit> {
        let mut exit = self.exit.subscribe();
        async move { exit.wait_for(Option::is_some).await.unwrap().unwrap() }.boxed()
    }

    fn signal(&self, signal: i32) {
        self.world.say(format!("signal {signal} to {}", self.name));
        if self.name != "stubborn" {
            self.exit.send_replace(Some(Exit { code: 143, signal: Some(signal) }));
        }
    }

    fn kill(&self) {
        self.world.say(format!("kill {}", self.name));
        self.exit.send_replace(Some(Exit::KILLED));
    }

    /// `probe WORD` succeeds for `yes`, and for `when` once the world has said `allowed`.
    fn exec(&self, spec: ExecSpec, _: Option<(u16, u16)>) -> BoxFuture<'_, Result<ExecHandle, MachineError>> {
        let good = match spec.argv.get(1).map(String::as_str) {
            Some("when") => self.world.said().iter().any(|e| e == "allowed"),
            word => word == Some("yes"),
        };
        if spec.argv[0] == "hook" {
            self.world.say(format!("hook in {}", self.name));
        }
        let exit = Exit { code: i32::from(!good), signal: None };
        async move {
            Ok(ExecHandle {
                stdin: None,
                stdout: Box::new(tokio::io::empty()),
                stderr: None,
                exit: async move { exit }.boxed(),
                resize: Box::new(|_, _| {}),
                kill: Box::new(|| {}),
            })
        }
        .boxed()
    }
}

struct Listener(Arc<Pretend>);

impl PodEvents for Listener {
    fn store(&self) -> Arc<Store> {
        self.0.store.lock().clone()
    }

    fn programs(&self) -> Arc<Programs> {
        Arc::default()
    }

    fn store_changes(&self) -> watch::Receiver<u64> {
        self.0.store_changes.subscribe()
    }

    fn changed(&self) {
        self.0.changes.send_modify(|n| *n += 1);
    }

    fn event(&self, _: Severity, _: String, _: &'static str, _: String) {}
}

struct World {
    pretend: Arc<Pretend>,
    pod: PodHandle,
    state: PathBuf,
}

impl World {
    fn start(spec: &str) -> Self {
        let pretend = Arc::new(Pretend::default());
        let id = format!("{}-{}", std::process::id(), ringmail_local::ids::suffix());
        let state = std::env::temp_dir().join(format!("ringmail-pod-{id}"));
        let pod: Pod = serde_saphyr::from_str(&format!(
            "metadata: {{name: p, namespace: a, uid: {id}}}\nspec:\n  {}",
            spec.trim().replace('\n', "\n  ")
        ))
        .unwrap();
        let context = PodContext {
            machine: Arc::new(Pretending(pretend.clone())),
            volumes: VolumeContext {
                state: state.clone(),
                hidden: Vec::new(),
                registry: state.join("registry"),
                tokens: Tokens::new("cluster.local").unwrap(),
                node: Node { name: "local".into(), ip: "10.0.0.1".into(), cpus: 1, memory: 1 },
                ids: Ids { uids: vec![(0, 1)], gids: vec![(0, 1)], groups: false },
            },
            dns: Vec::new(),
            domain: "cluster.local".into(),
        };
        let plan = PodPlan {
            pod,
            trusted: BTreeMap::new(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            bearer: Bearer {
                namespace: "a".into(),
                pod: "p".into(),
                pod_uid: id,
                account: "default".into(),
                account_uid: "u".into(),
            },
            claims: BTreeMap::new(),
            users: BTreeMap::new(),
        };
        let pod = PodHandle::start(context, Arc::new(Listener(pretend.clone())), plan);
        Self { pretend, pod, state }
    }

    async fn until(&self, what: &str, condition: impl Fn(&PodState) -> bool) {
        let mut changes = self.pretend.changes.subscribe();
        let wait = async {
            while !self.pod.with_state(&condition) {
                changes.changed().await.unwrap();
            }
        };
        let done = tokio::time::timeout(Duration::from_mins(2), wait).await;
        assert!(done.is_ok(), "{what}: {:?} {:?}", self.pretend.said(), self.pod.with_state(Clone::clone));
    }

    async fn until_said(&self, what: &str, times: usize) {
        self.until(what, |_| self.pretend.said().iter().filter(|e| *e == what).count() >= times).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

fn position(events: &[String], what: &str) -> usize {
    events.iter().position(|e| e == what).unwrap_or_else(|| panic!("no `{what}` in {events:?}"))
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_a_sidecar_gates_what_follows() {
    let world = World::start(
        "initContainers:
- {name: first, command: [good]}
- {name: side, command: [side], restartPolicy: Always, startupProbe: {exec: {command: [probe, when]}, periodSeconds: 1, failureThreshold: 100}}
containers:
- {name: app, command: [app]}",
    );
    world.until_said("start side", 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!world.pretend.said().contains(&"start app".to_owned()));
    world.pretend.say("allowed".into());
    world.until("ready", PodState::ready).await;
    let said = world.pretend.said();
    assert!(position(&said, "start good") < position(&said, "start side"));
    assert!(position(&said, "allowed") < position(&said, "start app"));
    assert_eq!(world.pod.with_state(PodState::phase), Phase::Running);
}

#[tokio::test(start_paused = true)]
async fn applications_end_before_sidecars_and_the_network_goes_last() {
    let world = World::start(
        "initContainers:
- {name: s1, command: [side1], restartPolicy: Always}
- {name: s2, command: [side2], restartPolicy: Always}
containers:
- {name: app, command: [app], lifecycle: {preStop: {exec: {command: [hook, 'yes']}}}}",
    );
    world.until("ready", PodState::ready).await;
    world.pod.stop(None);
    world.pod.gone().await;
    let said = world.pretend.said();
    let order = ["hook in app", "signal 15 to app", "signal 15 to side2", "signal 15 to side1", "removed"];
    let places: Vec<usize> = order.iter().map(|what| position(&said, what)).collect();
    assert!(places.is_sorted(), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_listen_is_killed_after_its_grace() {
    let world =
        World::start("terminationGracePeriodSeconds: 3\ncontainers:\n- {name: app, command: [stubborn]}");
    world.until("ready", PodState::ready).await;
    let begin = tokio::time::Instant::now();
    world.pod.stop(None);
    world.pod.gone().await;
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(world.pretend.said().contains(&"kill stubborn".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_ends_is_started_again_with_pauses_and_shown_as_crash_loop() {
    let world = World::start("containers:\n- {name: app, command: [bad]}");
    world.until_said("start bad", 3).await;
    world
        .until("crash loop", |state| {
            let status = format!("{:?}", state.containers[0].state);
            status.contains("CrashLoopBackOff")
        })
        .await;
    assert!(world.pod.with_state(PodState::restarts) >= 2);
    let status = serde_json::to_value(world.pod.status()).unwrap();
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 7);
}

#[tokio::test(start_paused = true)]
async fn a_job_s_pod_ends_and_takes_its_sidecar_along() {
    let world = World::start(
        "restartPolicy: Never
initContainers:
- {name: side, command: [side], restartPolicy: Always}
containers:
- {name: app, command: [app]}",
    );
    world.until("ready", PodState::ready).await;
    world.pretend.end("app", 0);
    world.pod.gone().await;
    assert_eq!(world.pod.with_state(PodState::phase), Phase::Succeeded);
    assert!(world.pretend.said().contains(&"signal 15 to side".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let world = World::start(
        "restartPolicy: Never\ninitContainers:\n- {name: i, command: [bad]}\ncontainers:\n- {name: app, command: [app]}",
    );
    world.pod.gone().await;
    assert_eq!(world.pod.with_state(PodState::phase), Phase::Failed);
    assert!(!world.pretend.said().contains(&"start app".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_cannot_run_fails_a_job_and_is_retried_otherwise() {
    let job = World::start("restartPolicy: Never\ncontainers:\n- {name: app, command: [missing]}");
    job.pod.gone().await;
    assert_eq!(job.pod.with_state(PodState::phase), Phase::Failed);
    let server = World::start("containers:\n- {name: app, command: [missing]}");
    server.until_said("start missing", 3).await;
    let status = serde_json::to_value(server.pod.status()).unwrap();
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "RunContainerError");
}

#[tokio::test(start_paused = true)]
async fn bad_health_starts_a_container_again() {
    let world = World::start(
        "containers:\n- {name: app, command: [app], livenessProbe: {exec: {command: [probe, 'no']}, periodSeconds: 2, failureThreshold: 2}}",
    );
    world.until_said("start app", 2).await;
    let said = world.pretend.said();
    assert!(position(&said, "signal 15 to app") > position(&said, "start app"));
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_its_probe_in_both_directions() {
    let world = World::start(
        "containers:\n- {name: app, command: [app], readinessProbe: {exec: {command: [probe, when]}, periodSeconds: 1, failureThreshold: 2}}",
    );
    world.until_said("start app", 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!world.pod.with_state(PodState::ready));
    let status = serde_json::to_value(world.pod.status()).unwrap();
    let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "False");
    world.pretend.say("allowed".into());
    world.until("ready", PodState::ready).await;
    world.pretend.events.lock().retain(|e| e != "allowed");
    world.until("unready", |state| !state.ready()).await;
    assert!(!world.pretend.said().iter().any(|e| e.starts_with("signal")), "unready is no reason to restart");
}

#[tokio::test(start_paused = true)]
async fn what_a_container_needs_may_appear_later() {
    let world = World::start(
        "containers:\n- {name: app, command: [app], env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}]}",
    );
    world
        .until("config error", |state| {
            format!("{:?}", state.containers[0].state).contains("CreateContainerConfigError")
        })
        .await;
    let mut store = Store::new(jiff::Timestamp::UNIX_EPOCH);
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: a}\ndata: {k: v}\n";
    let document = &ringmail_local::manifest::read_text("t", text).unwrap()[0];
    store.apply(ringmail_local::manifest::Object::parse(document).unwrap().0, jiff::Timestamp::UNIX_EPOCH);
    *world.pretend.store.lock() = Arc::new(store);
    world.pretend.store_changes.send_modify(|n| *n += 1);
    world.until("ready", PodState::ready).await;
}
