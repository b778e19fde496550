//! Finds the cases, and runs each as the users it is about.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;

use crate::world::{self, Case};
use crate::{files, life, network, outside, rights};

/// Users that no machine has.
const SINGLE: u32 = 64_999;
const RANGES: u32 = 64_998;
const DEADLINE: Duration = Duration::from_mins(2);

fn cases() -> Vec<Case> {
    [files::cases(), rights::cases(), network::cases(), life::cases(), outside::cases()].concat()
}

/// Runs one case, as whoever this process is.
pub(crate) fn run_case(name: &str, mode: &str) -> ExitCode {
    match cases().into_iter().find(|case| case.name == name) {
        Some(Case { outside: Some(function), .. }) => {
            function(mode);
            ExitCode::SUCCESS
        }
        Some(_) => world::launch(name, mode),
        None => {
            eprintln!("no case {name}");
            ExitCode::FAILURE
        }
    }
}

/// What `cargo test` starts.
pub(crate) fn run_all(arguments: &[&str]) -> ExitCode {
    let modes: &[&str] =
        if Uid::effective().is_root() { &["root", "single", "ranges"] } else { &["single", "ranges"] };
    let filters: Vec<&&str> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let runs: Vec<(String, &str, &str)> = cases()
        .iter()
        .flat_map(|case| modes.iter().map(|mode| (format!("{mode}::{}", case.name), case.name, *mode)))
        .filter(|(full, ..)| filters.is_empty() || filters.iter().any(|filter| full.contains(**filter)))
        .collect();
    if arguments.contains(&"--list") {
        for (full, ..) in &runs {
            println!("{full}: test");
        }
        return ExitCode::SUCCESS;
    }
    let program = Program::copy();
    println!("\nrunning {} tests", runs.len());
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            scope.spawn(|| {
                while let Some((full, name, mode)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_one(&program, name, mode);
                    println!("test {full} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
                    if let Err(output) = outcome {
                        failures.lock().unwrap().push((full, output));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    for (name, output) in &failures {
        println!("\n---- {name} ----\n{output}");
    }
    let result = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
        runs.len() - failures.len(),
        failures.len()
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn run_one(program: &Program, name: &str, mode: &str) -> Result<(), String> {
    // As a careless shell starts programs: signals ignored, descriptors open.
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP INT QUIT TERM USR1; exec 7</dev/null; exec \"$@\"", "sh"])
        .arg(&program.path);
    let other_user = Uid::effective().is_root() && mode != "root";
    if other_user && mode == "ranges" {
        command.args(["with-ranges", "case", name, mode]);
    } else {
        command.args(["case", name, mode]);
        if other_user {
            command.uid(SINGLE).gid(SINGLE).env("HOME", "/nonexistent");
        }
    }
    let output = program.directory.join(format!("{name}.{mode}.log"));
    let file = fs::File::create(&output).unwrap();
    let mut child = command
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.to_string();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break format!("no end after {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if status == "exit status: 0" {
        return Ok(());
    }
    Err(format!("{}{status}", String::from_utf8_lossy(&fs::read(output).unwrap())))
}

/// This program where every user can read it. Gone when dropped.
struct Program {
    directory: PathBuf,
    path: PathBuf,
}

impl Program {
    fn copy() -> Self {
        let directory = std::env::temp_dir().join(format!("ringmail-sandbox-test-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.join("sandbox-test");
        fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory, path }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

/// Becomes a user who has id ranges, as the files of `/etc` say in this process's mount namespace.
pub(crate) fn with_ranges(arguments: &[&str]) -> ExitCode {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let directory = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    for (name, line) in [
        ("passwd", format!("ringmail-test:x:{RANGES}:{RANGES}::/nonexistent:/bin/sh\n")),
        ("group", format!("ringmail-test:x:{RANGES}:\n")),
        ("subuid", format!("ringmail-test:{}:65536\n", 1_000_000_000)),
        ("subgid", format!("ringmail-test:{}:65536\n", 1_000_000_000)),
    ] {
        let real = PathBuf::from("/etc").join(name);
        assert!(real.exists(), "{} is missing: install the packages passwd and uidmap", real.display());
        let changed = directory.join(format!("{name}-{}", std::process::id()));
        fs::write(&changed, fs::read_to_string(&real).unwrap() + &line).unwrap();
        mount(Some(&changed), &real, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        fs::remove_file(changed).unwrap();
    }
    let error = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .uid(RANGES)
        .gid(RANGES)
        .env("HOME", "/nonexistent")
        .exec();
    panic!("{error}");
}
