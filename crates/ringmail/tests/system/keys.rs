//! Where private keys are: the issuer's in the identity pod's secret, and no other in any file or environment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use crate::harness::{Mesh, User, processes_below, text};

const MANIFEST: &str = include_str!("manifests/faults.yaml");
const NS: &str = "faults";
const ISSUER: &str = "/var/run/ringmail/issuer/tls.key";

#[test]
fn the_issuers_key_is_in_the_identity_pods_secret_and_no_other_key_is_in_any_file_as_root() {
    keys_are_where_they_should_be(User::Root);
}

#[test]
fn the_issuers_key_is_in_the_identity_pods_secret_and_no_other_key_is_in_any_file_as_an_ordinary_user() {
    keys_are_where_they_should_be(User::Ordinary);
}

fn keys_are_where_they_should_be(user: User) {
    let began = SystemTime::now();
    let mesh = Mesh::up(user, MANIFEST, &[]);
    let client = mesh.pod(NS, "client");
    mesh.sh_until(NS, &client, "curl -sS --max-time 5 http://server/", "server-");
    let identity = mesh.pod("ringmail", "identity");
    let key = mesh.ok(&["exec", "-n", "ringmail", &identity, "--", "cat", ISSUER]);
    let known = Key::from_pem(&key);

    let seen = scan(&mesh, &known, began);
    assert!(seen.files > 100 && seen.environments > 10, "the scan reads what is there: {seen:?}");
    assert!(!seen.findings.is_empty(), "it finds the secret itself");
    for (place, what) in &seen.findings {
        assert!(
            place.ends_with("tls.key") && place.contains("issuer"),
            "{what} in {place}: {:#?}",
            seen.findings
        );
    }
    let files: BTreeSet<_> = seen.found.iter().collect();
    assert_eq!(files.len(), 1, "one file, however many processes see it: {:#?}", seen.findings);

    // The twins: copies in each form, planted where applications may write, are found.
    let hex = hexadecimal(&known.scalar);
    let fresh = openssl_key();
    let plants = [
        ("/scratch/pem", format!("cat > /scratch/pem <<'END'\n{key}END\n")),
        (
            "/scratch/raw",
            format!(
                "python3 -c 'open(\"/scratch/raw\", \"wb\").write(b\"before\" + bytes.fromhex(\"{hex}\") + b\"after\")'"
            ),
        ),
        ("/tmp/base64", format!("base64 -w0 > /tmp/base64 <<'END'\n{key}END\n")),
        ("/etc/hexadecimal", format!("echo {hex} > /etc/hexadecimal || echo {hex} > /tmp/hexadecimal")),
        ("/scratch/other", format!("cat > /scratch/other <<'END'\n{fresh}END\n")),
    ];
    for (place, line) in &plants {
        let planted = mesh.sh(NS, &client, line);
        assert!(planted.status.success(), "planting {place}: {}", text(&planted));
    }
    let seen = scan(&mesh, &known, began);
    for (place, _) in &plants {
        let name = Path::new(place).file_name().and_then(|name| name.to_str()).expect("a name");
        assert!(
            seen.findings.keys().any(|found| found.ends_with(name)),
            "{place} is found: {:#?}",
            seen.findings
        );
    }
    let mut bearer = mesh
        .command(&["exec", "-n", NS, &client, "--", "env", &format!("KEY={hex}"), "sleep", "60"])
        .stdout(Stdio::null())
        .spawn()
        .expect("ringmail starts");
    crate::harness::eventually("a key in an environment is found", || {
        let seen = scan(&mesh, &known, began);
        let found = seen.findings.keys().any(|place| place.ends_with("/environ"));
        if found { Ok(()) } else { Err(format!("{:#?}", seen.findings)) }
    });
    let _ = bearer.kill();
    let _ = bearer.wait();
}

