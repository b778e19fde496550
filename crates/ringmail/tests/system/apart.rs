//! What an application's container cannot reach of the mesh and of other pods. Each try has a twin that succeeds.

use std::process::{Command, Output};

use crate::harness::{Mesh, User, eventually, text};

const MANIFEST: &str = include_str!("manifests/faults.yaml");
const NS: &str = "faults";
const TOKEN: &str = "/var/run/secrets/tokens/ringmail-identity-token";
const ISSUER: &str = "/var/run/ringmail/issuer/tls.key";

#[test]
fn an_application_is_apart_from_the_mesh_and_from_other_pods_as_root() {
    everything_is_apart(User::Root);
}

#[test]
fn an_application_is_apart_from_the_mesh_and_from_other_pods_as_an_ordinary_user() {
    everything_is_apart(User::Ordinary);
}

fn everything_is_apart(user: User) {
    let mesh = Mesh::up(user, MANIFEST, &[]);
    let pods = Pods { client: mesh.pod(NS, "client"), outsider: mesh.pod(NS, "outsider"), mesh };
    pods.mesh.sh_until(NS, &pods.client, "curl -sS --max-time 5 http://server/", "server-");
    secrets(&pods);
    processes(&pods);
    network(&pods);
    the_meshs_own_ports(&pods);
    the_command_line(&pods);
}

struct Pods {
    mesh: Mesh,
    client: String,
    outsider: String,
}

impl Pods {
    /// A shell line in the application's container of the meshed client.
    fn app(&self, line: &str) -> Output {
        self.mesh.sh(NS, &self.client, line)
    }

