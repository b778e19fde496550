//! Certificates: got, renewed, kept while renewal fails, and never with the same key twice.

use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use ringmail_identity::Identity;
use ringmail_proxy::certify::{Certifier, CertifyStatus, Clock};
use ringmail_proxy::control::ControlClient;
use ringmail_proxy::metrics::Metrics;
use ringmail_proxy::tls::CredentialsRx;
use ringmail_vocab::Security;
use tokio::sync::watch;

use super::support::{FakeIdentity, Mesh, until};

/// A clock whose sleeps end when a test says so.
struct TestClock {
    offset: Mutex<Duration>,
    asleep: watch::Sender<VecDeque<Duration>>,
    permits: tokio::sync::Semaphore,
}

impl TestClock {
    fn new() -> Arc<Self> {
        let (asleep, _) = watch::channel(VecDeque::new());
        Arc::new(Self { offset: Mutex::default(), asleep, permits: tokio::sync::Semaphore::new(0) })
    }

    /// How long the certifier sleeps now.
    async fn sleeping(&self) -> Duration {
        let mut asleep = self.asleep.subscribe();
        let wait = asleep.wait_for(|all| !all.is_empty());
        let asleep = tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .expect("sleeps in time")
            .expect("lives");
        asleep[0]
    }

    /// Lets the present sleep end after its time.
    async fn wake(&self) -> Duration {
        let slept = self.sleeping().await;
        *self.offset.lock() += slept;
        self.asleep.send_modify(|all| _ = all.pop_front());
        self.permits.add_permits(1);
        slept
    }

    /// Lets sleeps end until something holds, and says how much time passed.
    async fn wake_until(&self, mut holds: impl FnMut() -> bool) -> Duration {
        let mut passed = Duration::ZERO;
        while !holds() {
            passed += self.wake().await;
            // What the sleeper does next, it does before it sleeps again.
            self.sleeping().await;
        }
        passed
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        // In whole hours' steps certificates would still be valid for real; the offset says what the certifier believes.
        SystemTime::now() + *self.offset.lock()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.asleep.send_modify(|all| all.push_back(duration));
        Box::pin(async { self.permits.acquire().await.expect("open").forget() })
    }
}

struct Running {
    clock: Arc<TestClock>,
    credentials: CredentialsRx,
    status: watch::Receiver<CertifyStatus>,
    metrics: Metrics,
    token: PathBuf,
    _directory: Directory,
}

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("ringmail-certify-{}", rand::random::<u64>()));
        std::fs::create_dir_all(&path).expect("makes");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(mesh: &Mesh, more: &[(&str, &str)]) -> Running {
    let directory = Directory::new();
    let token = directory.0.join("token");
    std::fs::write(&token, "good\n").expect("writes");
    let local: Identity = mesh.id("web", "ballot").identity();
    let config = super::support::config(mesh, &local, &token, more);
    let clock = TestClock::new();
    let metrics = Metrics::new();
    let (sender, credentials) = watch::channel(None);
    let control = ControlClient::new(&config, credentials.clone());
    let (certifier, status) = Certifier::new(&config, control, sender, metrics.clone(), clock.clone());
    tokio::spawn(certifier.run());
    Running { clock, credentials, status, metrics, token, _directory: directory }
}

fn serial(credentials: &CredentialsRx) -> Option<String> {
    credentials.borrow().as_ref().map(|credentials| credentials.serial().to_owned())
}

fn error(status: &watch::Receiver<CertifyStatus>) -> Option<String> {
    match &*status.borrow() {
        CertifyStatus::Waiting { error, .. } | CertifyStatus::Live { error, .. } => error.clone(),
    }
}