#[test]
fn processes_with_keys_leave_no_core_and_show_no_memory_to_their_own_user() {
    let mut plain = Command::new("setpriv")
        .args(["--reuid=64321", "--regid=64321", "--clear-groups", "sleep", "60"])
        .spawn()
        .expect("setpriv starts");
    crate::harness::eventually("an ordinary process belongs to its user", || {
        let owner = owner_of_environment(plain.id());
        if owner == Some(64321) { Ok(()) } else { Err(format!("{owner:?}")) }
    });
    let _ = plain.kill();
    let _ = plain.wait();
    for user in [User::Root, User::Ordinary] {
        let mesh = Mesh::up(user, MANIFEST, &[]);
        let mut checked = 0;
        for pid in processes_below(mesh.pid()) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if !matches!(name.trim(), "ringmail-proxy" | "ringmail-contro") {
                continue;
            }
            checked += 1;
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
            let core =
                limits.lines().find(|line| line.starts_with("Max core file size")).expect("its core limit");
            let values: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
            assert_eq!(values, ["0", "0"], "{name} as {user:?} may not leave a core file");
            // The kernel gives the files of a process whose memory is closed to root: its user namespace's root, which
            // in an ordinary user's mesh is that user. `apart.rs` tries from inside.
            if user == User::Root {
                assert_eq!(owner_of_environment(pid), Some(0), "{name} shows its memory");
            }
        }
        assert!(checked >= 8, "five proxies and three controllers at least, not {checked}");
    }
}

fn owner_of_environment(pid: u32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}/environ")).ok().map(|file| file.uid())
}

/// The issuer's key, and how it would look in a file.
struct Key {
    scalar: Vec<u8>,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Key {
    fn from_pem(pem: &str) -> Self {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = decode(&body);
        // ECPrivateKey of P-256: version 1, then 32 bytes.
        let head = [0x02, 0x01, 0x01, 0x04, 0x20];
        let at = der.windows(head.len()).position(|window| window == head).expect("a P-256 key") + head.len();
        let scalar = der[at..at + 32].to_vec();
        let hex = hexadecimal(&scalar);
        let mut forms = vec![
            ("its scalar", scalar.clone()),
            ("its scalar in hexadecimal", hex.clone().into_bytes()),
            ("its scalar in hexadecimal", hex.to_uppercase().into_bytes()),
        ];
        // In base64 bytes look three ways, by where they begin; ends are shared with their neighbours and left out.
        for (bytes, what) in [(&der, "its DER in base64"), (&scalar, "its scalar in base64")] {
            for shift in 0..3 {
                let mut shifted = vec![0; shift];
                shifted.extend_from_slice(if what.contains("DER") { &bytes[at..at + 32] } else { bytes });
                let text = encode(&shifted);
                forms.push((what, text.as_bytes()[4..40].to_vec()));
            }
        }
        // A Secret's value is the base64 of the PEM text.
        let second = pem.lines().nth(1).expect("a line").as_bytes();
        for shift in 0..3 {
            let mut shifted = vec![0; shift];
            shifted.extend_from_slice(second);
            let text = encode(&shifted);
            forms.push(("its PEM in base64", text.as_bytes()[4..80].to_vec()));
        }
        forms.push(("its PEM", second.to_vec()));
        Self { scalar, forms }
    }
}

#[derive(Debug, Default)]
struct Scan {
    files: usize,
    environments: usize,
    /// Place, and what was found there.
    findings: BTreeMap<String, &'static str>,
    /// The files that held something, by device and inode.
    found: Seen,
}

/// Reads every file that a process of the mesh sees and that the mesh may have written, and every environment.
fn scan(mesh: &Mesh, key: &Key, began: SystemTime) -> Scan {
    let mut scan = Scan::default();
    let (mut namespaces, mut seen) = (BTreeSet::new(), BTreeSet::new());
    // What the mesh has outside of its namespaces: its control socket, the daemon's log, what `up` printed.
    let outside = ["/run/ringmail", "/tmp/ringmail-64321"].map(|base| Path::new(base).join(&mesh.name));
    for folder in outside.into_iter().chain([crate::harness::programs().join(&mesh.name)]) {
        scan.walk(&folder, false, began, &mut seen, key);
    }
    for pid in processes_below(mesh.pid()) {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) {
            scan.environments += 1;
            scan.look(&format!("/proc/{pid}/environ"), (0, pid.into()), &environment, key);
        }
        // Files without a name: in memory, or deleted and held open.
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let named = fs::read_link(descriptor.path()).unwrap_or_default();
            if named.to_string_lossy().ends_with(" (deleted)") {
                scan.read(&descriptor.path(), began, &mut seen, key);
            }
        }
        let own = fs::read_link("/proc/self/ns/mnt").ok();
        if Some(&namespace) == own.as_ref() || !namespaces.insert(namespace) {
            continue;
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap_or_default();
        for mount in mounts.lines() {
            let mut words = mount.split_whitespace();
            let (Some(_), Some(place), Some(kind)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let pseudo = ["/proc", "/sys", "/dev/pts"].iter().any(|pseudo| place.starts_with(pseudo));
            if matches!(kind, "tmpfs" | "overlay") && !pseudo {
                let root = PathBuf::from(format!("/proc/{pid}/root{place}"));
                scan.walk(&root, kind == "overlay", began, &mut seen, key);
            }
        }
    }
    scan
}

impl Scan {
    /// A file system, without what is mounted on it. In an overlay whatever was written lies in folders of the upper
    /// layer, all of which were made since the mesh began.
    fn walk(&mut self, folder: &Path, overlay: bool, began: SystemTime, seen: &mut Seen, key: &Key) {
        let Ok(device) = fs::metadata(folder).map(|folder| folder.dev()) else { return };
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let path = entry.path();
                if kind.is_dir() {
                    // The tests' own copies of the programs are the machine's, and large.
                    let of_tests = entry.file_name().to_string_lossy().starts_with("ringmail-test-");
                    let facts = fs::symlink_metadata(&path);
                    let is_part = |facts: fs::Metadata| {
                        facts.dev() == device && (!overlay || changed_since(&facts, began))
                    };
                    if !of_tests && facts.is_ok_and(is_part) {
                        folders.push(path);
                    }
                } else if kind.is_file() {
                    self.read(&path, began, seen, key);
                }
            }
        }
    }

    /// A file, if it was written or changed since the mesh began: what is older is the machine's.
    fn read(&mut self, path: &Path, began: SystemTime, seen: &mut Seen, key: &Key) {
        let Ok(facts) = fs::metadata(path) else { return };
        if !facts.is_file() || !changed_since(&facts, began) || facts.len() > LARGEST {
            return;
        }
        let which = (facts.dev(), facts.ino());
        if !seen.insert(which) {
            return;
        }
        let Ok(bytes) = fs::read(path) else { return };
        self.files += 1;
        self.look(&path.to_string_lossy(), which, &bytes, key);
    }

    fn look(&mut self, place: &str, which: (u64, u64), bytes: &[u8], key: &Key) {
        let mut what = key.forms.iter().find(|(_, form)| contains(bytes, form)).map(|(what, _)| *what);
        // Programs have the beginnings of keys in them, as templates.
        if what.is_none() && !bytes.starts_with(b"\x7fELF") {
            what = PATTERNS.iter().find(|(_, pattern)| contains(bytes, pattern)).map(|(what, _)| *what);
        }
        if let Some(what) = what {
            self.findings.insert(place.to_owned(), what);
            self.found.insert(which);
        }
    }
}

