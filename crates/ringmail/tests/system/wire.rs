//! What a capture on the pods' link finds: nothing of a secured pair's payload, and all of an unsecured one's.

use std::process::{Child, Command, Stdio};

use crate::harness::{Mesh, User, eventually, nonce};

const MANIFEST: &str = include_str!("manifests/pair.yaml");

#[test]
fn a_capture_finds_no_payload_of_a_secured_pair_and_finds_the_unsecured_ones() {
    let words = Words::new();
    let mesh = Mesh::up(User::Root, &words.in_manifest(MANIFEST), &[]);
    mesh.edge_becomes("pair", "client", "server", "");
    mesh.edge_becomes("pair", "legacy", "server", "no_tls_from_remote");
    let capture = Capture::start(&mesh);
    capture.until_it_holds(&words.legacy);
    // Legacy's calls came through; the secured client calls as often, so it has called as well.
    capture.until_it_holds("\u{17}\u{3}\u{3}");
    let seen = capture.stop();
    assert!(
        contains(&seen, words.legacy.as_bytes()),
        "the capture works: legacy's request is found in clear"
    );
    assert!(contains(&seen, words.page.as_bytes()), "and the page that legacy got");
    assert!(!contains(&seen, words.query.as_bytes()), "the secured client's request is not found");
}

#[test]
fn without_injection_the_same_capture_finds_everything() {
    let words = Words::new();
    let manifest =
        words.in_manifest(MANIFEST).replace("ringmail.dev/inject: enabled", "ringmail.dev/inject: disabled");
    let mesh = Mesh::up(User::Root, &manifest, &[]);
    let capture = Capture::start(&mesh);
    capture.until_it_holds(&words.query);
    capture.until_it_holds(&words.legacy);
    let seen = capture.stop();
    assert!(contains(&seen, words.query.as_bytes()) && contains(&seen, words.page.as_bytes()));
}

/// Words of this run that stand in bodies.
struct Words {
    page: String,
    query: String,
    legacy: String,
}

impl Words {
    fn new() -> Self {
        Self { page: nonce(), query: nonce(), legacy: nonce() }
    }

    fn in_manifest(&self, manifest: &str) -> String {
        manifest
            .replace("PAGE-NONCE", &self.page)
            .replace("QUERY-NONCE", &self.query)
            .replace("LEGACY-NONCE", &self.legacy)
    }
}

/// `tcpdump` on every link of the mesh's own network namespace, through which all traffic between pods is routed.
struct Capture {
    child: Child,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(mesh: &Mesh) -> Self {
        let file = crate::harness::programs().join(format!("{}.pcap", mesh.name));
        let child = Command::new("nsenter")
            .args([
                "--net",
                "--target",
                &mesh.router().to_string(),
                "tcpdump",
                "-i",
                "any",
                "-U",
                "-s",
                "0",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file)
            .arg("tcp")
            .stderr(Stdio::null())
            .spawn()
            .expect("tcpdump starts");
        Self { child, file }
    }

    fn until_it_holds(&self, text: &str) {
        let wanted: Vec<u8> = text.chars().map(|c| c as u8).collect();
        eventually(&format!("the capture holds {text:?}"), || {
            let seen = std::fs::read(&self.file).unwrap_or_default();
            if contains(&seen, &wanted) { Ok(()) } else { Err(format!("{} bytes captured", seen.len())) }
        });
    }

    fn stop(mut self) -> Vec<u8> {
        crate::harness::signal(self.child.id(), "INT");
        self.child.wait().expect("tcpdump ends");
        std::fs::read(&self.file).expect("the capture")
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
