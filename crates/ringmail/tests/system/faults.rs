//! What users see when parts fail, peers misbehave and manifests are wrong.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Mesh, User, eventually, progress, ringmail_as, signal, text};

const MANIFEST: &str = include_str!("manifests/faults.yaml");
const NS: &str = "faults";

#[test]
fn without_its_control_plane_what_is_known_goes_on_and_what_is_unknown_is_refused_and_it_comes_back() {
    let mesh = Mesh::up(User::Root, MANIFEST, &[]);
    let (client, holder) = (mesh.pod(NS, "client"), mesh.pod(NS, "holder"));
    mesh.sh_until(NS, &client, "curl -sS --max-time 5 http://server/", "server-");
    // The twin: with a control plane an unmeshed address that nobody asked about before is called at once, in clear.
    mesh.sh_until(NS, &client, "curl -sS --max-time 5 http://sink-a:9000/", "sink");
    assert!(mesh.ok(&["logs", "-n", NS, "deploy/sink-a"]).contains("GET / HTTP/1.1"));

    let outage = Outage::begin(&mesh);
    let before = pongs(&mesh, &holder);
    for _ in 0..5 {
        let known = mesh.sh(NS, &client, "curl -sS --max-time 5 http://server/");
        assert!(known.status.success(), "a new connection to a known service: {}", text(&known));
    }
    let began = Instant::now();
    let unknown = mesh.sh(NS, &client, "curl -sS --max-time 40 http://sink-b:9000/; echo exit=$?");
    let took = began.elapsed();
    let printed = text(&unknown);
    assert!(!printed.contains("sink") || printed.contains("curl:"), "never served: {printed}");
    for wrong in ["exit=0", "exit=28", "exit=6\n"] {
        assert!(!printed.contains(wrong), "refused, and not {wrong}: {printed}");
    }
    assert!(took >= Duration::from_secs(8), "held before it was refused, not {took:?}: {printed}");
    let sink = mesh.ok(&["logs", "-n", NS, "deploy/sink-b"]);
    assert!(sink.contains("listening") && !sink.contains("accepted"), "not a byte in clear: {sink}");
    let log = mesh.ok(&["logs", "-n", NS, &client, "-c", "ringmail-proxy"]);
    assert!(log.contains("RM1204") && log.contains("did not say within"), "it is told why:\n{log}");
    let during = pongs(&mesh, &holder);
    assert!(during >= before + 20, "an open connection goes on: {before}, then {during} answers");
    let refused = mesh.sh(NS, &client, "curl -sS --max-time 5 http://server/");
    assert!(refused.status.success(), "still known: {}", text(&refused));
    outage.end();

    mesh.sh_until(NS, &client, "curl -sS --max-time 15 http://sink-b:9000/", "sink");
    assert!(
        mesh.ok(&["logs", "-n", NS, "deploy/sink-b"]).contains("accepted"),
        "the sink tells what it gets"
    );
    assert_eq!(mesh.restarts(NS, &holder), 0, "the open connection held throughout");
    // Certificates are issued again: a new pod becomes ready and its connections are secured.
    mesh.ok(&["delete", "-n", NS, &format!("pod/{client}")]);
    let next = eventually("a new client is ready", || {
        let next = mesh.pod(NS, "client");
        if next != client && mesh.is_ready(NS, &next) { Ok(next) } else { Err(next) }
    });
    mesh.sh_until(NS, &next, "curl -sS --max-time 5 http://server/", "server-");
    secured_again(&mesh, "client", "server", &next);
}

#[test]
fn a_program_that_ends_is_started_again_and_requests_find_the_others() {
    let mesh = Mesh::up(User::Root, MANIFEST, &[]);
    let client = mesh.pod(NS, "client");
    let names = served_by(&mesh, &client, 2);
    let victim = names.first().expect("a server").clone();
    let address = mesh.ip(NS, &victim);
    let exit =
        mesh.sh(NS, &client, &format!("curl -sS --max-time 30 http://{address}:8000/exit; echo exit=$?"));
    let printed = text(&exit);
    assert!(!printed.contains("exit=0") && !printed.contains("exit=28"), "an error, at once: {printed}");
    no_request_hangs(&mesh, &client, || mesh.restarted(NS, &victim, 1));
    assert_eq!(served_by(&mesh, &client, 2), names, "it serves again under its name");
}

