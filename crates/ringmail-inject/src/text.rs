//! Manifests as text: injected, annotated or uninjected so that whatever is not touched stays byte for byte.
//!
//! Start here: [`rewrite`]. Each document is read twice: as a value, on which the change is decided and made as a patch,
//! and as a tree of positions, along which the same patch is carried out on the text. The edited text is read again and
//! compared with the patched value; where they differ (anchors and aliases can do that), the document is written anew.

mod documents;
mod edit;
mod report;
mod tree;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::decide::{Wish, has_our_proxy, shape_reasons, wish};
use crate::error::{InjectError, Warning};
use crate::inject::{Injector, Namespace, Request, make_metadata, set};
use crate::patch::{Patch, apply_patch};
use crate::uninject::uninject;
use crate::workload::{self, Shape};
use crate::{INJECT_ANNOTATION, OPTION_PREFIX, SkipReason};

pub use report::{Report, Status, render};

/// What to do with the workloads of a manifest.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// Ask for injection, which then happens where the manifest is applied. The options become annotations.
    Annotate(&'a BTreeMap<String, String>),
    /// Add the proxy here and now, with these options as annotations.
    Inject(&'a Injector, &'a BTreeMap<String, String>),
    /// Take the proxy out.
    Uninject,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The manifest.
    pub text: String,
    /// What was done to each object, in order.
    pub reports: Vec<Report>,
}

/// Does the task on every document of a manifest in YAML or JSON; `name` stands for it in messages.
pub fn rewrite(name: &str, text: &str, task: Task<'_>) -> Result<Rewritten, InjectError> {
    let mut rewritten = Rewritten { text: String::new(), reports: Vec::new() };
    for document in documents::split(name, text)? {
        let before = documents::read(name, &document)?;
        let mut reports = Vec::new();
        let patch = plan(&before, "", task, &mut reports)?;
        let mut after = before.clone();
        apply_patch(&mut after, &patch)?;
        if let Some(edited) = edit::apply(document.text, &before, &after, &patch) {
            rewritten.text.push_str(&edited);
        } else {
            for report in reports.iter_mut().filter(|report| report.status.is_change()) {
                report.warnings.push(Warning::Rewritten { object: report.object() });
            }
            rewritten.text.push_str(&documents::write_anew(name, &document, &after)?);
        }
        rewritten.reports.extend(reports);
    }
    Ok(rewritten)
}

/// The change to one object, which stands at `prefix` of its document.
fn plan(
    object: &Value,
    prefix: &str,
    task: Task<'_>,
    reports: &mut Vec<Report>,
) -> Result<Patch, InjectError> {
    if object.is_null() {
        return Ok(Patch::new());
    }
    let (kind, name) = workload::title(object);
    let mut report = Report {
        kind,
        name,
        status: Status::Skipped(vec![SkipReason::UnsupportedResource]),
        warnings: Vec::new(),
    };
    let mut patch = Patch::new();
    match workload::shape(object) {
        Shape::NoKind => report.status = Status::NoKind,
        Shape::Other => {}
        Shape::List => {
            let items = object.get("items").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            for (index, item) in items.iter().enumerate() {
                patch.extend(plan(item, &format!("{prefix}/items/{index}"), task, reports)?);
            }
            return Ok(patch);
        }
        Shape::Namespace => {
            let (change, status) = namespace(object, task);
            (patch, report.status) = (change, status);
        }
        Shape::Pods(at) => match object.pointer(at) {
            Some(template) if template.is_object() => {
                patch = pods(object, template, task, &mut report)?;
                patch = patch.into_iter().map(|operation| operation.under(at)).collect();
            }
            _ => {
                let why = "must be a pod template, an object with `metadata` and `spec`".to_owned();
                return Err(InjectError::Malformed { object: report.object(), field: dotted(at), why });
            }
        },
    }
    reports.push(report);
    Ok(patch.into_iter().map(|operation| operation.under(prefix)).collect())
}

/// A namespace can only be asked to mesh its pods, or no longer.
fn namespace(object: &Value, task: Task<'_>) -> (Patch, Status) {
    match task {
        Task::Annotate(options) | Task::Inject(_, options) => match wish(workload::annotations(object)) {
            Wish::Disabled => (Patch::new(), Status::Skipped(vec![SkipReason::AnnotationDisabled])),
            _ => (annotate(object, options), Status::Annotated),
        },
        Task::Uninject => {
            let patch: Patch = uninject(object);
            let status = if patch.is_empty() { Status::Skipped(Vec::new()) } else { Status::Uninjected };
            (patch, status)
        }
    }
}

fn pods(object: &Value, template: &Value, task: Task<'_>, report: &mut Report) -> Result<Patch, InjectError> {
    let options = match task {
        Task::Uninject => {
            let patch = uninject(template);
            report.status = if patch.is_empty() { Status::Skipped(Vec::new()) } else { Status::Uninjected };
            return Ok(patch);
        }
        Task::Annotate(options) | Task::Inject(_, options) => options,
    };
    let reasons = shape_reasons(template);
    let annotations = template.pointer("/metadata/annotations").and_then(Value::as_object);
    if wish(annotations) == Wish::Disabled {
        report.status = Status::Skipped([vec![SkipReason::AnnotationDisabled], reasons].concat());
        return Ok(Patch::new());
    }
    if has_our_proxy(template) {
        report.status = Status::Skipped(reasons);
        return Ok(Patch::new());
    }
    if !reasons.is_empty() {
        let reasons = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(InjectError::Impossible { object: report.object(), reasons });
    }
    if has_udp_ports(template) {
        report.warnings.push(Warning::Udp { object: report.object() });
    }
    report.status = Status::Injected;
    let mut patch = annotate(template, options);
    if let Task::Inject(injector, _) = task {
        let mut annotated = template.clone();
        apply_patch(&mut annotated, &patch)?;
        let name = object.pointer("/metadata/namespace").and_then(Value::as_str);
        let owner = workload::owner(object);
        let namespace = Namespace { name, annotations: None };
        let outcome = injector.inject(&Request { pod: &annotated, namespace, owner: owner.as_ref() })?;
        report.warnings.extend(outcome.warnings);
        patch.extend(outcome.patch);
    }
    Ok(patch)
}

fn annotate(object: &Value, options: &BTreeMap<String, String>) -> Patch {
    let mut annotations = vec![(INJECT_ANNOTATION.to_owned(), "enabled".to_owned())];
    annotations.extend(options.iter().map(|(name, value)| (format!("{OPTION_PREFIX}{name}"), value.clone())));
    make_metadata(object).into_iter().chain(set(object, "annotations", annotations)).collect()
}

fn has_udp_ports(template: &Value) -> bool {
    let ports =
        crate::decide::containers(template).filter_map(|container| container.get("ports")?.as_array());
    ports.flatten().any(|port| port.get("protocol").is_some_and(|protocol| protocol == "UDP"))
}

fn dotted(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}
