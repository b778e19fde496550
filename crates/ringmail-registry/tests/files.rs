//! A registry fed by a directory.

mod common;

use std::time::Duration;

use common::{Directory, file_name, name, pod, service, service_port, settings, with};
use ringmail_registry::files::FileSource;
use ringmail_registry::{Index, Key, Registry};
use serde_json::json;

/// Longer than any resync: a test that needs it has failed.
const LIMIT: Duration = Duration::from_secs(20);

async fn follow(directory: &Directory) -> Registry {
    let registry = Registry::new(settings());
    tokio::spawn(FileSource::new(directory.path(), registry.clone()).run());
    tokio::time::timeout(LIMIT, registry.synced()).await.expect("synced");
    registry
}

async fn until(registry: &Registry, key: Key, what: &str, mut holds: impl FnMut(&Index) -> bool) {
    let wait = registry.wait_for(key, |index| holds(index).then_some(()));
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn what_is_there_is_known_when_the_registry_is_synced_and_later_changes_follow() {
    let directory = Directory::new();
    directory.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    directory.put(&service("ballot", "web", "10.143.0.5", "web", &json!("http")));
    let registry = follow(&directory).await;
    let port = service_port("ballot", "web", 80);
    assert_eq!(registry.read().endpoints(&port).expect("a service").len(), 1);
    let second = pod("ballot", "web-2", "web", "10.142.0.10");
    let count =
        |index: &Index| index.endpoints(&service_port("ballot", "web", 80)).map(|endpoints| endpoints.len());
    directory.put(&second);
    until(&registry, Key::Endpoints(port.clone()), "two endpoints", |index| count(index) == Some(2)).await;
    directory.put(&with(second.clone(), "/status/conditions", json!([])));
    until(&registry, Key::Endpoints(port.clone()), "one is not ready", |index| count(index) == Some(1)).await;
    directory.remove(&second);
    until(&registry, Key::Pod(name("ballot", "web-2")), "gone", |index| {
        index.pod(&name("ballot", "web-2")).is_none()
    })
    .await;
}

#[tokio::test]
async fn a_bad_file_is_left_out_and_the_others_are_read() {
    let directory = Directory::new();
    directory.put_text("pod.ballot.half.json", r#"{"apiVersion": "v1", "kind": "Po"#);
    directory.put_text("pod.ballot.liar.json", &pod("ballot", "web-9", "web", "10.142.0.99").to_string());
    directory.put_text(
        "pod.ballot.ip.json",
        &with(pod("ballot", "ip", "web", "x"), "/metadata/name", json!("ip")).to_string(),
    );
    directory.put_text("notes.txt", "not ours");
    directory.put_text("configmap.ballot.settings.json", r#"{"apiVersion": "v1", "kind": "ConfigMap"}"#);
    directory.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    let registry = follow(&directory).await;
    let names: Vec<_> = registry.read().pods().map(|pod| pod.name.to_string()).collect();
    assert_eq!(names, ["ballot/web-1"]);
    // Mended, it is read.
    directory.put_text("pod.ballot.half.json", &pod("ballot", "half", "web", "10.142.0.7").to_string());
    until(&registry, Key::Pods, "mended", |index| index.pod(&name("ballot", "half")).is_some()).await;
}

#[tokio::test]
async fn an_object_whose_file_turns_bad_stays_as_it_was() {
    let directory = Directory::new();
    let good = pod("ballot", "web-1", "web", "10.142.0.9");
    directory.put(&good);
    let registry = follow(&directory).await;
    directory.put_text(&file_name(&good), "{");
    // A later object proves that the bad file has been looked at.
    directory.put(&pod("ballot", "web-2", "web", "10.142.0.10"));
    until(&registry, Key::Pods, "web-2", |index| index.pod(&name("ballot", "web-2")).is_some()).await;
    assert!(registry.read().pod(&name("ballot", "web-1")).is_some());
    // Its twin: a file that goes takes the object along, even a bad one.
    directory.remove(&good);
    until(&registry, Key::Pods, "gone", |index| index.pod(&name("ballot", "web-1")).is_none()).await;
}

#[test]
fn a_directory_that_vanishes_takes_nothing_along_and_an_empty_one_does() {
    let directory = Directory::new();
    directory.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    let registry = Registry::new(settings());
    let mut source = FileSource::new(directory.path(), registry.clone());
    let there = || registry.read().pod(&name("ballot", "web-1")).is_some();
    source.read().expect("read");
    assert!(there());
    std::fs::remove_dir_all(directory.path()).expect("removed");
    source.read().expect_err("no directory");
    assert!(there());
    std::fs::create_dir(directory.path()).expect("made anew");
    source.read().expect("read");
    assert!(!there());
}

#[tokio::test]
async fn a_directory_that_was_replaced_is_followed_again() {
    let directory = Directory::new();
    directory.put(&pod("ballot", "web-1", "web", "10.142.0.9"));
    let registry = follow(&directory).await;
    std::fs::remove_dir_all(directory.path()).expect("removed");
    std::fs::create_dir(directory.path()).expect("made anew");
    directory.put(&pod("ballot", "web-2", "web", "10.142.0.10"));
    until(&registry, Key::Pods, "the new directory", |index| {
        index.pod(&name("ballot", "web-2")).is_some() && index.pod(&name("ballot", "web-1")).is_none()
    })
    .await;
}

#[tokio::test]
async fn a_registry_whose_directory_is_missing_is_not_synced_until_it_appears() {
    let directory = Directory::new();
    std::fs::remove_dir(directory.path()).expect("removed");
    let registry = Registry::new(settings());
    tokio::spawn(FileSource::new(directory.path(), registry.clone()).run());
    assert!(tokio::time::timeout(Duration::from_millis(200), registry.synced()).await.is_err());
    std::fs::create_dir(directory.path()).expect("made");
    tokio::time::timeout(LIMIT, registry.synced()).await.expect("synced");
}

#[tokio::test]
async fn changes_within_one_step_of_the_clock_are_all_seen() {
    let directory = Directory::new();
    let registry = follow(&directory).await;
    for round in 0..50_u8 {
        let ip = format!("10.142.1.{}", 100 + round);
        directory.put(&pod("ballot", "web-1", "web", &ip));
        let ip = ip.parse().expect("an address");
        until(&registry, Key::Ip(ip), "the new address", |index| index.pod_by_ip(ip).is_some()).await;
    }
}

#[tokio::test]
async fn only_those_whose_answer_changed_are_woken_and_bursts_count_once() {
    let registry = Registry::new(settings());
    let apply = |value| registry.apply(common::object(value));
    apply(service("ballot", "web", "10.143.0.5", "web", &json!("http")));
    let mut web = registry.subscribe(Key::Endpoints(service_port("ballot", "web", 80)));
    let mut other = registry.subscribe(Key::Ip("10.142.0.200".parse().expect("an address")));
    for host in 1..20 {
        apply(pod("ballot", &format!("web-{host}"), "web", &format!("10.142.0.{host}")));
    }
    tokio::time::timeout(LIMIT, web.changed()).await.expect("woken");
    let quiet = Duration::from_millis(20);
    assert!(tokio::time::timeout(quiet, web.changed()).await.is_err(), "a burst wakes once");
    assert!(tokio::time::timeout(quiet, other.changed()).await.is_err(), "not its address");
    // An annotation of the mesh that no endpoint depends on.
    let value = pod("ballot", "web-1", "web", "10.142.0.1");
    apply(with(value, "/metadata/annotations/config.ringmail.dev~1default-inbound-policy", json!("deny")));
    assert!(tokio::time::timeout(quiet, web.changed()).await.is_err(), "its endpoints are the same");
}
