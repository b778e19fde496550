//! The mesh as its starter sees it: what is left when any of its processes is killed, and what refusals say.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use ringmail_local::sandbox::{
    ContainerIo, ContainerSpec, DaemonContext, DaemonEvent, DaemonOutput, DaemonProcess, DaemonSpec, Network,
    NetworkSpec, PodSandbox, SandboxError, launch_daemon,
};
use serde_json::json;

use crate::world::{Case, choice, processes};

pub(crate) fn cases() -> Vec<Case> {
    macro_rules! outside {
        ($($name:ident),* $(,)?) => {
            vec![$(Case { name: stringify!($name), inside: None, outside: Some($name) }),*]
        };
    }
    outside![
        killing_any_process_leaves_nothing,
        killing_during_the_start_leaves_nothing,
        the_daemon_ends_in_order_when_asked_and_its_exit_code_is_told,
        a_mesh_that_is_dropped_ends_and_one_that_is_detached_lives,
        a_mesh_without_a_daemon_says_so,
        refused_namespaces_are_named_with_their_cure,
        a_covered_proc_is_named_with_its_cure,
        a_mesh_can_have_one_address_family,
    ]
}

const WAIT: Duration = Duration::from_secs(20);

/// A daemon with two pods, each with a tree of processes that ignore signals.
#[expect(clippy::needless_pass_by_value, reason = "the type of all daemons")]
pub(crate) fn hold(context: DaemonContext) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let marker = context.payload["marker"].as_str().unwrap().to_owned();
        let mut terminated =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let address = |last: u8| match context.payload["family"].as_str() {
            Some("ipv6") => IpAddr::V6(Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, last.into())),
            _ => IpAddr::V4(Ipv4Addr::new(10, 142, 0, last)),
        };
        let gateway = address(1);
        let spec = NetworkSpec { gateways: vec![gateway], addresses: Vec::new() };
        let network = Network::set_up(spec).await.unwrap();
        for last in [2, 3] {
            let pod =
                PodSandbox::create(&network, &context.facts, "test/pod", &[address(last)]).await.unwrap();
            let script =
                format!("trap '' TERM INT HUP; sleep {marker} & sleep {marker} & wait; sleep {marker}");
            let null = || fs::File::options().write(true).open("/dev/null").unwrap().into();
            let io = ContainerIo { stdin: None, stdout: null(), stderr: null() };
            pod.start(ContainerSpec::new(["sh", "-c", &script]), io).await.unwrap();
        }
        context.reporter().progress("two pods");
        context.reporter().ready(json!({ "marker": marker }));
        terminated.recv().await;
    });
    ExitCode::from(42)
}

fn launch(mode: &str, marker: &str) -> DaemonProcess {
    launch_with(json!({ "marker": marker }), mode).unwrap()
}

/// A number that is in no other process's arguments.
fn marker() -> String {
    format!("7{}{:06}", std::process::id(), rand::random::<u32>() % 1_000_000)
}

/// A process that starts a mesh, says so, and waits: the command line.
pub(crate) fn holder(mode: &str) -> ExitCode {
    let marker = std::env::var("MARKER").unwrap();
    let daemon = launch(mode, &marker);
    println!("born {}", daemon.pid());
    loop {
        match daemon.next_event(None).unwrap() {
            Some(DaemonEvent::Ready(_)) => println!("ready"),
            Some(DaemonEvent::Exited(code)) => return ExitCode::from(u8::try_from(code).unwrap()),
            _ => {}
        }
    }
}

/// Parent of each process.
fn parents() -> HashMap<u32, u32> {
    processes()
        .into_keys()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect()
}

fn children(of: u32) -> Vec<u32> {
    parents().into_iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| pid).collect()
}

/// All that descend from a process, with when they started, which tells a pid's next owner from them.
fn descendants(of: u32) -> BTreeSet<(u32, String)> {
    let parents = parents();
    let mut found = BTreeSet::from([of]);
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.into_iter().filter_map(|pid| Some((pid, started(pid)?))).collect()
}

fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // A zombie holds nothing; whoever is its parent takes its status.
    (fields[0] != "Z").then(|| fields[19].to_owned())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn nothing_is_left(all: &BTreeSet<(u32, String)>, marker: &str, before: &(String, String)) {
    eventually("all processes have ended", || {
        all.iter().all(|(pid, start)| started(*pid).as_ref() != Some(start))
    });
    let left: Vec<_> = processes().into_values().filter(|line| line.contains(marker)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(&machine(), before);
}

/// Mounts and links of this process's namespaces.
fn machine() -> (String, String) {
    let links = fs::read_to_string("/proc/self/net/dev").unwrap();
    let names: Vec<&str> =
        links.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    (fs::read_to_string("/proc/self/mountinfo").unwrap(), names.join(","))
}

fn killing_any_process_leaves_nothing(mode: &str) {
    let before = machine();
    // The command line, the outer stage, the mesh's init, the daemon; and of a container: its init, its program.
    for (victim, ends) in [
        ("holder", true),
        ("outer", true),
        ("init", true),
        ("daemon", true),
        ("container", false),
        ("program", false),
    ] {
        let marker = marker();
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["holder", mode])
            .env("MARKER", &marker)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        let born = lines.next().unwrap().unwrap();
        let init: u32 = born.strip_prefix("born ").unwrap().parse().unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let outer = children(holder.id())[0];
        assert_eq!(children(outer), [init]);
        let daemon = children(init)[0];
        let container = children(daemon)[0];
        eventually("all are there", || {
            processes().values().filter(|line| line.starts_with(&format!("sleep {marker}"))).count() == 4
        });
        let all = descendants(holder.id());
        assert!(all.len() >= 12, "{all:?}");
        let pid = match victim {
            "holder" => holder.id(),
            "outer" => outer,
            "init" => init,
            "daemon" => daemon,
            "container" => container,
            _ => children(container)[0],
        };
        let below = descendants(container);
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
        if !ends {
            eventually("the container has ended", || {
                below.iter().all(|(pid, start)| started(*pid).as_ref() != Some(start))
            });
            assert!(started(daemon).is_some());
            holder.kill().unwrap();
        }
        holder.wait().unwrap();
        nothing_is_left(&all, &marker, &before);
    }
}

fn killing_during_the_start_leaves_nothing(mode: &str) {
    let before = machine();
    for milliseconds in [0, 1, 2, 3, 5, 8, 12, 18, 26, 40, 60, 90] {
        let marker = marker();
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["holder", mode])
            .env("MARKER", &marker)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(milliseconds));
        let all = descendants(holder.id());
        holder.kill().unwrap();
        holder.wait().unwrap();
        nothing_is_left(&all, &marker, &before);
        // Those that were started between the look and the kill.
        eventually("no stage is left", || {
            !processes().iter().any(|(pid, line)| {
                line.contains("__stage")
                    && fs::read_to_string(format!("/proc/{pid}/environ"))
                        .is_ok_and(|text| text.contains(&marker))
            })
        });
    }
}

fn the_daemon_ends_in_order_when_asked_and_its_exit_code_is_told(mode: &str) {
    let before = machine();
    let marker = marker();
    let daemon = launch(mode, &marker);
    assert_eq!(daemon.next_event(Some(WAIT)).unwrap(), Some(DaemonEvent::Progress("two pods".to_owned())));
    assert_eq!(daemon.next_event(Some(WAIT)).unwrap(), Some(DaemonEvent::Ready(json!({ "marker": marker }))));
    assert_eq!(daemon.next_event(Some(Duration::from_millis(20))).unwrap(), None);
    let all = descendants(daemon.pid());
    daemon.terminate();
    assert_eq!(daemon.next_event(Some(WAIT)).unwrap(), Some(DaemonEvent::Exited(42)));
    drop(daemon);
    nothing_is_left(&all, &marker, &before);

    let daemon = launch(mode, &marker);
    daemon.kill();
    let end = loop {
        match daemon.next_event(Some(WAIT)).unwrap() {
            Some(DaemonEvent::Exited(code)) => break code,
            Some(_) => {}
            None => panic!("no end"),
        }
    };
    assert_eq!(end, 137);
}

fn a_mesh_that_is_dropped_ends_and_one_that_is_detached_lives(mode: &str) {
    let before = machine();
    for detached in [false, true] {
        let marker = marker();
        let daemon = launch(mode, &marker);
        while !matches!(daemon.next_event(Some(WAIT)).unwrap(), Some(DaemonEvent::Ready(_))) {}
        let init = daemon.pid();
        let all = descendants(init);
        if detached {
            daemon.detach().unwrap();
            sleep(Duration::from_millis(100));
            assert!(all.iter().all(|(pid, start)| started(*pid).as_ref() == Some(start)));
            kill(Pid::from_raw(i32::try_from(init).unwrap()), Signal::SIGTERM).unwrap();
        } else {
            drop(daemon);
        }
        nothing_is_left(&all, &marker, &before);
    }
}