#[tokio::test]
async fn the_first_call_shows_no_certificate_and_the_second_shows_the_first() {
    let mesh = Mesh::new();
    let identity_id = mesh.id("identity", "ringmail");
    let service = FakeIdentity::start(&mesh, Some(mesh.credentials(&identity_id))).await;
    let (addr, name) = (format!("127.0.0.2:{}", service.addr.port()), identity_id.to_string());
    // 127.0.0.2 is loopback too, which would be plaintext: a name leads to the same place over TLS.
    let by_name = addr.replace("127.0.0.2", "localhost");
    let running = run(&mesh, &[("IDENTITY_SVC_ADDR", &by_name), ("IDENTITY_SVC_NAME", &name)]);
    until("the first certificate", || running.credentials.borrow().is_some()).await;
    let first = serial(&running.credentials);
    running.clock.wake_until(|| serial(&running.credentials) != first).await;

    let asked = service.asked.lock().clone();
    let [one, two] = &asked[..] else { panic!("two calls, not {}", asked.len()) };
    assert!(matches!(one.security, Some(Security::ServerOnly { peer: None, .. })), "{:?}", one.security);
    let Some(Security::Mutual { peer, tls }) = &two.security else { panic!("{:?}", two.security) };
    assert_eq!(peer, &mesh.id("web", "ballot").identity());
    assert_eq!(Some(&tls.peer_serial), first.as_ref());
    assert_ne!(one.public_key, two.public_key, "a fresh key for each certificate");
}

#[tokio::test]
async fn an_identity_service_of_another_name_or_mesh_is_not_believed() {
    let mesh = Mesh::new();
    let name = mesh.id("identity", "ringmail").to_string();
    for credentials in [mesh.credentials(&mesh.id("mallory", "ballot")), {
        let other = Mesh::new();
        other.credentials(&other.id("identity", "ringmail"))
    }] {
        let service = FakeIdentity::start(&mesh, Some(credentials)).await;
        let addr = format!("localhost:{}", service.addr.port());
        let running = run(&mesh, &[("IDENTITY_SVC_ADDR", &addr), ("IDENTITY_SVC_NAME", &name)]);
        until("a failure", || error(&running.status).is_some()).await;
        let error = error(&running.status).expect("failed");
        assert!(error.starts_with(&format!("RM1103: the identity service at {addr} ({name}): ")), "{error}");
        assert!(service.asked.lock().is_empty(), "the token was sent to a stranger");
        assert!(running.credentials.borrow().is_none());
    }
}

#[tokio::test]
async fn a_renewal_comes_at_half_of_the_lifetime_give_or_take_a_tenth() {
    let mesh = Mesh::new();
    let service = FakeIdentity::start(&mesh, None).await;
    let running = run(&mesh, &[("IDENTITY_SVC_ADDR", &service.addr.to_string())]);
    until("the first certificate", || running.credentials.borrow().is_some()).await;
    let first = serial(&running.credentials);
    let passed = running.clock.wake_until(|| serial(&running.credentials) != first).await;
    let half = Duration::from_mins(30);
    assert!(passed > half.mul_f64(0.88) && passed < half.mul_f64(1.12), "{passed:?}");
    assert!(
        running
            .metrics
            .encode()
            .expect("encodes")
            .contains("control_identity_cert_refreshes_total{result=\"ok\"} 2")
    );
}

#[tokio::test]
async fn a_failing_renewal_keeps_the_old_certificate_and_ends_with_a_new_one() {
    let mesh = Mesh::new();
    let service = FakeIdentity::start(&mesh, None).await;
    let running = run(&mesh, &[("IDENTITY_SVC_ADDR", &service.addr.to_string())]);
    until("the first certificate", || running.credentials.borrow().is_some()).await;
    let first = serial(&running.credentials);
    service.refusals.store(3, Ordering::Relaxed);
    running.clock.wake_until(|| error(&running.status).is_some()).await;
    assert_eq!(serial(&running.credentials), first, "the old one stays");
    assert_eq!(running.status.borrow().why_not_ready(SystemTime::now()), None, "and this proxy stays ready");
    let text = error(&running.status).expect("failed");
    assert!(text.starts_with("RM1112: the identity service at 127.0.0.1:"), "{text}");
    assert!(text.contains("the issuer sleeps"), "{text}");
    // While a certificate lives, there is time: 1 s, then 2 s, then 4 s, each up to a quarter more.
    for floor in [1.0, 2.0, 4.0] {
        let wait = running.clock.wake().await.as_secs_f64();
        assert!((floor..floor * 1.25).contains(&wait), "{wait} after {floor}");
    }
    until("the new certificate", || serial(&running.credentials) != first).await;
    assert_eq!(error(&running.status), None);
    assert!(
        running
            .metrics
            .encode()
            .expect("encodes")
            .contains("control_identity_cert_refreshes_total{result=\"error\"} 3")
    );
}

