//! `cargo xtask demo`: the voting application in a local mesh, and with `--once` the proof that it is what it says.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::process;

#[derive(clap::Args)]
pub struct Arguments {
    /// Start, check what `viz edges` and `viz tap` print, tear down, and exit 0 or 1
    #[arg(long)]
    once: bool,
    /// When started as root: run the mesh as a user without privileges
    #[arg(long)]
    as_ordinary_user: bool,
    /// When started as root: run the mesh as this user
    #[arg(long, value_name = "NAME", conflicts_with = "as_ordinary_user")]
    user: Option<String>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    println!("building in release mode");
    let packages = ["ringmail", "ringmail-proxy", "ringmail-controller", "ballot"];
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    process::check(process::cargo().args(["build", "--release", "--bins"]).args(packages))?;
    println!("built in {:.1} s", started.elapsed().as_secs_f32());
    let user = match &arguments.user {
        Some(name) => {
            let group = process::capture(Command::new("id").args(["-g", name]))?;
            ensure!(group.status.success(), "there is no user `{name}` on this machine");
            let group = String::from_utf8_lossy(&group.stdout).trim().to_owned();
            Some(vec![format!("--reuid={name}"), format!("--regid={group}"), "--init-groups".to_owned()])
        }
        None if arguments.as_ordinary_user => {
            Some(NOBODY_IN_PARTICULAR.iter().map(ToString::to_string).collect())
        }
        None => None,
    };
    let programs = Programs::place(user)?;
    if arguments.once {
        return once(&programs);
    }
    // From here on this process is `ringmail up`, so that signals and the terminal are its own.
    Err(programs.up("demo", "127.0.0.1:8080").exec()).context("ringmail did not start")
}

