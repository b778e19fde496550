//! What tests ask about pods, and the processes that run in them.

use std::fs;

use super::{Mesh, eventually, processes_below};

impl Mesh {
    /// A pod, as JSON; `None` when it is gone.
    pub fn pod_json(&self, namespace: &str, pod: &str) -> Option<serde_json::Value> {
        let list: serde_json::Value =
            serde_json::from_str(&self.ok(&["ps", "-o", "json"])).expect("ps prints JSON");
        let wanted = |item: &&serde_json::Value| {
            item["metadata"]["namespace"] == namespace && item["metadata"]["name"] == pod
        };
        list["items"].as_array()?.iter().find(wanted).cloned()
    }

    /// A pod's address.
    pub fn ip(&self, namespace: &str, pod: &str) -> String {
        let pod = self.pod_json(namespace, pod).expect("the pod");
        pod["status"]["podIP"].as_str().expect("its address").to_owned()
    }

    /// Whether a pod is ready.
    pub fn is_ready(&self, namespace: &str, pod: &str) -> bool {
        let Some(pod) = self.pod_json(namespace, pod) else { return false };
        pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    /// How often a pod's containers were started again, sidecars included.
    pub fn restarts(&self, namespace: &str, pod: &str) -> u64 {
        let pod = self.pod_json(namespace, pod).expect("the pod");
        ["containerStatuses", "initContainerStatuses"]
            .iter()
            .filter_map(|list| pod["status"][list].as_array())
            .flatten()
            .filter_map(|container| container["restartCount"].as_u64())
            .sum()
    }

    /// Waits until a pod was started again and is ready.
    pub fn restarted(&self, namespace: &str, pod: &str, at_least: u64) {
        eventually(&format!("{pod} is started again and ready"), || {
            let restarts = self.restarts(namespace, pod);
            if restarts >= at_least && self.is_ready(namespace, pod) {
                Ok(())
            } else {
                Err(format!("{restarts} restarts"))
            }
        });
    }

    /// The processes of the containers whose place begins so; a place is `NAMESPACE/POD/PROGRAM`.
    pub fn container_processes(&self, place: &str) -> Vec<u32> {
        container_processes_below(self.pid(), place)
    }
}

/// The same, below the process of `ringmail up`.
pub fn container_processes_below(up: u32, place: &str) -> Vec<u32> {
    let is_it = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words.get(1..3) == Some(&[b"__stage".as_slice(), b"container"])
            && words.get(3).is_some_and(|word| word.starts_with(place.as_bytes()))
    };
    let stages: Vec<u32> = processes_below(up).into_iter().filter(is_it).collect();
    stages
        .iter()
        .flat_map(|stage| processes_below(*stage).into_iter().filter(move |pid| pid != stage))
        .collect()
}
