//! The demo's checks on manifests that nobody wrote: names, ports, replicas and who calls whom are drawn by lot. The
//! seed is printed; `RINGMAIL_TEST_SEED` repeats it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::{Command, Stdio};

use crate::harness::{Mesh, User, eventually, progress, text};

#[test]
fn every_pair_of_a_drawn_application_is_shown_as_what_it_is_as_root() {
    a_drawn_application_is_shown_as_what_it_is(User::Root);
}

#[test]
fn every_pair_of_a_drawn_application_is_shown_as_what_it_is_as_an_ordinary_user() {
    a_drawn_application_is_shown_as_what_it_is(User::Ordinary);
}

fn a_drawn_application_is_shown_as_what_it_is(user: User) {
    let mut lot = Lot::new();
    let application = Application::draw(&mut lot);
    let manifest = application.manifest();
    progress(&format!("{:#?}", application.rows()));
    let mesh = Mesh::up(user, &manifest, &[]);
    let expected = application.rows();
    eventually("the table has these rows and no others", || {
        let rows = rows(&mesh, &application.namespace);
        if rows == expected { Ok(()) } else { Err(format!("{rows:#?} instead of {expected:#?}")) }
    });
    // The same pod by pod: each row belongs to one of the expected ones.
    for row in edges(&mesh, "pod", &application.namespace) {
        let (src, dst) = (row["src"].as_str().unwrap_or(""), row["dst"].as_str().unwrap_or(""));
        let of = |pod: &str| pod.rsplitn(3, '-').nth(2).unwrap_or(pod).to_owned();
        assert!(expected.contains_key(&(of(src), of(dst))), "{row:#}");
    }
    a_stranger_is_refused(&mesh, &application, &mut lot);
}

/// A pod whose proxy has the trust anchors of another mesh gets no certificate, and the table says so; the same pod
/// with this mesh's anchors is secured.
fn a_stranger_is_refused(mesh: &Mesh, application: &Application, lot: &mut Lot) {
    let name = lot.word();
    let namespace = &application.namespace;
    let server = &application.servers[0];
    let anchors =
        serde_json::json!([{"name": "RINGMAIL_PROXY_IDENTITY_TRUST_ANCHORS", "value": other_anchors()}]);
    let annotation =
        format!("      annotations: {{config.ringmail.dev/proxy-additional-env: '{anchors}'}}\n");
    let manifest = |annotations: &str| {
        let client = Client { name: name.clone(), calls: 0, replicas: 1, meshed: true };
        client.manifest(namespace, server).replacen("      #annotations\n", annotations, 1)
    };
    apply(mesh, &manifest(&annotation));
    eventually("the stranger is shown as refused", || {
        let output = mesh.ok(&["viz", "edges", "deploy", "-n", namespace]);
        let mut rows = output.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = rows.any(|row| {
            row.first() == Some(&name.as_str())
                && row.get(1) == Some(&"identity")
                && row.get(4) == Some(&"Refused")
        });
        if found { Ok(()) } else { Err(output) }
    });
    let pod = mesh.pod(namespace, &name);
    for kind in ["deploy", "pod"] {
        for extra in [&["--window", "10m"][..], &["--window", "10m", "--mesh-traffic"]] {
            let output = mesh.ok(&[&["viz", "edges", kind, "-n", namespace, "-o", "json"], extra].concat());
            let edges: Vec<serde_json::Value> = serde_json::from_str(&output).expect("edges are JSON");
            let secured = edges.iter().find(|edge| {
                let is_it = |end: &str| edge[end].as_str().is_some_and(|end| end == name || end == pod);
                edge["secured_connections"] != 0 && (is_it("src") || is_it("dst"))
            });
            assert_eq!(secured, None, "nothing of the stranger's is secured");
        }
    }
    assert!(!mesh.is_ready(namespace, &pod), "a pod without a certificate is not ready");
    let log = mesh.ok(&["logs", "-n", namespace, &pod, "-c", "ringmail-proxy"]);
    assert!(log.contains("RM1103") && log.contains("does not chain to this mesh's trust anchors"), "{log}");
    mesh.ok(&["delete", "-n", namespace, &format!("deploy/{name}")]);

    apply(mesh, &manifest(""));
    eventually("with this mesh's anchors it is secured", || {
        let rows = rows(mesh, namespace);
        let row = rows.get(&(name.clone(), server.name.clone()));
        if row.is_some_and(|row| row == "√") { Ok(()) } else { Err(format!("{rows:#?}")) }
    });
}

fn apply(mesh: &Mesh, manifest: &str) {
    use std::io::Write as _;
    let mut child =
        mesh.command(&["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().expect("ringmail starts");
    child.stdin.take().expect("its input").write_all(manifest.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "applied:\n{manifest}");
}

fn edges(mesh: &Mesh, kind: &str, namespace: &str) -> Vec<serde_json::Value> {
    let output = mesh.ok(&["viz", "edges", kind, "-n", namespace, "-o", "json", "--window", "10s"]);
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("edges are JSON ({error}):\n{output}"))
}

/// The table of deployments: what is said of each pair.
fn rows(mesh: &Mesh, namespace: &str) -> BTreeMap<(String, String), String> {
    edges(mesh, "deploy", namespace)
        .into_iter()
        .map(|edge| {
            let said = |field: &str| edge[field].as_str().unwrap_or("").to_owned();
            let secured = edge["secured"] == true;
            ((said("src"), said("dst")), if secured { "√".to_owned() } else { said("no_tls_reason") })
        })
        .collect()
}

/// The trust anchors of a mesh that does not exist.
fn other_anchors() -> String {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "30", "-subj", "/CN=root.other.cluster.local", "-keyout", "/dev/null"])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", text(&made));
    String::from_utf8(made.stdout).expect("PEM")
}

