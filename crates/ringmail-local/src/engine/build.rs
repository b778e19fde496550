//! Pods from templates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

use crate::ids;
use crate::manifest::{Kind, Object, Template};

/// Which form of a template this is: two that are equal give equal pods.
pub(super) fn revision(template: &Template<'_>) -> String {
    let metadata = template.metadata.map(|m| (&m.labels, &m.annotations));
    ids::revision(&(metadata, template.spec))
}

/// A pod as its workload wants it, before injection.
pub(super) fn pod(
    object: &Object,
    template: &Template<'_>,
    revision: &str,
    ordinal: Option<u32>,
    now: Timestamp,
) -> Pod {
    let owner = object.metadata();
    let owner_name = owner.name.clone().unwrap_or_default();
    let kind = object.kind();
    let name = match (kind, ordinal) {
        (Kind::Pod, _) => owner_name.clone(),
        (Kind::StatefulSet, Some(ordinal)) => format!("{owner_name}-{ordinal}"),
        (Kind::Job, Some(index)) => format!("{}-{index}-{}", shortened(&owner_name, 50), ids::suffix()),
        (Kind::Deployment, _) => format!("{}-{revision}-{}", shortened(&owner_name, 46), ids::suffix()),
        _ => format!("{}-{}", shortened(&owner_name, 57), ids::suffix()),
    };
    let mut labels = template.labels();
    let mut annotations = template.metadata.and_then(|m| m.annotations.clone()).unwrap_or_default();
    let mut spec = template.spec.cloned().unwrap_or_default();
    match kind {
        Kind::Deployment => {
            labels.insert("pod-template-hash".to_owned(), revision.to_owned());
        }
        Kind::StatefulSet => {
            labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name.clone());
            labels.insert(
                "controller-revision-hash".to_owned(),
                format!("{}-{revision}", shortened(&owner_name, 40)),
            );
            if let Some(ordinal) = ordinal {
                labels.insert("apps.kubernetes.io/pod-index".to_owned(), ordinal.to_string());
            }
            spec.hostname = Some(name.clone());
            if let Object::StatefulSet(set) = object {
                spec.subdomain =
                    set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
            }
        }
        Kind::DaemonSet => {
            labels.insert("controller-revision-hash".to_owned(), revision.to_owned());
        }
        Kind::Job => {
            labels.insert("batch.kubernetes.io/job-name".to_owned(), owner_name.clone());
            labels.insert("job-name".to_owned(), owner_name.clone());
            if let Some(index) = ordinal {
                annotations.insert("batch.kubernetes.io/job-completion-index".to_owned(), index.to_string());
                spec.hostname = Some(format!("{}-{index}", shortened(&owner_name, 57)));
                completion_index(&mut spec, index);
            }
        }
        _ => {}
    }
    let owner_references = (kind != Kind::Pod).then(|| {
        vec![OwnerReference {
            api_version: kind.api_version().to_owned(),
            kind: kind.as_str().to_owned(),
            name: owner_name,
            uid: owner.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]
    });
    let account = crate::env::account(&Pod { spec: Some(spec.clone()), ..Pod::default() });
    spec.service_account_name = Some(account.clone());
    spec.service_account = Some(account);
    spec.node_name = Some(NODE.to_owned());
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.namespace.clone(),
            uid: Some(ids::uid()),
            labels: Some(labels).filter(|l| !l.is_empty()),
            annotations: Some(annotations).filter(|a| !a.is_empty()),
            creation_timestamp: Some(Time(now)),
            owner_references,
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// The directories that a stateful set's pod keeps when it is replaced, by volume name.
pub(super) fn claims(object: &Object, pod: &Pod, state: &Path) -> BTreeMap<String, PathBuf> {
    let Object::StatefulSet(set) = object else { return BTreeMap::new() };
    let templates = set.spec.iter().flat_map(|s| s.volume_claim_templates.iter().flatten());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    templates
        .filter_map(|claim| claim.metadata.name.clone())
        .map(|claim| {
            let path = state.join("claims").join(namespace).join(format!("{claim}-{name}"));
            (claim, path)
        })
        .collect()
}

fn completion_index(spec: &mut PodSpec, index: u32) {
    let variable = k8s_openapi::api::core::v1::EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value: Some(index.to_string()),
        value_from: None,
    };
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.env.get_or_insert_default().push(variable.clone());
    }
}

fn shortened(name: &str, most: usize) -> &str {
    name.get(..most).unwrap_or(name).trim_end_matches(['-', '.'])
}

/// The one node of a local mesh.
pub(super) const NODE: &str = "local";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn made(text: &str, ordinal: Option<u32>) -> Pod {
        let object = Object::parse(&manifest::read_text("t", text).unwrap()[0]).unwrap().0;
        let template = object.template().unwrap();
        pod(&object, &template, "rev", ordinal, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_deployments_pod_has_its_owner_and_its_revision() {
        let pod = made(
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: a}, spec: {selector: {matchLabels: \
             {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c}]}}}}",
            None,
        );
        let name = pod.metadata.name.unwrap();
        assert!(name.starts_with("web-rev-") && name.len() == 13, "{name}");
        let owner = &pod.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Deployment", "web"));
        assert_eq!(pod.metadata.labels.unwrap()["pod-template-hash"], "rev");
        assert_eq!(pod.spec.unwrap().service_account_name.unwrap(), "default");
    }

    #[test]
    fn a_stateful_sets_pod_has_a_name_of_its_own_and_keeps_its_volumes() {
        let text = "{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db, namespace: a}, spec: {serviceName: dbs, \
                    selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: \
                    [{name: c}]}}, volumeClaimTemplates: [{metadata: {name: data}, spec: {}}]}}";
        let pod = made(text, Some(1));
        let spec = pod.spec.clone().unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-1"), Some("dbs")));
        let object = Object::parse(&manifest::read_text("t", text).unwrap()[0]).unwrap().0;
        assert_eq!(claims(&object, &pod, Path::new("/s"))["data"], Path::new("/s/claims/a/data-db-1"));
    }

    #[test]
    fn an_indexed_jobs_pod_knows_its_index() {
        let pod = made(
            "{apiVersion: batch/v1, kind: Job, metadata: {name: j, namespace: a}, spec: {completions: 2, template: \
             {spec: {restartPolicy: Never, containers: [{name: c}]}}}}",
            Some(1),
        );
        let env = pod.spec.unwrap().containers[0].env.clone().unwrap();
        assert_eq!(env[0].value.as_deref(), Some("1"));
        assert!(pod.metadata.name.unwrap().starts_with("j-1-"));
    }
}
