//! How programs start and end in containers, and how others are run beside them.

use std::io::Write;
use std::os::fd::OwnedFd;

use ringmail_local::sandbox::{ContainerIo, ExecIo, ExecSpec, Exit, PodSandbox};
use tokio::time::{Duration, timeout};

use crate::world::{Case, World, captured, inside, processes, read, until};

pub(crate) fn cases() -> Vec<Case> {
    inside![
        exit_codes_and_signals_are_told,
        a_signal_reaches_the_program_and_its_handler_decides,
        a_program_starts_with_nothing_inherited,
        standard_input_is_passed_and_output_ends_with_the_program,
        a_program_that_cannot_be_started_is_an_error_with_the_reason,
        orphans_are_reaped_and_end_with_the_program,
        destroying_a_pod_ends_everything_in_it,
        a_start_that_nobody_waits_for_leaves_nothing,
        other_programs_run_in_the_same_namespaces_as_the_same_user,
        a_program_can_have_a_terminal,
        a_program_in_a_container_that_ended_is_an_error,
        many_containers_start_at_once,
    ]
}

async fn exit_codes_and_signals_are_told(world: World) {
    let pod = world.pod().await;
    for (script, code, signal) in [
        ("exit 0", 0, None),
        ("exit 7", 7, None),
        ("kill -9 $$", 137, Some(9)),
        ("kill -TERM $$", 143, Some(15)),
        ("kill -SEGV $$", 139, Some(11)),
        ("kill -34 $$", 162, Some(34)),
    ] {
        let (_, exit) = world.run(&pod, world.sh(script)).await;
        assert_eq!(exit, Exit { code, signal }, "{script}");
    }
}

async fn a_signal_reaches_the_program_and_its_handler_decides(world: World) {
    let pod = world.pod().await;
    let (io, output) = captured();
    let script = "trap 'echo got; exit 5' TERM; echo ready > /tmp/ready; while :; do sleep 0.01; done";
    let container = pod.start(world.sh(script), io).await.unwrap();
    let ready = ExecSpec { argv: vec!["cat".into(), "/tmp/ready".into()], env: Vec::new(), cwd: None };
    until("the trap is set", async || {
        let process = container.exec(ready.clone(), ExecIo::Streams(captured().0)).await.unwrap();
        process.wait().await.code == 0
    })
    .await;
    container.signal(15).unwrap();
    assert_eq!(container.wait().await, Exit { code: 5, signal: None });
    assert_eq!(read(output).await, "got\n");
    assert!(container.signal(99).is_err());

    let container = world.start(&pod, world.spec(&["sleep", "1000"])).await;
    container.kill();
    assert_eq!(container.wait().await, Exit::KILLED);
}

async fn a_program_starts_with_nothing_inherited(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= | sort; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; umask");
    spec.env.push(("HELLO".to_owned(), "world".to_owned()));
    let output = world.output(&pod, spec).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "HELLO=world");
    assert!(lines[1].starts_with("PATH="), "{output}");
    assert_eq!(lines[2], "SigBlk:\t0000000000000000");
    // The first 31; the C library has its own further up.
    let ignored = u64::from_str_radix(lines[3].strip_prefix("SigIgn:\t").unwrap(), 16).unwrap();
    assert_eq!(ignored & 0x7fff_ffff, 0, "{output}");
    // Three, and the one that lists them.
    assert_eq!((lines[4], lines[5]), ("4", "0022"), "{output}");
}

async fn standard_input_is_passed_and_output_ends_with_the_program(world: World) {
    let pod = world.pod().await;
    let (stdin, mut writer) = std::io::pipe().unwrap();
    let (mut io, output) = captured();
    io.stdin = Some(stdin.into());
    let container = pod.start(world.spec(&["cat"]), io).await.unwrap();
    writer.write_all(b"through").unwrap();
    drop(writer);
    assert_eq!(timeout(Duration::from_secs(10), read(output)).await.unwrap(), "through");
    assert_eq!(container.wait().await.code, 0);
    assert_eq!(world.output(&pod, world.sh("cat; echo end")).await, "end");
}