#[test]
fn a_proxy_that_is_killed_is_started_again_and_its_connections_are_secured_again() {
    let mesh = Mesh::up(User::Root, MANIFEST, &[]);
    let (client, server) = (mesh.pod(NS, "client"), mesh.pod(NS, "server"));
    served_by(&mesh, &client, 2);
    secured_again(&mesh, "client", "server", &client);
    for pod in [&server, &client] {
        let proxy = mesh.container_processes(&format!("{NS}/{pod}/ringmail-proxy"));
        assert_eq!(proxy.len(), 1, "one proxy in {pod}: {proxy:?}");
        signal(proxy[0], "KILL");
        no_request_hangs(&mesh, &client, || mesh.restarted(NS, pod, 1));
        served_by(&mesh, &client, 2);
        secured_again(&mesh, "client", "server", &client);
    }
}

#[test]
fn a_pod_that_is_deleted_during_requests_leaves_no_request_hanging() {
    let mesh = Mesh::up(User::Root, MANIFEST, &[]);
    let client = mesh.pod(NS, "client");
    let names = served_by(&mesh, &client, 2);
    let victim = names.first().expect("a server").clone();
    no_request_hangs(&mesh, &client, || {
        mesh.ok(&["delete", "-n", NS, &format!("pod/{victim}")]);
    });
    let after = served_by(&mesh, &client, 2);
    assert!(!after.contains(&victim), "{after:?} without {victim}");
}

#[test]
fn a_hostile_peer_disturbs_nobody_else() {
    let mesh = Mesh::up(User::Root, MANIFEST, &[]);
    let (client, outsider) = (mesh.pod(NS, "client"), mesh.pod(NS, "outsider"));
    let names = served_by(&mesh, &client, 2);
    let victim = names.first().expect("a server").clone();
    let address = mesh.ip(NS, &victim);
    let proxy = mesh.container_processes(&format!("{NS}/{victim}/ringmail-proxy"));
    let before = resident_kib(proxy[0]);
    let mut hostile = Talker::start(
        &mesh,
        &["exec", "-i", "-n", NS, &outsider, "--", "python3", "-u", "/programs/hostile.py", &address, "8000"],
    );
    for line in ["noise made", "header sent", "opened"] {
        progress(&hostile.until(line));
        for _ in 0..5 {
            let call = mesh.sh(NS, &client, &format!("curl -sS --max-time 5 http://{address}:8000/"));
            assert!(call.status.success() && text(&call).contains(&victim), "after {line}: {}", text(&call));
        }
    }
    let during = resident_kib(proxy[0]);
    progress(&format!("the proxy's memory: {before} KiB, with 2,051 connections {during} KiB"));
    assert!(during < before + 150 * 1024, "{before} KiB became {during} KiB");
    let halves = hostile.until("halves left open");
    assert!(halves.contains("halves left open: 0"), "half a hello is waited for, not for ever: {halves}");
    drop(hostile);
    let after = mesh.container_processes(&format!("{NS}/{victim}/ringmail-proxy"));
    assert_eq!((mesh.restarts(NS, &victim), after), (0, proxy), "the proxy is the one that it was");
    secured_again(&mesh, "client", "server", &client);
}

#[test]
fn a_hostile_application_does_not_break_its_own_proxy() {
    let mesh = Mesh::up(User::Root, MANIFEST, &[]);
    let client = mesh.pod(NS, "client");
    let names = served_by(&mesh, &client, 2);
    let address = mesh.ip(NS, names.first().expect("a server"));
    let mut hostile = Talker::start(
        &mesh,
        &["exec", "-i", "-n", NS, &client, "--", "python3", "-u", "/programs/hostile.py", &address, "8000"],
    );
    progress(&hostile.until("opened"));
    served_by(&mesh, &client, 2);
    drop(hostile);
    assert_eq!(mesh.restarts(NS, &client), 0, "neither it nor its proxy was started again");
    for name in names {
        assert_eq!(mesh.restarts(NS, &name), 0, "nor {name}");
    }
}

