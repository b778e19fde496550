//! `ringmail ps`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{find, print_line};
use crate::Which;

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// The pods of one namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// All namespaces, which is the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// As a table, or as the Kubernetes objects
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

pub(super) async fn run(args: &PsArgs, which: &Which) -> anyhow::Result<ExitCode> {
    let pods = find(which)?.pods(args.namespace.as_deref()).await?;
    if args.output == Output::Json {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": pods});
        print_line(&serde_json::to_string_pretty(&list)?);
        return Ok(ExitCode::SUCCESS);
    }
    let now = std::time::SystemTime::now();
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(pods.iter().map(|pod| row(pod, now)));
    for line in table(&rows) {
        print_line(&line);
    }
    Ok(ExitCode::SUCCESS)
}

const HEADER: [&str; 8] = ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "MESHED", "IP", "AGE"];

fn row(pod: &Value, now: std::time::SystemTime) -> [String; 8] {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let containers = long_lived(pod);
    let ready = containers.iter().filter(|c| c["ready"] == true).count();
    let restarts: u64 = statuses(pod, "initContainerStatuses")
        .chain(statuses(pod, "containerStatuses"))
        .filter_map(|c| c["restartCount"].as_u64())
        .sum();
    let meshed =
        pod.pointer("/metadata/labels").and_then(|l| l.get("ringmail.dev/control-plane-ns")).is_some();
    [
        text("/metadata/namespace"),
        text("/metadata/name"),
        format!("{ready}/{}", containers.len()),
        status(pod),
        restarts.to_string(),
        if meshed { "yes" } else { "no" }.to_owned(),
        text("/status/podIP"),
        age(&text("/metadata/creationTimestamp"), now),
    ]
}

fn statuses<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod.pointer(&format!("/status/{list}")).and_then(Value::as_array).into_iter().flatten()
}

/// Applications and sidecars: init containers come and go.
fn long_lived(pod: &Value) -> Vec<&Value> {
    let specs = pod.pointer("/spec/initContainers").and_then(Value::as_array).into_iter().flatten();
    let sidecars: Vec<&Value> =
        specs.filter(|c| c["restartPolicy"] == "Always").map(|c| &c["name"]).collect();
    statuses(pod, "initContainerStatuses")
        .filter(|c| sidecars.contains(&&c["name"]))
        .chain(statuses(pod, "containerStatuses"))
        .collect()
}

/// One word, chosen as `kubectl` chooses it.
fn status(pod: &Value) -> String {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str);
    if pod.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null()) {
        return "Terminating".to_owned();
    }
    let phase = text("/status/reason").or_else(|| text("/status/phase")).unwrap_or("Unknown");
    let initialized = pod
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Initialized" && c["status"] == "True");
    let reason = |c: &Value| {
        let state = &c["state"];
        let waiting = state["waiting"]["reason"].as_str();
        let failed = state["terminated"].get("reason").and_then(Value::as_str).filter(|r| *r != "Completed");
        waiting.or(failed).filter(|r| *r != "PodInitializing").map(str::to_owned)
    };
    if !initialized && phase == "Pending" {
        let inits: Vec<&Value> = statuses(pod, "initContainerStatuses").collect();
        if let Some(reason) = inits.iter().find_map(|c| reason(c)) {
            return format!("Init:{reason}");
        }
        let done = inits.iter().filter(|c| c["ready"] == true).count();
        return format!("Init:{done}/{}", inits.len());
    }
    if phase == "Succeeded" {
        return "Completed".to_owned();
    }
    let sidecars = statuses(pod, "initContainerStatuses").find_map(reason);
    statuses(pod, "containerStatuses").find_map(reason).or(sidecars).unwrap_or_else(|| phase.to_owned())
}

/// `45s`, `3m`, `2h`, `4d`, from an RFC 3339 time.
fn age(created: &str, now: std::time::SystemTime) -> String {
    let Some(created) = ringmail_local::seconds_since_epoch(created) else { return "-".to_owned() };
    let now = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let seconds = now.saturating_sub(created);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn table(rows: &[[String; 8]]) -> Vec<String> {
    let mut widths = [0; 8];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            cells.join("   ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    #[test]
    fn a_running_meshed_pod_is_one_line() {
        let pod = json!({
            "metadata": {"namespace": "ballot", "name": "web-1", "creationTimestamp": "1970-01-01T00:00:10Z",
                "labels": {"ringmail.dev/control-plane-ns": "ringmail"}},
            "spec": {"initContainers": [{"name": "init"}, {"name": "proxy", "restartPolicy": "Always"}]},
            "status": {"phase": "Running", "podIP": "10.142.0.9",
                "conditions": [{"type": "Initialized", "status": "True"}],
                "initContainerStatuses": [{"name": "init", "ready": true, "restartCount": 0},
                    {"name": "proxy", "ready": true, "restartCount": 1}],
                "containerStatuses": [{"name": "web", "ready": false, "restartCount": 2, "state": {"running": {}}}]},
        });
        let rows = [HEADER.map(str::to_owned), row(&pod, UNIX_EPOCH + Duration::from_secs(55))];
        assert_eq!(
            table(&rows),
            [
                "NAMESPACE   NAME    READY   STATUS    RESTARTS   MESHED   IP           AGE",
                "ballot      web-1   1/2     Running   3          yes      10.142.0.9   45s",
            ]
        );
    }

    #[test]
    fn troubles_are_named() {
        let waiting = json!({"spec": {}, "status": {"phase": "Running",
            "conditions": [{"type": "Initialized", "status": "True"}],
            "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
        assert_eq!(status(&waiting), "CrashLoopBackOff");
        let init = json!({"spec": {"initContainers": [{"name": "a"}, {"name": "b"}]}, "status": {"phase": "Pending",
            "initContainerStatuses": [{"name": "a", "ready": true}, {"name": "b", "ready": false}]}});
        assert_eq!(status(&init), "Init:1/2");
        let ending = json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}});
        assert_eq!(status(&ending), "Terminating");
    }
}
