//! What is left when the mesh, or a part of it, is killed: nothing.

use std::collections::BTreeSet;
use std::fs;

use crate::harness::{Mesh, User, children, eventually, processes_below, signal};

const MANIFEST: &str = include_str!("manifests/pair.yaml");

#[test]
fn killing_any_process_of_the_mesh_leaves_nothing_behind_as_root() {
    nothing_is_left(User::Root);
}

#[test]
fn killing_any_process_of_the_mesh_leaves_nothing_behind_as_an_ordinary_user() {
    nothing_is_left(User::Ordinary);
}

/// The mesh dies with the outer process and with each process between it and the pods; whichever is killed, every
/// process, mount, link and rule goes.
fn nothing_is_left(user: User) {
    for generation in 0..3 {
        let before = Traces::now();
        let mesh = Mesh::up(user, MANIFEST, &[]);
        let pods = processes_below(mesh.pid());
        assert!(pods.len() > 10, "the mesh runs its pods below `ringmail up`: {pods:?}");
        let victim = descend(mesh.pid(), generation);
        signal(victim, "KILL");
        eventually(&format!("everything goes after kill -9 of generation {generation}"), || {
            let alive: Vec<u32> = pods.iter().copied().filter(|&pid| is_ringmails(pid)).collect();
            if alive.is_empty() { Ok(()) } else { Err(format!("{alive:?}")) }
        });
        drop(mesh);
        assert_eq!(Traces::now(), before, "after kill -9 of generation {generation}");
    }
}

#[test]
fn a_killed_component_comes_back_and_traffic_with_it() {
    let mesh = Mesh::up(User::Root, MANIFEST, &[]);
    mesh.edge_becomes("pair", "client", "server", "");
    for component in ["identity", "destination", "viz"] {
        let pod = mesh.pod("ringmail", component);
        let killed = mesh.ringmail(&["exec", "-n", "ringmail", &pod, "--", "/bin/sh", "-c", "kill -9 -1"]);
        let _ = killed.status;
        mesh.edge_becomes("pair", "client", "server", "");
    }
}

/// What a mesh could leave on this machine.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    links: BTreeSet<String>,
    mounts: BTreeSet<String>,
    rules: String,
}

impl Traces {
    fn now() -> Self {
        let links = fs::read_dir("/sys/class/net").expect("links");
        let rules = std::process::Command::new("nft").args(["list", "tables"]).output();
        Self {
            links: links.flatten().map(|link| link.file_name().to_string_lossy().into_owned()).collect(),
            mounts: fs::read_to_string("/proc/self/mounts")
                .expect("mounts")
                .lines()
                .map(str::to_owned)
                .collect(),
            rules: rules
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
                .unwrap_or_default(),
        }
    }
}

/// The process `generations` below this one, along first children; under `setpriv` the process itself is ringmail.
fn descend(mut pid: u32, generations: u32) -> u32 {
    for _ in 0..generations {
        pid = children(pid).first().copied().unwrap_or(pid);
    }
    pid
}

fn is_ringmails(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // A zombie has ended; its parent collects it.
        Ok(stat) => !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => false,
    }
}