fn a_mesh_without_a_daemon_says_so(mode: &str) {
    let spec = DaemonSpec {
        entry: "missing".to_owned(),
        payload: json!(null),
        hide: Vec::new(),
        environment: Vec::new(),
        fds: Vec::new(),
        output: DaemonOutput::Inherit,
        ids: choice(mode),
    };
    let daemon = launch_daemon(spec).unwrap();
    assert_eq!(
        daemon.next_event(Some(WAIT)).unwrap(),
        Some(DaemonEvent::Failed("there is no daemon named `missing` in this program".to_owned()))
    );
    assert_eq!(daemon.next_event(Some(WAIT)).unwrap(), Some(DaemonEvent::Exited(1)));
}

/// What a probe says about a mesh that cannot be had.
fn refusal(words: &[&str]) -> String {
    let output = Command::new(std::env::current_exe().unwrap()).arg("probe").args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn refused_namespaces_are_named_with_their_cure(_: &str) {
    assert_eq!(
        refusal(&["refuse-namespaces", "max_user_namespaces"]),
        "RM1500 user.max_user_namespaces is 0: `sudo sysctl -w user.max_user_namespaces=100000`"
    );
    assert_eq!(
        refusal(&["refuse-namespaces", "max_net_namespaces"]),
        "RM1501 user.max_net_namespaces is 0: `sudo sysctl -w user.max_net_namespaces=100000`"
    );
}

fn a_covered_proc_is_named_with_its_cure(_: &str) {
    let said = refusal(&["cover-proc"]);
    assert!(said.starts_with("RM1504") && said.contains("covers /proc/keys"), "{said}");
    assert!(said.contains("systempaths=unconfined"), "{said}");
}

fn launch_with(payload: serde_json::Value, mode: &str) -> Result<DaemonProcess, SandboxError> {
    launch_daemon(DaemonSpec {
        entry: "hold".to_owned(),
        payload,
        hide: Vec::new(),
        environment: Vec::new(),
        fds: Vec::new(),
        output: DaemonOutput::Inherit,
        ids: choice(mode),
    })
}

/// A user namespace of this process's own, with one id.
fn enter_user_namespace(also: CloneFlags, name: u32) {
    let (uid, gid) = (Uid::current(), Gid::current());
    unshare(CloneFlags::CLONE_NEWUSER | also).unwrap();
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/gid_map", format!("{name} {gid} 1")).unwrap();
    fs::write("/proc/self/uid_map", format!("{name} {uid} 1")).unwrap();
}

/// A machine of our own, in which a setting forbids namespaces to an ordinary user.
pub(crate) fn without_namespaces(setting: &str) -> ExitCode {
    enter_user_namespace(CloneFlags::empty(), 1000);
    fs::write(format!("/proc/sys/user/{setting}"), "0").unwrap();
    let error = launch_with(json!({}), "single").unwrap_err();
    let text = error.to_string();
    println!("{} {}: {}", error.code(), text.rsplit(": ").next().unwrap(), error.cure());
    ExitCode::SUCCESS
}

/// As in a container, whose engine covers parts of `/proc`. Without the cover, a mesh runs in there.
pub(crate) fn with_covered_proc() -> ExitCode {
    enter_user_namespace(CloneFlags::CLONE_NEWNS, 0);
    let marker = marker();
    let daemon = launch_with(json!({ "marker": marker }), "single").unwrap();
    while !matches!(daemon.next_event(Some(WAIT)).unwrap(), Some(DaemonEvent::Ready(_))) {}
    drop(daemon);
    mount(Some("/dev/null"), "/proc/keys", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    // From now on the cover cannot be taken away.
    enter_user_namespace(CloneFlags::CLONE_NEWNS, 0);
    let error = launch_with(json!({ "marker": marker }), "single").unwrap_err();
    println!("{} {error}: {}", error.code(), error.cure());
    ExitCode::SUCCESS
}

fn a_mesh_can_have_one_address_family(mode: &str) {
    for family in ["ipv4", "ipv6"] {
        let daemon = launch_with(json!({ "marker": marker(), "family": family }), mode).unwrap();
        assert_eq!(
            daemon.next_event(Some(WAIT)).unwrap(),
            Some(DaemonEvent::Progress("two pods".to_owned()))
        );
    }
}