#[tokio::test]
async fn a_proxy_is_not_ready_before_its_first_certificate_nor_after_its_last() {
    let mesh = Mesh::new();
    let service = FakeIdentity::start(&mesh, None).await;
    service.refusals.store(1, Ordering::Relaxed);
    let running = run(&mesh, &[("IDENTITY_SVC_ADDR", &service.addr.to_string())]);
    until("a failure", || error(&running.status).is_some()).await;
    let why = running.status.borrow().why_not_ready(SystemTime::now()).expect("not ready");
    assert!(why.contains("no certificate yet") && why.contains("the issuer sleeps"), "{why}");
    let wait = running.clock.wake().await;
    assert!((Duration::from_millis(100)..Duration::from_millis(125)).contains(&wait), "{wait:?}");
    until("the first certificate", || running.credentials.borrow().is_some()).await;
    assert_eq!(running.status.borrow().why_not_ready(SystemTime::now()), None);
    let late = SystemTime::now() + Duration::from_secs(3700);
    let why = running.status.borrow().why_not_ready(late).expect("not ready");
    assert!(why.starts_with("RM1115: "), "{why}");
}

#[tokio::test]
async fn nobody_there_is_named_with_the_reason() {
    let mesh = Mesh::new();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("has one");
    let running = run(&mesh, &[("IDENTITY_SVC_ADDR", &gone.to_string())]);
    until("a failure", || error(&running.status).is_some()).await;
    let error = error(&running.status).expect("failed");
    assert!(
        error.starts_with(&format!("RM1102: the identity service at {gone}: no connection to {gone}: ")),
        "{error}"
    );
    assert!(
        running
            .metrics
            .encode()
            .expect("encodes")
            .contains("control_identity_cert_refreshes_total{result=\"error\"}")
    );
}

#[tokio::test]
async fn the_token_is_read_anew_for_each_attempt_and_a_missing_one_is_named() {
    let mesh = Mesh::new();
    let service = FakeIdentity::start(&mesh, None).await;
    let running = run(&mesh, &[("IDENTITY_SVC_ADDR", &service.addr.to_string())]);
    until("the first certificate", || running.credentials.borrow().is_some()).await;
    std::fs::write(&running.token, " \n").expect("writes");
    running.clock.wake_until(|| error(&running.status).is_some()).await;
    let empty = error(&running.status).expect("failed");
    assert!(empty.contains("RM1110") && empty.contains("it is empty") && empty.contains("/token"), "{empty}");
    std::fs::write(&running.token, "bad").expect("writes");
    running.clock.wake().await;
    until("a refusal", || error(&running.status).is_some_and(|error| error.contains("RM1031"))).await;
    std::fs::write(&running.token, "good").expect("writes");
    let first = serial(&running.credentials);
    running.clock.wake_until(|| serial(&running.credentials) != first).await;
    let tokens: Vec<_> = service.asked.lock().iter().map(|asked| asked.token.clone()).collect();
    assert_eq!(tokens, [b"good".to_vec(), b"bad".to_vec(), b"good".to_vec()]);
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told_with_both_times() {
    let mesh = Mesh::new();
    let service = FakeIdentity::start(&mesh, None).await;
    service.refusals.store(1, Ordering::Relaxed);
    let running = run(&mesh, &[("IDENTITY_SVC_ADDR", &service.addr.to_string())]);
    running.clock.sleeping().await;
    *running.clock.offset.lock() += Duration::from_hours(2);
    running.clock.wake().await;
    until("the hint", || error(&running.status).is_some_and(|error| error.contains("RM1114"))).await;
    let error = error(&running.status).expect("failed");
    assert!(
        error.contains("this machine's clock says") && error.contains("ahead of the identity service's"),
        "{error}"
    );
    assert!(running.credentials.borrow().is_none());
}
