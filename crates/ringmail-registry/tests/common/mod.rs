//! Objects as Kubernetes writes them, and a directory to put them in.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ringmail_identity::TrustDomain;
use ringmail_registry::{Index, MeshSettings, Object, ObjectName, ServicePort};
use serde_json::{Value, json};

pub(crate) fn settings() -> MeshSettings {
    MeshSettings {
        trust_domain: TrustDomain::new("cluster.local", "ringmail").expect("valid"),
        control_plane_namespace: "ringmail".to_owned(),
    }
}

pub(crate) fn index() -> Index {
    Index::new(settings())
}

pub(crate) fn object(value: Value) -> Object {
    Object::from_json(value).expect("a valid object").expect("a kind that is kept")
}

pub(crate) fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName::new(namespace, name)
}

pub(crate) fn service_port(namespace: &str, service: &str, port: u16) -> ServicePort {
    ServicePort { service: name(namespace, service), port }
}

/// A running, ready, meshed pod with the label `app=<app>` and the named port `http` = 8080.
pub(crate) fn pod(namespace: &str, name: &str, app: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("uid-{namespace}-{name}"),
            "creationTimestamp": "2026-08-01T10:00:00Z",
            "labels": { "app": app, "ringmail.dev/control-plane-ns": "ringmail" },
            "annotations": { "config.ringmail.dev/skip-inbound-ports": "4190,4191,9000" },
        },
        "spec": {
            "serviceAccountName": app, "nodeName": "node-1",
            "containers": [{ "name": "app", "ports": [{ "name": "http", "containerPort": 8080 }] }],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "hostIP": "192.168.7.1",
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

pub(crate) fn service(namespace: &str, name: &str, ip: &str, app: &str, target: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": namespace, "name": name, "uid": format!("uid-{namespace}-{name}"), "creationTimestamp": "2026-08-01T10:00:00Z" },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": app },
            "ports": [{ "name": "web", "port": 80, "targetPort": target, "protocol": "TCP" }],
        },
    })
}

pub(crate) fn controller(
    api: &str,
    kind: &str,
    namespace: &str,
    name: &str,
    owner: Option<(&str, &str)>,
) -> Value {
    let owners: Vec<_> = owner.into_iter().map(|(kind, name)| owner_reference(kind, name)).collect();
    json!({
        "apiVersion": api, "kind": kind,
        "metadata": { "namespace": namespace, "name": name, "uid": format!("uid-{name}"), "ownerReferences": owners },
    })
}

pub(crate) fn owner_reference(kind: &str, name: &str) -> Value {
    json!({ "apiVersion": "x/v1", "kind": kind, "name": name, "uid": format!("uid-{name}"), "controller": true })
}

/// Sets a value at a path such as `/spec/hostNetwork`, whose parent exists.
pub(crate) fn with(mut value: Value, path: &str, new: Value) -> Value {
    let (parent, key) = path.rsplit_once('/').expect("a path");
    let parent = value.pointer_mut(parent).expect("the parent exists");
    parent[key.replace("~1", "/")] = new;
    value
}

/// A fresh directory, removed at the end of the test.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("ringmail-registry-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes an object under its own file name, by renaming.
    pub(crate) fn put(&self, object: &Value) {
        self.put_text(&file_name(object), &object.to_string());
    }

    pub(crate) fn put_text(&self, file: &str, text: &str) {
        let new = self.0.join(format!(".{file}.new"));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.0.join(file)).expect("renamed");
    }

    pub(crate) fn remove(&self, object: &Value) {
        std::fs::remove_file(self.0.join(file_name(object))).expect("removed");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn file_name(object: &Value) -> String {
    let field = |path: &str| object.pointer(path).and_then(Value::as_str);
    let kind = field("/kind").expect("a kind").to_lowercase();
    format!(
        "{kind}.{}.{}.json",
        field("/metadata/namespace").unwrap_or("_"),
        field("/metadata/name").expect("a name")
    )
}