#[test]
fn a_manifest_that_is_wrong_is_refused_with_its_place_and_nothing_is_started() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: wrong}\n---\n";
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: wrong}\nspec:\n  \
                      selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    \
                      spec:\n      serviceAccountName: nobody\n      containers:\n      - {name: c, image: c, \
                      command: [sleep, infinity]}\n";
    let cases = [
        (format!("{namespace}kind: [Pod\n"), [".yaml:5", "not valid YAML", "hint:"]),
        (
            format!("{namespace}apiVersion: a/v1\nkind: Gizmo\nmetadata: {{name: g}}\n"),
            [".yaml:6", "kind Gizmo", "hint:"],
        ),
        (
            format!("{namespace}{deployment}"),
            [".yaml:13", "deployment/web in wrong", "ServiceAccount `nobody`"],
        ),
        (
            format!(
                "{namespace}{}",
                deployment
                    .replace("      serviceAccountName: nobody\n", "")
                    .replace("sleep", "no-such-program")
            ),
            [".yaml:14", "container `c`", "no-such-program"],
        ),
        (
            format!("{namespace}{}", deployment.replace("serviceAccountName", "serviceAcountName")),
            [".yaml:13", "spec.template.spec.serviceAcountName", "hint:"],
        ),
    ];
    for (manifest, wanted) in cases {
        for user in [User::Root, User::Ordinary] {
            let printed = refused_to_start(user, &manifest);
            for word in wanted {
                assert!(printed.contains(word), "names `{word}`:\n{printed}");
            }
        }
    }
    // The twin: with the account that it asks for, it starts.
    let account = "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: nobody, namespace: wrong}\n";
    drop(Mesh::up(User::Root, &format!("{namespace}{deployment}{account}"), &[]));
}

#[test]
fn a_port_that_is_taken_is_named_with_its_cure_and_nothing_is_started() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let manifest = MANIFEST.replacen(
        "metadata: {name: server, namespace: faults}",
        &format!(
            "metadata: {{name: server, namespace: faults, annotations: {{local.ringmail.dev/publish: '127.0.0.1:{port}'}}}}"
        ),
        1,
    );
    for user in [User::Root, User::Ordinary] {
        let printed = refused_to_start(user, &manifest);
        for word in [&format!("127.0.0.1:{port}"), "service/server", "hint:"] {
            assert!(printed.contains(word), "names `{word}`:\n{printed}");
        }
    }
    drop(taken);
    let mesh = Mesh::up(User::Root, &manifest, &[]);
    assert!(mesh.output().contains(&format!("http://127.0.0.1:{port}")), "{}", mesh.output());
}

/// `ringmail up` with a manifest that it must refuse; gives what it printed.
fn refused_to_start(user: User, manifest: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let name = format!("w{}", crate::harness::nonce().split_at(17).1);
    let file = crate::harness::programs().join(format!("{name}.yaml"));
    std::fs::write(&file, manifest).expect("the manifest is written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("readable to all");
    let mut command = ringmail_as(user);
    command.args(["up", "--name", &name, "-f"]).arg(&file).stdin(Stdio::null());
    let began = Instant::now();
    let output = command.output().expect("ringmail runs");
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(1), "refused:\n{printed}");
    assert!(began.elapsed() < Duration::from_secs(10), "and soon:\n{printed}");
    assert!(printed.contains("error: RM"), "with a code:\n{printed}");
    assert!(
        !printed.contains("is up") && !printed.contains("control plane ready"),
        "nothing runs:\n{printed}"
    );
    let ps = ringmail_as(user).args(["--mesh", &name, "ps"]).output().expect("ringmail runs");
    assert!(!ps.status.success(), "no such mesh is left:\n{}", text(&ps));
    let named = |line: &[u8]| line.windows(name.len()).any(|window| window == name.as_bytes());
    let left: Vec<_> = std::fs::read_dir("/proc")
        .expect("processes")
        .flatten()
        .filter(|process| std::fs::read(process.path().join("cmdline")).is_ok_and(|line| named(&line)))
        .map(|process| process.path())
        .collect();
    assert!(left.is_empty(), "no process is left: {left:?}");
    printed
}

/// While it lasts, nothing of identity and destination lives longer than a moment.
struct Outage<'a> {
    mesh: &'a Mesh,
    over: Arc<AtomicBool>,
    killer: std::thread::JoinHandle<()>,
}

