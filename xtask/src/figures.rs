//! `cargo xtask figures`: the sizes of the programs and the memory of a proxy, measured in a mesh of its own.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::process;

const MANIFEST: &str = include_str!("figures.yaml");
const CONNECTIONS: u32 = 1000;
const DEADLINE: Duration = Duration::from_mins(1);

pub fn run() -> anyhow::Result<()> {
    let packages =
        ["--package", "ringmail", "--package", "ringmail-proxy", "--package", "ringmail-controller"];
    let started = Instant::now();
    process::check(process::cargo().args(["build", "--release", "--bins"]).args(packages))?;
    println!("release build: {:.0} s (cold only after `cargo clean`)", started.elapsed().as_secs_f32());
    let release = process::target().join("release");
    for program in ["ringmail-proxy", "ringmail-controller", "ringmail"] {
        let size = std::fs::metadata(release.join(program))
            .with_context(|| format!("{program} is not built"))?
            .len();
        println!("{program:<20} {:>6.1} MB", size as f64 / 1e6);
    }
    let name = format!("figures{}", std::process::id());
    let manifest = std::env::temp_dir().join(format!("{name}.yaml"));
    std::fs::write(&manifest, MANIFEST)?;
    let ringmail = || {
        let mut command = Command::new(release.join("ringmail"));
        command.args(["--mesh", &name]);
        command
    };
    process::check(
        ringmail().args(["up", "-d", "--name", &name, "-f"]).arg(&manifest).stdout(Stdio::null()),
    )?;
    let result = memory(&ringmail);
    process::check(ringmail().arg("down").stdout(Stdio::null()))?;
    std::fs::remove_file(&manifest)?;
    result
}

fn memory(ringmail: &dyn Fn() -> Command) -> anyhow::Result<()> {
    let proxy = |deploy: &str| -> anyhow::Result<u64> {
        let target = format!("deploy/{deploy}");
        let output = process::capture(ringmail().args([
            "exec",
            "-n",
            "figures",
            &target,
            "-c",
            "ringmail-proxy",
            "--",
            "cat",
            "/proc/1/status",
            "/proc/2/status",
        ]))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        resident_of(&text, "ringmail-proxy").with_context(|| {
            format!("the proxy of {deploy}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    };
    let (client, server) = (proxy("client")?, proxy("server")?);
    println!("proxy after start: client {client} kB, server {server} kB resident");
    let script = format!(
        "import resource,socket,sys\nresource.setrlimit(resource.RLIMIT_NOFILE,(4096,4096))\n\
         held=[socket.create_connection(('server',80)) for _ in range({CONNECTIONS})]\n\
         [s.sendall(b'x') for s in held]\n[s.recv(1) for s in held]\nprint('held',flush=True)\nsys.stdin.read()\n"
    );
    let mut holder = ringmail()
        .args(["exec", "-i", "-n", "figures", "deploy/client", "--", "python3", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("the holder of connections")?;
    let said = crate::demo::lines_of(&mut holder)?.recv_timeout(DEADLINE);
    let held = said.as_deref() == Ok("held");
    let figures = held.then(|| Ok::<_, anyhow::Error>((proxy("client")?, proxy("server")?)));
    drop(holder.stdin.take());
    holder.kill().context("ending the holder")?;
    holder.wait()?;
    let Some(figures) = figures else { bail!("the connections did not stand in time") };
    let (client_held, server_held) = figures?;
    ensure!(client_held >= client && server_held >= server, "memory went down: {client_held} {server_held}");
    println!(
        "proxy with {CONNECTIONS} mTLS connections, idle: client {client_held} kB, server {server_held} kB resident; {:.1} and {:.1} kB each",
        (client_held - client) as f64 / f64::from(CONNECTIONS),
        (server_held - server) as f64 / f64::from(CONNECTIONS),
    );
    Ok(())
}

/// `VmRSS` in kB of the process of this name, in the text of one or more `/proc/*/status`.
fn resident_of(text: &str, name: &str) -> Option<u64> {
    let mut ours = false;
    for line in text.lines() {
        if let Some(found) = line.strip_prefix("Name:") {
            ours = name.starts_with(found.trim());
        }
        if let (true, Some(size)) = (ours, line.strip_prefix("VmRSS:")) {
            return size.trim().trim_end_matches(" kB").parse().ok();
        }
    }
    None
}
