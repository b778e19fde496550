//! Who programs are, and what they may do to the pod's network, to the proxy and to each other.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmail_local::sandbox::{Profile, SandboxError};

use crate::world::{Case, World, inside};

pub(crate) fn cases() -> Vec<Case> {
    inside![
        an_application_cannot_set_a_socket_mark_and_the_proxy_can,
        only_init_may_change_the_pods_network_and_its_rules,
        the_proxy_has_one_capability_its_uid_and_no_way_to_more,
        the_memory_of_trusted_programs_is_protected_from_the_first_instruction,
        an_application_sees_its_own_processes_only,
        an_application_has_dockers_capabilities_unless_told_otherwise,
        the_user_asked_for_is_the_user_got,
        a_uid_that_does_not_exist_is_refused,
        a_server_started_as_root_can_drop_its_rights,
        low_ports_may_be_bound_by_any_user,
        new_privileges_can_be_ruled_out,
    ]
}

fn trusted(world: &World, profile: Profile, words: &[&str]) -> ringmail_local::sandbox::ContainerSpec {
    let mut spec = world.probe(words);
    spec.profile = profile;
    spec
}

async fn an_application_cannot_set_a_socket_mark_and_the_proxy_can(world: World) {
    let pod = world.pod().await;
    let mut spec = world.probe(&["mark", "8450"]);
    let (output, exit) = world.run(&pod, spec.clone()).await;
    assert_eq!((output.as_str(), exit.code), ("Operation not permitted (os error 1)\n", 3));
    spec.add_capabilities = vec!["ALL".to_owned()];
    assert_eq!(world.run(&pod, spec).await.1.code, 3);
    world.output(&pod, trusted(&world, Profile::Proxy, &["mark", "8450"])).await;
}

async fn only_init_may_change_the_pods_network_and_its_rules(world: World) {
    let pod = world.pod().await;
    for probe in ["redirect", "link-down"] {
        let mut spec = world.probe(&[probe]);
        spec.add_capabilities = vec!["NET_ADMIN".to_owned()];
        for spec in [spec, trusted(&world, Profile::Proxy, &[probe])] {
            let (output, exit) = world.run(&pod, spec).await;
            assert!(exit.code == 3 && output.contains("permi"), "{output}");
        }
        world.output(&pod, trusted(&world, Profile::Init, &[probe])).await;
    }
}

async fn the_proxy_has_one_capability_its_uid_and_no_way_to_more(world: World) {
    let pod = world.pod().await;
    let mut spec = world.spec(&["/bin/grep", "-E", "^(Uid|Cap|NoNewPrivs)", "/proc/self/status"]);
    spec.profile = Profile::Proxy;
    let output = world.output(&pod, spec).await;
    let uid = if world.has_ids() { 2102 } else { 0 };
    let net_raw = "0000000000002000";
    assert_eq!(
        output.split_whitespace().collect::<Vec<_>>().join(" "),
        format!(
            "Uid: {uid} {uid} {uid} {uid} CapInh: {net_raw} CapPrm: {net_raw} CapEff: {net_raw} CapBnd: {net_raw} \
             CapAmb: {net_raw} NoNewPrivs: 1"
        )
    );
}

async fn the_memory_of_trusted_programs_is_protected_from_the_first_instruction(world: World) {
    let pod = world.pod().await;
    assert_eq!(world.output(&pod, world.probe(&["dumpable"])).await, "true");
    for profile in [Profile::Proxy, Profile::Init] {
        assert_eq!(world.output(&pod, trusted(&world, profile, &["dumpable"])).await, "false");
    }
    let mut spec = world.spec(&["/bin/sh", "-c", "ulimit -c; ulimit -H -c"]);
    spec.profile = Profile::Proxy;
    assert_eq!(world.output(&pod, spec).await, "0\n0");
}