#[derive(Debug)]
struct Application {
    namespace: String,
    servers: Vec<Server>,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Server {
    name: String,
    service: String,
    port: u64,
    target: u64,
    named: bool,
    replicas: u64,
    meshed: bool,
}

#[derive(Debug)]
struct Client {
    name: String,
    /// The server that it calls.
    calls: usize,
    replicas: u64,
    meshed: bool,
}

impl Application {
    /// Some meshed servers and one that is not, each with meshed clients; the first has an unmeshed client too.
    fn draw(lot: &mut Lot) -> Self {
        let mut servers: Vec<_> = (0..lot.between(2, 4)).map(|_| Server::draw(lot, true)).collect();
        servers.push(Server::draw(lot, false));
        let mut clients = Vec::new();
        for calls in 0..servers.len() {
            clients.push(Client { name: lot.word(), calls, replicas: lot.between(1, 2), meshed: true });
        }
        clients.push(Client { name: lot.word(), calls: 0, replicas: 1, meshed: false });
        Self { namespace: lot.word(), servers, clients }
    }

    fn manifest(&self) -> String {
        let namespace = &self.namespace;
        let mut text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  annotations: \
             {{ringmail.dev/inject: enabled}}\n"
        );
        for server in &self.servers {
            text.push_str(&server.manifest(namespace));
        }
        for client in &self.clients {
            text.push_str(&client.manifest(namespace, &self.servers[client.calls]));
        }
        text
    }

    /// What the table should say.
    fn rows(&self) -> BTreeMap<(String, String), String> {
        self.clients
            .iter()
            .map(|client| {
                let server = &self.servers[client.calls];
                let said = match (client.meshed, server.meshed) {
                    (true, true) => "√",
                    (false, _) => "No TLS From Remote",
                    (true, false) => "Not Provided By Service Discovery",
                };
                ((client.name.clone(), server.name.clone()), said.to_owned())
            })
            .collect()
    }
}

impl Server {
    fn draw(lot: &mut Lot, meshed: bool) -> Self {
        Self {
            name: lot.word(),
            service: lot.word(),
            port: lot.port(),
            target: lot.port(),
            named: lot.between(0, 1) == 1,
            replicas: lot.between(1, 2),
            meshed,
        }
    }

    fn manifest(&self, namespace: &str) -> String {
        let Self { name, service, port, target, named, replicas, meshed } = self;
        let target_port = if *named { "entrance".to_owned() } else { target.to_string() };
        let inject = if *meshed { "enabled" } else { "disabled" };
        format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {namespace}}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: {namespace}}}\nspec:\n  selector: \
             {{app: {name}}}\n  ports: [{{port: {port}, targetPort: {target_port}}}]\n---\napiVersion: apps/v1\nkind: \
             Deployment\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  replicas: {replicas}\n  selector: \
             {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata:\n      labels: {{app: {name}}}\n      \
             annotations: {{ringmail.dev/inject: {inject}}}\n    spec:\n      serviceAccountName: {name}\n      \
             containers:\n      - name: server\n        image: python\n        command: [python3, -u, -m, http.server, \
             \"{target}\", --directory, /var/empty]\n        ports: [{{name: entrance, containerPort: {target}}}]\n        \
             readinessProbe: {{tcpSocket: {{port: entrance}}, periodSeconds: 1}}\n        volumeMounts: [{{name: site, \
             mountPath: /var/empty}}]\n      volumes: [{{name: site, emptyDir: {{}}}}]\n"
        )
    }
}

impl Client {
    fn manifest(&self, namespace: &str, server: &Server) -> String {
        let Self { name, replicas, meshed, .. } = self;
        let annotations =
            if *meshed { "#annotations" } else { "annotations: {ringmail.dev/inject: disabled}" };
        let url = format!("http://{}.{namespace}:{}/", server.service, server.port);
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata:\n      \
             labels: {{app: {name}}}\n      {annotations}\n    spec:\n      terminationGracePeriodSeconds: 1\n      \
             containers:\n      - name: client\n        image: curl\n        command: [/bin/sh, -c, 'while :; do curl \
             -s -o /dev/null --max-time 5 {url}; sleep 0.4; done']\n"
        )
    }
}

/// A source of chance that can be repeated: xorshift.
struct Lot {
    state: u64,
    drawn: BTreeSet<String>,
    ports: BTreeSet<u64>,
}

impl Lot {
    fn new() -> Self {
        let given = std::env::var("RINGMAIL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let drawn = || u64::from_str_radix(&crate::harness::nonce()[5..20], 16).expect("hexadecimal");
        let seed: u64 = given.unwrap_or_else(drawn).max(1);
        progress(&format!("RINGMAIL_TEST_SEED={seed}"));
        Self { state: seed, drawn: BTreeSet::new(), ports: [4140, 4143, 4190, 4191].into() }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + (self.next() >> 16) % (most - least + 1)
    }

    /// A name that was not drawn before.
    fn word(&mut self) -> String {
        loop {
            let mut word = String::new();
            for place in 0..self.between(4, 16) {
                let letters = if place == 0 { &LETTERS[..26] } else { LETTERS };
                let choice = self.between(0, letters.len() as u64 - 1);
                let letter = usize::try_from(choice).ok().and_then(|choice| letters.get(choice));
                let _ = write!(word, "{}", char::from(*letter.expect("a letter")));
            }
            // Neither a number in YAML's eyes nor a word that it knows.
            word.push('x');
            if self.drawn.insert(word.clone()) {
                return word;
            }
        }
    }

    fn port(&mut self) -> u64 {
        loop {
            let port = self.between(1024, 60_000);
            if self.ports.insert(port) {
                return port;
            }
        }
    }
}

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
