//! Pods and manifests in, what becomes of them out: plain files under `tests/golden`.
//!
//! `UPDATE_GOLDEN=1 cargo test -p ringmail-inject --test injection` writes the expected files anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{compare, injector, mesh, read_yaml, to_yaml};
use ringmail_inject::text::{Task, render, rewrite};
use ringmail_inject::{Namespace, Owner, Request, SkipReason, apply_patch, uninject};
use serde_json::{Value, json};

/// A file under `pods`: `pod`, and where wanted `namespace`, `owner` and `mesh`.
struct Case {
    path: PathBuf,
    input: Value,
}

impl Case {
    fn all() -> Vec<Self> {
        let read = |path: PathBuf| Self { input: read_yaml(&path), path };
        inputs("pods").into_iter().map(read).collect()
    }

    fn run<T>(&self, job: impl FnOnce(&ringmail_inject::Injector, &Request<'_>) -> T) -> Result<T, String> {
        let injector = injector(mesh(self.input.get("mesh"))).map_err(|error| error.to_string())?;
        let namespace = &self.input["namespace"];
        let owner = self.input.get("owner").map(|owner| Owner {
            kind: owner["kind"].as_str().expect("a kind").to_owned(),
            name: owner["name"].as_str().expect("a name").to_owned(),
        });
        let request = Request {
            pod: &self.input["pod"],
            namespace: Namespace {
                name: namespace["metadata"]["name"].as_str(),
                annotations: namespace["metadata"]["annotations"].as_object(),
            },
            owner: owner.as_ref(),
        };
        Ok(job(&injector, &request))
    }
}

#[test]
fn pods_become_what_the_files_say() {
    let cases = Case::all();
    assert!(!cases.is_empty());
    for case in cases {
        let text = case.run(|injector, request| {
            let outcome = match injector.inject(request) {
                Ok(outcome) => outcome,
                Err(error) => return to_yaml(&json!({ "error": error.to_string() })),
            };
            let mut pod = request.pod.clone();
            apply_patch(&mut pod, &outcome.patch).expect("the patch fits");
            let mut result = json!({});
            if !outcome.skipped.is_empty() {
                let id = |reason: &SkipReason| format!("{}: {reason}", reason.id());
                result["skipped"] = outcome.skipped.iter().map(id).collect();
            }
            if !outcome.warnings.is_empty() {
                result["warnings"] = outcome.warnings.iter().map(ToString::to_string).collect();
            }
            result["operations"] =
                outcome.patch.iter().map(|operation| operation.path().to_owned()).collect();
            result["pod"] = pod;
            to_yaml(&result)
        });
        let text = text.unwrap_or_else(|error| to_yaml(&json!({ "error": error })));
        compare(&expected(&case.path), &text);
    }
}

#[test]
fn injecting_twice_changes_nothing_and_uninjecting_restores() {
    let mut injected = 0;
    for case in Case::all() {
        let outcome = case.run(|injector, request| {
            let Ok(outcome) = injector.inject(request) else { return };
            if !outcome.is_injected() {
                return;
            }
            injected += 1;
            let mut pod = request.pod.clone();
            apply_patch(&mut pod, &outcome.patch).expect("the patch fits");
            let again = injector.inject(&Request { pod: &pod, ..*request }).expect("decided");
            assert_eq!(again.skipped, [SkipReason::SidecarExists], "{}", case.path.display());
            assert_eq!(again.patch, [], "{}", case.path.display());

            let patch = uninject(&pod);
            apply_patch(&mut pod, &patch).expect("the patch fits");
            let mut before = request.pod.clone();
            let patch = uninject(&before);
            apply_patch(&mut before, &patch).expect("the patch fits");
            assert_eq!(without_empty(&pod), without_empty(&before), "{}", case.path.display());
        });
        // A mesh that is refused has nothing to inject.
        drop(outcome);
    }
    assert!(injected > 5, "{injected}");
}

#[test]
fn manifests_become_what_the_files_say() {
    let paths = inputs("manifests");
    assert!(!paths.is_empty());
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("read");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let options: BTreeMap<String, String> = if name.contains("options") {
            [("skip-outbound-ports", "25,3306"), ("proxy-log-level", "debug")]
                .map(|(k, v)| (k.into(), v.into()))
                .into()
        } else {
            BTreeMap::new()
        };
        let injector = injector(mesh(None)).expect("a mesh");
        let task = match name.split('-').next() {
            Some("annotate") => Task::Annotate(&options),
            Some("inject") => Task::Inject(&injector, &options),
            Some("uninject") => Task::Uninject,
            _ => panic!("{name}: begins with none of the tasks"),
        };
        let injecting = !matches!(task, Task::Uninject);
        let result = rewrite(&name, &text, task);
        let (out, report) = match &result {
            Ok(rewritten) => (rewritten.text.clone(), render(&rewritten.reports, false, injecting)),
            Err(error) => (String::new(), format!("error: {error}\n")),
        };
        compare(&expected(&path), &out);
        compare(&expected(&path).with_extension("report"), &report);
        // Once more changes nothing.
        if result.is_ok() {
            assert_eq!(rewrite(&name, &out, task).expect("rewritten").text, out, "{name}");
        }
    }
}

/// Maps and lists that are empty and those that are absent mean the same to Kubernetes.
fn without_empty(value: &Value) -> Value {
    let empty = |value: &Value| {
        value.is_null()
            || value.as_object().is_some_and(serde_json::Map::is_empty)
            || value.as_array().is_some_and(Vec::is_empty)
    };
    match value {
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| (key.clone(), without_empty(value)));
            Value::Object(members.filter(|(_, value)| !empty(value)).collect())
        }
        Value::Array(elements) => elements.iter().map(without_empty).collect(),
        other => other.clone(),
    }
}

fn inputs(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(directory);
    let entries = std::fs::read_dir(directory).expect("listed").map(|entry| entry.expect("an entry").path());
    let input = |path: &PathBuf| path.to_string_lossy().contains(".in.");
    let mut paths: Vec<PathBuf> = entries.filter(input).collect();
    paths.sort();
    paths
}

fn expected(path: &Path) -> PathBuf {
    PathBuf::from(path.to_string_lossy().replace(".in.", ".out."))
}