async fn an_application_sees_its_own_processes_only(world: World) {
    let pod = world.pod().await;
    let proxy = world.start(&pod, trusted(&world, Profile::Proxy, &["serve", "4143", "x"])).await;
    let other = world.start(&pod, world.spec(&["sleep", "1000"])).await;
    let look = "for p in /proc/[0-9]*; do echo ${p#/proc/} $(tr '\\0' ' ' < $p/cmdline | cut -c1-8); done; \
                for p in $(seq 3 300); do kill -0 $p 2>/dev/null && echo $p; done; true";
    let output = world.output(&pod, world.sh(look)).await;
    let lines: Vec<&str> = output.lines().filter(|line| !line.ends_with(' ')).collect();
    assert!(lines.len() <= 4 && lines[0] == "1 ringmail" && lines[1] == "2 sh -c fo", "{output}");
    assert!(!output.contains("sleep"), "{output}");
    // Its own init is there, and out of reach.
    let reach =
        "kill -9 1; cat /proc/1/mem /proc/1/maps /proc/1/environ; ls -l /proc/1/exe /proc/1/fd/; true";
    let output = world.output(&pod, world.sh(reach)).await;
    assert!(!output.contains("socket:") && !output.contains("->"), "{output}");
    assert!(proxy.exit().is_none() && other.exit().is_none());
    // The daemon sees both: it is the namespace that hides them.
    kill(Pid::from_raw(i32::try_from(proxy.pid()).unwrap()), None::<Signal>).unwrap();
}

async fn an_application_has_dockers_capabilities_unless_told_otherwise(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("grep CapEff /proc/self/status | cut -f2");
    assert_eq!(world.output(&pod, spec.clone()).await, "00000000a80425fb");
    spec.drop_capabilities = vec!["ALL".to_owned()];
    assert_eq!(world.output(&pod, spec.clone()).await, "0000000000000000");
    spec.add_capabilities = vec!["NET_BIND_SERVICE".to_owned()];
    assert_eq!(world.output(&pod, spec.clone()).await, "0000000000000400");
    spec.uid = Some(1234);
    assert_eq!(world.output(&pod, spec).await, "0000000000000000");
}

async fn the_user_asked_for_is_the_user_got(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("id -u; id -g; touch /tmp/x && stat -c '%u %g' /tmp/x");
    assert_eq!(world.output(&pod, spec.clone()).await, "0\n0\n0 0");
    spec.uid = Some(999);
    spec.gid = Some(998);
    assert_eq!(world.output(&pod, spec.clone()).await, "999\n998\n999 998");
    spec.groups = vec![4, 5000];
    "id -G".clone_into(&mut spec.argv[2]);
    let output = world.output(&pod, spec).await;
    if world.has_ids() {
        assert_eq!(output, "998 4 5000");
    } else {
        assert!(output.starts_with("998"), "{output}");
    }
}

async fn a_uid_that_does_not_exist_is_refused(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("id -u");
    spec.uid = Some(70_000);
    if world.mode != "ranges" {
        // As root every id exists; a single one takes any name.
        assert_eq!(world.output(&pod, spec).await, "70000");
        return;
    }
    let error = world.try_run(&pod, spec).await.unwrap_err();
    assert_eq!(error, SandboxError::NoSuchId { kind: "uid".to_owned(), id: 70_000, count: 65_537 });
}

async fn a_server_started_as_root_can_drop_its_rights(world: World) {
    let pod = world.pod().await;
    let (output, exit) = world.run(&pod, world.probe(&["become", "33"])).await;
    if world.has_ids() {
        assert_eq!((output.as_str(), exit.code), ("33\n", 0));
    } else {
        // The limit of a mesh with one id: nobody to become.
        assert_eq!((output.starts_with("setgroups: EPERM"), exit.code), (true, 3), "{output}");
    }
}

async fn low_ports_may_be_bound_by_any_user(world: World) {
    let pod = world.pod().await;
    let mut spec = world.probe(&["serve", "80", "low"]);
    spec.uid = Some(1234);
    spec.drop_capabilities = vec!["ALL".to_owned()];
    let server = world.start(&pod, spec).await;
    crate::world::until("port 80 answers", async || pod.dial(([127, 0, 0, 1], 80).into()).await.is_ok())
        .await;
    assert_eq!(server.exit(), None);
}

async fn new_privileges_can_be_ruled_out(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("grep NoNewPrivs /proc/self/status | cut -f2");
    assert_eq!(world.output(&pod, spec.clone()).await, "0");
    spec.no_new_privileges = true;
    assert_eq!(world.output(&pod, spec).await, "1");
}