    fn app_can(&self, line: &str) -> String {
        let output = self.app(line);
        assert!(output.status.success(), "the twin `{line}` succeeds: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn app_cannot(&self, line: &str) -> String {
        let output = self.app(line);
        assert!(!output.status.success(), "`{line}` should not succeed: {}", text(&output));
        text(&output)
    }
}

/// Tokens, keys and the mesh's state are nowhere in an application's file system.
fn secrets(pods: &Pods) {
    let mesh = &pods.mesh;
    pods.app_can("test -s /programs/server.py && cat /programs/server.py");
    let proxy = mesh.ringmail(&["exec", "-n", NS, &pods.client, "-c", "ringmail-proxy", "--", "cat", TOKEN]);
    assert!(proxy.status.success(), "the proxy has its token: {}", text(&proxy));
    let token = String::from_utf8_lossy(&proxy.stdout).trim().to_owned();
    assert_eq!(token.split('.').count(), 3, "a JWT");
    pods.app_cannot(&format!("cat {TOKEN}"));

    let identity = mesh.pod("ringmail", "identity");
    let key = mesh.ok(&["exec", "-n", "ringmail", &identity, "--", "cat", ISSUER]);
    assert!(key.contains("PRIVATE KEY"), "the identity pod has the issuer's key");
    pods.app_cannot(&format!("cat {ISSUER}"));
    let elsewhere = ["exec", "-n", "ringmail", &identity, "-c", "ringmail-proxy", "--", "cat", ISSUER];
    assert!(!mesh.ringmail(&elsewhere).status.success(), "not even identity's own proxy has it");

    // Whatever the name: no file that is there for containers holds the token or the key.
    let places = "/run /tmp /dev/shm /etc /scratch /programs /var/run /var/lib /var/tmp /srv /mnt";
    let find =
        |word: &str| format!("grep -rlsF -m1 --exclude-dir=ringmail-test-* -e '{word}' {places} | grep .");
    let line = key.lines().nth(1).expect("a line of the key");
    for word in [token.as_str(), line] {
        pods.app_cannot(&find(word));
    }
    pods.app_can(&format!("printf %s '{line}' > /scratch/planted && {}", find(line)));
    pods.app_can("rm /scratch/planted");
}

/// No process but the container's own is to be seen, and the one that started it keeps its memory to itself.
fn processes(pods: &Pods) {
    let seen = pods.app_can("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done");
    assert!(seen.contains("sleep infinity"), "its own is seen: {seen}");
    for other in ["ringmail-proxy", "ringmail-controller", "sink.py", "server.py", "__stage daemon"] {
        assert!(!seen.contains(other), "`{other}` is seen: {seen}");
    }
    pods.app_can("head -c 1 /proc/self/environ > /dev/null && ls /proc/self/root/ > /dev/null");
    for file in ["environ", "mem", "maps"] {
        pods.app_cannot(&format!("head -c 1 /proc/1/{file}"));
    }
    pods.app_cannot("ls /proc/1/root/");
    // The controller that has the issuer's key keeps its memory from its own user as well.
    let identity = pods.mesh.pod("ringmail", "identity");
    let of_controller = "for p in /proc/[0-9]*; do if grep -q ^ringmail-contro $p/comm; then cat $p/environ > /dev/null \
                         && echo read; fi; done; cat /proc/self/environ > /dev/null && echo own";
    let printed = text(&pods.mesh.sh("ringmail", &identity, of_controller));
    assert!(printed.contains("own") && printed.contains("Permission denied"), "{printed}");
    assert!(!printed.contains("read\n"), "{printed}");
}

/// A connection cannot be marked as the proxy's, and the redirection cannot be changed.
fn network(pods: &Pods) {
    let option = |option: &str| {
        format!("python3 -c 'import socket; socket.socket().setsockopt(socket.SOL_SOCKET, {option})'")
    };
    pods.app_can(&option("socket.SO_KEEPALIVE, 1"));
    let mark = option("socket.SO_MARK, 0x2102").replace("socket.SO_MARK", "36");
    let printed = pods.app_cannot(&mark);
    assert!(printed.contains("Operation not permitted"), "{printed}");
    // Nor as root of a user namespace of its own, where the machine lets it make one.
    let nested = pods.app_cannot(&format!("unshare -Ur {mark}"));
    assert!(nested.contains("not permitted") || nested.contains("Permission denied"), "{nested}");
    pods.app_cannot("nft list ruleset | grep -q ringmail");
    pods.app_cannot("nft flush ruleset");
    pods.app_cannot("ip link set lo down");
    pods.app_cannot("ip addr add 10.142.99.99/32 dev lo");
    // The twin: the rules are there, and who owns the network sees them.
    let proxy = pods.mesh.container_processes(&format!("{NS}/{}/ringmail-proxy", pods.client));
    let rules = Command::new("nsenter")
        .args(["--net", "--target", &proxy[0].to_string(), "nft", "list", "ruleset"])
        .output()
        .expect("nsenter runs");
    assert!(text(&rules).contains("ringmail"), "{}", text(&rules));
    pods.app_can("curl -sS --max-time 5 http://server/");
}

/// viz' interface, and taps and flows of other pods, are for viz alone.
fn the_meshs_own_ports(pods: &Pods) {
    let mesh = &pods.mesh;
    let (viz, server) = (mesh.pod("ringmail", "viz"), mesh.pod(NS, "server"));
    let (viz_ip, server_ip) = (mesh.ip("ringmail", &viz), mesh.ip(NS, &server));
    let grpc = |address: &str, method: &str| {
        format!(
            "printf '\\0\\0\\0\\0\\0' | curl -sS --max-time 3 --http2-prior-knowledge -D - -o /dev/null -H 'content-type: \
             application/grpc' -H 'te: trailers' --data-binary @- http://{address}/{method} 2>&1; echo exit=$?"
        )
    };
    let edges = |address: &str| grpc(address, "ringmail.viz.v1.Viz/Edges");
    let own = text(&mesh.sh("ringmail", &viz, &edges("127.0.0.1:8085")));
    assert!(own.contains("HTTP/2 200"), "viz answers in its own pod: {own}");
    let flows = grpc(&format!("{server_ip}:4190"), "ringmail.flows.v1.Flows/Watch");
    // A stream that stays open is one that was granted.
    eventually("viz may watch the server's flows", || {
        let granted = text(&mesh.sh("ringmail", &viz, &flows));
        let is_granted = granted.contains("HTTP/2 200") && granted.contains("exit=28");
        if is_granted && !granted.contains("grpc-status: 16") { Ok(()) } else { Err(granted) }
    });
    for pod in [&pods.client, &pods.outsider] {
        let printed = text(&mesh.sh(NS, pod, &edges(&format!("{viz_ip}:8085"))));
        assert!(!printed.contains("HTTP/2 200") && !printed.contains("exit=28"), "{pod}: {printed}");
        let printed = text(&mesh.sh(NS, pod, &flows));
        let refused = printed.contains("grpc-status: 16") || !printed.contains("HTTP/2 200");
        assert!(refused && !printed.contains("exit=28"), "{pod} is refused at once: {printed}");
        if pod == &pods.client {
            assert!(printed.contains("RM1120"), "the meshed one is told why: {printed}");
        }
        let tap = grpc(&format!("{server_ip}:4190"), "io.linkerd.proxy.tap.Tap/Observe");
        let printed = text(&mesh.sh(NS, pod, &tap));
        assert!(
            !printed.contains("exit=28") && !printed.contains("exit=0\n")
                || printed.contains("grpc-status: 16"),
            "{pod}: {printed}"
        );
    }
}

/// The mesh is steered from outside of it only.
fn the_command_line(pods: &Pods) {
    pods.mesh.ok(&["ps"]);
    let ps =
        format!("{} --mesh {} ps", crate::harness::programs().join("ringmail").display(), pods.mesh.name);
    let printed = pods.app_cannot(&ps);
    assert!(!printed.contains("Running"), "{printed}");
    for folder in ["/run/ringmail", "/tmp/ringmail-64321"] {
        pods.app_cannot(&format!("ls -A {folder} | grep ."));
    }
}