impl<'a> Outage<'a> {
    fn begin(mesh: &'a Mesh) -> Self {
        let places: Vec<String> = ["identity", "destination"]
            .iter()
            .map(|component| format!("ringmail/{}", mesh.pod("ringmail", component)))
            .collect();
        let over = Arc::new(AtomicBool::new(false));
        let (pid, stop) = (mesh.pid(), Arc::clone(&over));
        let killer = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for pid in places
                    .iter()
                    .flat_map(|place| crate::harness::pods::container_processes_below(pid, place))
                {
                    signal(pid, "KILL");
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let outage = Self { mesh, over, killer };
        for component in ["identity", "destination"] {
            let pod = mesh.pod("ringmail", component);
            eventually(&format!("{component} is down"), || {
                if mesh.is_ready("ringmail", &pod) { Err("ready".to_owned()) } else { Ok(()) }
            });
        }
        outage
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.killer.join().expect("the killer ends");
        for component in ["identity", "destination"] {
            let pod = self.mesh.pod("ringmail", component);
            eventually(&format!("{component} is back"), || {
                if self.mesh.is_ready("ringmail", &pod) { Ok(()) } else { Err("not ready".to_owned()) }
            });
        }
    }
}

/// How many answers the holder has had.
fn pongs(mesh: &Mesh, holder: &str) -> u64 {
    let log = mesh.ok(&["logs", "-n", NS, holder, "--tail", "1"]);
    log.trim().strip_prefix("pong ").and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Calls the service until it was answered by exactly so many pods, without an error on the way to the last round.
fn served_by(mesh: &Mesh, client: &str, pods: usize) -> BTreeSet<String> {
    eventually(&format!("{pods} pods answer"), || {
        let line = "for i in $(seq 20); do curl -sS --max-time 5 http://server/ || exit 1; done";
        let output = mesh.sh(NS, client, line);
        let names: BTreeSet<String> =
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        if output.status.success() && names.len() == pods { Ok(names) } else { Err(text(&output)) }
    })
}

/// Requests go on while something happens: each ends by itself, with success or an error.
fn no_request_hangs(mesh: &Mesh, client: &str, happens: impl FnOnce()) {
    let line = "for round in 1 2 3 4; do for i in 1 2 3 4 5 6; do (curl -s -o /dev/null --max-time 30 \
                -w '%{http_code}' http://server/slow; echo \" exit=$?\") & done; wait; echo round; done";
    let mut requests = Talker::start(mesh, &["exec", "-n", NS, client, "--", "/bin/sh", "-c", line]);
    requests.until("round");
    happens();
    let printed = requests.rest();
    assert!(!printed.contains("exit=28"), "a request hung:\n{printed}");
    assert!(printed.contains("200 exit=0"), "some succeed:\n{printed}");
    assert_eq!(printed.matches("exit=").count(), 24, "all ended:\n{printed}");
}

/// Waits until the row of two deployments says √ for the last seconds, in which it makes calls itself.
fn secured_again(mesh: &Mesh, src: &str, dst: &str, client: &str) {
    eventually(&format!("{src} → {dst} is secured"), || {
        let call = mesh.sh(NS, client, "curl -sS --max-time 5 http://server/");
        let rows = mesh.ok(&["viz", "edges", "deploy", "-n", NS, "-o", "json", "--window", "5s"]);
        let edges: Vec<serde_json::Value> = serde_json::from_str(&rows).expect("edges are JSON");
        let found = edges.iter().find(|edge| edge["src"] == src && edge["dst"] == dst);
        match found {
            Some(edge) if edge["secured"] == true => Ok(()),
            _ => Err(format!("{}\n{rows}", text(&call))),
        }
    });
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A `ringmail` command that talks while it runs; killed with the value.
struct Talker {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    printed: String,
}

impl Talker {
    fn start(mesh: &Mesh, arguments: &[&str]) -> Self {
        let mut command = mesh.command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ringmail starts");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, output, printed: String::new() }
    }

    /// The next line that contains this.
    fn until(&mut self, wanted: &str) -> String {
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).expect("text");
            assert!(length > 0, "it ended before it printed `{wanted}`:\n{}", self.printed);
            self.printed.push_str(&line);
            if line.contains(wanted) {
                return line;
            }
        }
    }

    /// All that it printed, to its end.
    fn rest(mut self) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("text");
        std::mem::take(&mut self.printed) + &rest
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