async fn a_program_that_cannot_be_started_is_an_error_with_the_reason(world: World) {
    let pod = world.pod().await;
    for (argv, code, expected) in [
        (vec!["no-such-program"], "RM1508", "it is not in PATH"),
        (vec!["/etc/passwd"], "RM1508", "Permission denied"),
        (vec!["/usr"], "RM1508", "it is a directory"),
        (vec!["/no/such"], "RM1508", "No such file"),
        (vec![], "RM1510", "argv: is empty"),
    ] {
        let error = world.try_run(&pod, world.spec(&argv)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut spec = world.sh("true");
    spec.hostname = "x".repeat(65);
    assert!(world.try_run(&pod, spec).await.unwrap_err().to_string().starts_with("hostname:"));
}

async fn orphans_are_reaped_and_end_with_the_program(world: World) {
    let pod = world.pod().await;
    let script = "(sleep 0.01 &); (sleep 4242 &); sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status; exit 0";
    assert_eq!(world.output(&pod, world.sh(script)).await, "");
    assert!(!processes().values().any(|line| line.contains("sleep 4242")));
}

async fn destroying_a_pod_ends_everything_in_it(world: World) {
    let pod = world.pod().await;
    let one = world.start(&pod, world.sh("trap '' TERM INT; sleep 4343 & sleep 4343")).await;
    let two = world.start(&pod, world.sh("sleep 4343")).await;
    until("they run", async || {
        processes().values().filter(|line| line.starts_with("sleep 4343")).count() == 3
    })
    .await;
    pod.destroy().await.unwrap();
    assert_eq!((one.exit(), two.exit()), (Some(Exit::KILLED), Some(Exit::KILLED)));
    assert!(!processes().values().any(|line| line.contains("4343")), "{:?}", processes());
}

async fn a_start_that_nobody_waits_for_leaves_nothing(world: World) {
    let pod = world.pod().await;
    for milliseconds in [0, 1, 2, 5, 10, 20, 40] {
        let start = pod.start(world.spec(&["sleep", "4444"]), captured().0);
        drop(timeout(Duration::from_millis(milliseconds), start).await);
    }
    pod.destroy().await.unwrap();
    until("none is left", async || !processes().values().any(|line| line.contains("4444"))).await;
}

async fn exec(world: &World, pod: &PodSandbox, uid: Option<u32>, script: &str) -> (String, Exit) {
    let mut spec = world.sh("echo shared > /tmp/file; sleep 1000");
    spec.uid = uid;
    "exec-test".clone_into(&mut spec.hostname);
    spec.cwd = "/usr".into();
    let container = world.start(pod, spec.clone()).await;
    let (io, output) = captured();
    let exec = ExecSpec { argv: vec!["sh".into(), "-c".into(), script.into()], env: spec.env, cwd: None };
    let process = container.exec(exec, ExecIo::Streams(io)).await.unwrap();
    let exit = process.wait().await;
    let output = read(output).await;
    container.kill();
    container.wait().await;
    (output, exit)
}

async fn other_programs_run_in_the_same_namespaces_as_the_same_user(world: World) {
    let pod = world.pod().await;
    let script = "while ! test -s /tmp/file; do :; done; cat /tmp/file; hostname; id -u; pwd; \
                  for n in mnt pid net ipc uts user cgroup; do \
                  test \"$(readlink /proc/self/ns/$n)\" = \"$(readlink /proc/2/ns/$n)\" || echo $n differs; done; \
                  grep CapEff /proc/self/status; exit 9";
    let (output, exit) = exec(&world, &pod, None, script).await;
    assert_eq!(output, "shared\nexec-test\n0\n/usr\nCapEff:\t00000000a80425fb\n");
    assert_eq!(exit.code, 9);
    let (output, _) = exec(&world, &pod, Some(1234), script).await;
    assert_eq!(output, "shared\nexec-test\n1234\n/usr\nCapEff:\t0000000000000000\n");
}

async fn a_program_can_have_a_terminal(world: World) {
    let pod = world.pod().await;
    let mut spec = world.spec(&["sleep", "1000"]);
    spec.uid = Some(1234);
    let container = world.start(&pod, spec).await;
    let script = "tty; stty size; echo > /dev/tty && read line && echo \"<$line>\"; kill -HUP $$";
    let exec = ExecSpec {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        env: world.sh("").env,
        cwd: Some("/".into()),
    };
    let process = container.exec(exec, ExecIo::Terminal { rows: 33, columns: 44 }).await.unwrap();
    let terminal: OwnedFd = process.terminal().unwrap().try_clone().unwrap();
    std::fs::File::from(terminal.try_clone().unwrap()).write_all(b"typed\n").unwrap();
    process.resize(55, 66).unwrap();
    assert_eq!(process.wait().await, Exit { code: 129, signal: Some(1) });
    drop(process);
    let output = read(terminal).await;
    assert!(output.contains("/dev/pts/0\r\n"), "{output}");
    assert!(output.contains("33 44\r\n") || output.contains("55 66\r\n"), "{output}");
    assert!(output.contains("<typed>\r\n"), "{output}");
}

async fn a_program_in_a_container_that_ended_is_an_error(world: World) {
    let pod = world.pod().await;
    let container = world.start(&pod, world.spec(&["sleep", "1000"])).await;
    let exec = ExecSpec { argv: vec!["no-such".into()], env: Vec::new(), cwd: None };
    let error = container.exec(exec.clone(), ExecIo::Streams(captured().0)).await.unwrap_err();
    assert_eq!(error.code(), "RM1508", "{error}");
    container.kill();
    container.wait().await;
    let error = container.exec(exec, ExecIo::Streams(captured().0)).await.unwrap_err();
    assert_eq!(error.code(), "RM1511", "{error}");
}

async fn many_containers_start_at_once(world: World) {
    let pods = [world.pod().await, world.pod().await, world.pod().await];
    let mut running = tokio::task::JoinSet::new();
    for number in 0..24 {
        let (world, pod) = (world.clone(), pods[number % 3].clone());
        running.spawn(async move {
            let (io, output): (ContainerIo, OwnedFd) = captured();
            let container = pod.start(world.sh(&format!("echo {number}; exit {number}")), io).await.unwrap();
            assert_eq!(container.wait().await.code, i32::try_from(number).unwrap());
            assert_eq!(read(output).await, format!("{number}\n"));
        });
    }
    while let Some(result) = running.join_next().await {
        result.unwrap();
    }
}