fn once(programs: &Programs) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut mesh = Mesh::start(programs)?;
    mesh.wait_until_up()?;
    let edges = mesh
        .until("the four edges", &["viz", "edges", "deploy", "-n", "ballot"], |text| rows_are(text, EDGES))?;
    println!("first √ in the table after {:.1} s\n{edges}", started.elapsed().as_secs_f32());
    let tap = mesh.watch(&["viz", "tap", "deploy/web", "-n", "ballot"], |lines| {
        let kind =
            |kind: &str, tls: &str| lines.iter().any(|line| line.starts_with(kind) && line.contains(tls));
        ["req ", "rsp ", "end "].iter().all(|k| kind(k, " tls=true "))
            && kind("req ", " tls=no_tls_from_remote ")
    })?;
    println!("{}\n", excerpt(&tap));
    let failure = mesh.watch(&["viz", "tap", "deploy/voting", "-n", "ballot"], |lines| {
        lines.iter().any(|line| {
            line.starts_with("end ") && line.contains("grpc-status=") && !line.contains("grpc-status=OK")
        })
    })?;
    println!("{}\n", excerpt(&failure));
    let control =
        mesh.until("the control plane's edges", &["viz", "-n", "ringmail", "edges", "deploy"], |text| {
            CONTROL_PLANE.iter().all(|row| text.lines().any(|line| words(line) == *row))
        })?;
    println!("{control}");
    mesh.stop()?;
    println!("the demo shows what it should; it took {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// The rows of the table, word by word; no other row may be there.
const EDGES: &[&[&str]] = &[
    &["SRC", "DST", "SRC_NS", "DST_NS", "SECURED"],
    &["legacy", "web", "ballot", "ballot", "No", "TLS", "From", "Remote"],
    &["vote-bot", "web", "ballot", "ballot", "√"],
    &["web", "emoji", "ballot", "ballot", "√"],
    &["web", "voting", "ballot", "ballot", "√"],
];

const CONTROL_PLANE: &[&[&str]] = &[
    &["viz", "identity", "ringmail", "ringmail", "√"],
    &["viz", "destination", "ringmail", "ringmail", "√"],
];

const DEADLINE: Duration = Duration::from_mins(1);

/// Arguments of `setpriv` for a user who owns nothing and is in no file of users.
const NOBODY_IN_PARTICULAR: &[&str] = &["--reuid=64322", "--regid=64322", "--clear-groups"];

fn rows_are(text: &str, expected: &[&[&str]]) -> bool {
    let mut rows: Vec<Vec<&str>> = text.lines().map(words).filter(|row| !row.is_empty()).collect();
    if rows.len() > 1 {
        rows[1..].sort();
    }
    rows == expected
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The first line of each kind, which is enough to see what tap shows.
fn excerpt(lines: &[String]) -> String {
    let mut shown: Vec<&str> = Vec::new();
    let kind = |line: &str| {
        let field =
            |name: &str| line.split(' ').find(|word| word.starts_with(name)).unwrap_or_default().to_owned();
        (line.get(..3).unwrap_or_default().to_owned(), field("tls="), field("grpc-status="))
    };
    for line in lines {
        if !shown.iter().any(|other| kind(other) == kind(line)) {
            shown.push(line);
        }
    }
    shown.join("\n")
}

/// The built programs, in a folder that the mesh's user can reach.
struct Programs {
    folder: PathBuf,
    manifest: PathBuf,
    /// How `setpriv` becomes the mesh's user, where that is another one; the programs are copies then.
    user: Option<Vec<String>>,
}

impl Programs {
    fn place(user: Option<Vec<String>>) -> anyhow::Result<Self> {
        let built = process::target().join("release");
        let manifest = process::workspace().join("demo/ballot.yaml");
        if user.is_none() {
            return Ok(Self { folder: built, manifest, user });
        }
        ensure!(
            process::is_root(),
            "--user and --as-ordinary-user are for root; started by an ordinary user the mesh is that user's anyway"
        );
        remove_what_others_left()?;
        let folder = Path::new(COPIES).join(format!("{COPY}{}", std::process::id()));
        // The folder is new and root's: nobody else can have put a program there.
        std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let programs = Self { manifest: folder.join("ballot.yaml"), folder, user };
        open_to_all(&programs.folder)?;
        for name in ["ringmail", "ringmail-proxy", "ringmail-controller"].iter().chain(BALLOT) {
            let copy = programs.folder.join(name);
            std::fs::copy(built.join(name), &copy).with_context(|| format!("copying {name}"))?;
            open_to_all(&copy)?;
        }
        std::fs::copy(&manifest, &programs.manifest).context("copying the manifest")?;
        Ok(programs)
    }

    fn ringmail(&self) -> Command {
        let program = self.folder.join("ringmail");
        let Some(user) = &self.user else { return Command::new(program) };
        let mut command = Command::new("setpriv");
        command.args(user).arg("--").arg(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").current_dir("/");
        command
    }

    /// `ringmail up` with `web` at an address of this machine.
    fn up(&self, name: &str, web: &str) -> Command {
        let mut command = self.ringmail();
        command.arg("up").arg("-f").arg(&self.manifest).args(["--name", name]);
        command.arg("--publish").arg(format!("web.ballot:80@{web}"));
        for program in BALLOT {
            command.arg("--run").arg(format!("ballot/{program}={}", self.folder.join(program).display()));
        }
        command
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        if self.user.is_some() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A demo that goes on until Ctrl-C cannot remove its copies; the next one does.
fn remove_what_others_left() -> anyhow::Result<()> {
    for entry in std::fs::read_dir(COPIES).with_context(|| format!("cannot read {COPIES}"))?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(COPY)) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

const COPIES: &str = "/var/tmp";
const COPY: &str = "ringmail-demo-";

/// Also the names of the images in `demo/ballot.yaml`, after `ballot/`.
const BALLOT: &[&str] = &["web", "emoji", "voting", "vote-bot"];

fn open_to_all(path: &Path) -> anyhow::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the mode of {}", path.display()))
}

/// `ringmail up`, and what it prints.
struct Mesh<'a> {
    name: String,
    programs: &'a Programs,
    child: Child,
    printed: Receiver<String>,
}

impl<'a> Mesh<'a> {
    fn start(programs: &'a Programs) -> anyhow::Result<Self> {
        // A demo that somebody watches may be running, and so may another check.
        let name = format!("demo-{}", std::process::id());
        let mut child = programs
            .up(&name, "127.0.0.1:0")
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .context("ringmail did not start")?;
        let printed = lines_of(&mut child)?;
        Ok(Self { name, programs, child, printed })
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while let Ok(line) = self.printed.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            println!("{line}");
            if line.contains(" is up: ") {
                return Ok(());
            }
        }
        bail!("the mesh did not come up");
    }

    /// Runs a command of `ringmail` again and again until its output is as it should be.
    fn until(&self, what: &str, arguments: &[&str], right: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        println!("$ ringmail {}", arguments.join(" "));
        let deadline = Instant::now() + DEADLINE;
        loop {
            let output =
                process::capture(self.programs.ringmail().args(["--mesh", &self.name]).args(arguments))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && right(&text) {
                return Ok(text);
            }
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(Instant::now() < deadline, "{what}: last printed\n{text}{errors}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a command of `ringmail` that goes on, until its lines are enough.
    fn watch(&self, arguments: &[&str], enough: impl Fn(&[String]) -> bool) -> anyhow::Result<Vec<String>> {
        println!("$ ringmail {}", arguments.join(" "));
        let mut command = self.programs.ringmail();
        let mut child = command
            .args(["--mesh", &self.name])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("ringmail did not start")?;
        let printed = lines_of(&mut child)?;
        let deadline = Instant::now() + DEADLINE;
        let mut lines = Vec::new();
        while !enough(&lines) {
            let Ok(line) = printed.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                break;
            };
            lines.push(line);
        }
        child.kill().context("stopping tap")?;
        child.wait().context("tap's end")?;
        let missing = || {
            format!("`ringmail {}` did not show what it should:\n{}", arguments.join(" "), lines.join("\n"))
        };
        ensure!(enough(&lines), missing());
        Ok(lines)
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        process::check(Command::new("kill").args(["-INT", &self.child.id().to_string()]))?;
        let status = self.child.wait().context("the end of the mesh")?;
        while let Ok(line) = self.printed.recv() {
            println!("{line}");
        }
        ensure!(status.success(), "`ringmail up` ended with {status}");
        Ok(())
    }
}

impl Drop for Mesh<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that a program prints, as they come.
pub fn lines_of(child: &mut Child) -> anyhow::Result<Receiver<String>> {
    let output = child.stdout.take().context("no output")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "SRC        DST      SRC_NS   DST_NS   SECURED\n\
        legacy     web      ballot   ballot   No TLS From Remote\n\
        vote-bot   web      ballot   ballot   √      \n\
        web        emoji    ballot   ballot   √      \n\
        web        voting   ballot   ballot   √      \n";

    #[test]
    fn only_the_exact_table_passes() {
        assert!(rows_are(TABLE, EDGES));
        assert!(!rows_are(&TABLE.replace("No TLS From Remote", "√"), EDGES));
        assert!(!rows_are(&TABLE.replacen('√', "One Witness: client", 1), EDGES));
        assert!(!rows_are(&format!("{TABLE}legacy emoji ballot ballot √\n"), EDGES));
    }
}