/// Files by device and inode.
type Seen = BTreeSet<(u64, u64)>;

/// No file of the mesh is larger, but for programs.
const LARGEST: u64 = 64 * 1024 * 1024;

fn changed_since(facts: &fs::Metadata, began: SystemTime) -> bool {
    let began = began.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u64::try_from(facts.ctime()).is_ok_and(|changed| changed + 1 >= began)
}

/// How any private key on P-256, or in PEM, begins.
const PATTERNS: [(&str, &[u8]); 4] = [
    (
        "a key in PKCS #8",
        &[
            0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
            0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04,
        ],
    ),
    ("a key in SEC 1", &[0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20]),
    ("a key in PEM", b"-----BEGIN PRIVATE KEY-----\nM"),
    ("a key in PEM", b"-----BEGIN EC PRIVATE KEY-----\nM"),
];

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let (Some(first), last) = (wanted.first(), bytes.len().saturating_sub(wanted.len())) else {
        return false;
    };
    if bytes.len() < wanted.len() {
        return false;
    }
    let mut from = 0;
    while let Some(at) = bytes[from..=last].iter().position(|byte| byte == first) {
        let at = from + at;
        if bytes[at..].starts_with(wanted) {
            return true;
        }
        from = at + 1;
        if from > last {
            break;
        }
    }
    false
}

/// A key that has nothing to do with the mesh.
fn openssl_key() -> String {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .output()
        .expect("openssl runs");
    String::from_utf8(made.stdout).expect("PEM")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn encode(bytes: &[u8]) -> String {
    String::from_utf8(piped("base64", &["-w0"], bytes)).expect("base64")
}

fn decode(text: &str) -> Vec<u8> {
    piped("base64", &["-d"], text.as_bytes())
}

fn piped(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("its input").write_all(input).expect("it reads");
    child.wait_with_output().expect("it ends").stdout
}
