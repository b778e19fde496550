//! Unmodified programs from Debian's packages, in the mesh as root and as an ordinary user.

use crate::harness::{Mesh, User, progress};

const MANIFEST: &str = include_str!("manifests/foreign.yaml");

#[test]
fn debians_servers_and_clients_are_secured_as_root() {
    everything_works(User::Root);
}

#[test]
fn debians_servers_and_clients_are_secured_as_an_ordinary_user() {
    everything_works(User::Ordinary);
}

fn everything_works(user: User) {
    let mesh = Mesh::up(user, &MANIFEST.replace("POSTGRES-UID", &uid_of("postgres")), &[]);
    let client = mesh.pod("shop", "client");
    let outsider = mesh.pod("shop", "outsider");
    for pod in [&client, &outsider] {
        mesh.sh_until("shop", pod, "curl -sS --max-time 5 http://nginx/hello", "hello from nginx");
        mesh.sh_until(
            "shop",
            pod,
            "redis-cli -h redis set greeting hello && redis-cli -h redis get greeting",
            "hello",
        );
        mesh.sh_until("shop", pod, "psql -h postgres -U shop -d postgres -Atc 'select 6*7'", "42");
        mesh.sh_until(
            "shop",
            pod,
            "mariadb --no-defaults --skip-ssl -h mariadb -u root -Ne 'select 6*7'",
            "42",
        );
    }
    let nginx = mesh.pod("shop", "nginx");
    mesh.sh_until(
        "shop",
        &nginx,
        "head -c 1000000000 /dev/urandom > /site/big && sha256sum < /site/big",
        "-",
    );
    let sum = mesh.sh_until("shop", &nginx, "sha256sum < /site/big | cut -c1-64", "");
    let sum = sum.lines().next().expect("a checksum").trim();
    mesh.sh_until("shop", &client, "curl -sS http://nginx/big | sha256sum", sum);
    progress(&mesh.sh_until("shop", &client, "wrk -c 16 -d 2 http://nginx/hello", "requests in"));

    // An idle connection: the pop waits without a byte until another client pushes.
    let mut waiting = mesh
        .command(&["exec", "-n", "shop", &client, "--", "redis-cli", "-h", "redis", "blpop", "queue", "30"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("redis-cli starts");
    mesh.sh_until("shop", &outsider, "redis-cli -h redis client list", "cmd=blpop");
    mesh.sh_until("shop", &outsider, "redis-cli -h redis rpush queue delivered", "1");
    let mut popped = String::new();
    std::io::Read::read_to_string(&mut waiting.stdout.take().expect("its output"), &mut popped)
        .expect("text");
    waiting.wait().expect("redis-cli ends");
    assert!(popped.contains("delivered"), "{popped}");

    // In MariaDB's protocol the server speaks first: the unmeshed client was silent, and its address known to be unmeshed.
    for (server, plaintext) in [
        ("nginx", "no_tls_from_remote"),
        ("redis", "no_tls_from_remote"),
        ("mariadb", "silent_unmeshed_client"),
    ] {
        mesh.edge_becomes("shop", "client", server, "");
        mesh.edge_becomes("shop", "outsider", server, plaintext);
    }
    progress(&mesh.ok(&["viz", "edges", "pod", "-n", "shop"]));
}

fn uid_of(name: &str) -> String {
    let output = std::process::Command::new("id").args(["-u", name]).output().expect("id runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
