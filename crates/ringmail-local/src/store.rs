//! The objects of a mesh, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::ids;
use crate::manifest::{Kind, Object, ObjectKey};

/// What an apply did to one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Applied {
    /// It is new.
    Created,
    /// It was there and is different now.
    Configured,
    /// It was there as it is.
    Unchanged,
}

/// The objects that users gave, plus the default namespace and its service accounts.
#[derive(Clone, Debug, Default)]
pub struct Store {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    version: u64,
}

impl Store {
    /// A store with the namespace `default`.
    pub fn new(now: Timestamp) -> Self {
        let mut store = Self::default();
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some("default".into()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        store.apply(Object::Namespace(namespace), now);
        store
    }

    /// Puts an object in place of the one of the same key. Keeps uid, creation time and a service's addresses. A new namespace
    /// gets its service account `default`, as on a cluster.
    pub fn apply(&mut self, mut object: Object, now: Timestamp) -> Applied {
        let key = object.key();
        drop_status(&mut object);
        let known = self.objects.get(&key).cloned();
        let metadata = object.metadata_mut();
        let (uid, created, generation) = match known.as_deref() {
            Some(known) => {
                let known = known.metadata();
                (known.uid.clone(), known.creation_timestamp.clone(), known.generation.unwrap_or(1))
            }
            None => (Some(ids::uid()), Some(Time(now)), 1),
        };
        metadata.uid = uid;
        metadata.creation_timestamp = created;
        metadata.generation = Some(generation);
        metadata.resource_version = known.as_deref().and_then(|k| k.metadata().resource_version.clone());
        metadata.managed_fields = None;
        if let (Object::Service(new), Some(Object::Service(old))) = (&mut object, known.as_deref()) {
            keep_addresses(new, old);
        }
        if known.as_deref() == Some(&object) {
            return Applied::Unchanged;
        }
        self.version += 1;
        let metadata = object.metadata_mut();
        metadata.resource_version = Some(self.version.to_string());
        if known.is_some() {
            metadata.generation = Some(generation + 1);
        }
        self.objects.insert(key.clone(), Arc::new(object));
        if key.kind == Kind::Namespace {
            let account = ObjectKey::new(Kind::ServiceAccount, key.name.clone(), "default");
            if !self.objects.contains_key(&account) {
                self.apply(default_account(&key.name), now);
            }
        }
        if known.is_some() { Applied::Configured } else { Applied::Created }
    }

    /// Replaces an object by a changed form of itself, such as a service with its addresses.
    pub fn replace(&mut self, mut object: Object) {
        self.version += 1;
        object.metadata_mut().resource_version = Some(self.version.to_string());
        self.objects.insert(object.key(), Arc::new(object));
    }

    /// Takes an object out; a namespace takes everything in it along. Returns what went.
    pub fn remove(&mut self, key: &ObjectKey) -> Vec<Arc<Object>> {
        let mut gone: Vec<Arc<Object>> = self.objects.remove(key).into_iter().collect();
        if key.kind == Kind::Namespace && !gone.is_empty() {
            let inside: Vec<ObjectKey> =
                self.objects.keys().filter(|k| k.namespace == key.name).cloned().collect();
            gone.extend(inside.iter().filter_map(|k| self.objects.remove(k)));
        }
        gone
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Every object, by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<Object>)> {
        self.objects.iter()
    }

    /// The next version number, for objects kept elsewhere (pods).
    pub fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        match self.objects.get(&ObjectKey::new(Kind::Namespace, "", name)).map(Arc::as_ref) {
            Some(Object::Namespace(namespace)) => Some(namespace),
            _ => None,
        }
    }

    /// A service account.
    pub fn service_account(&self, namespace: &str, name: &str) -> Option<&ServiceAccount> {
        match self.objects.get(&ObjectKey::new(Kind::ServiceAccount, namespace, name)).map(Arc::as_ref) {
            Some(Object::ServiceAccount(account)) => Some(account),
            _ => None,
        }
    }

    /// A config map.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        match self.objects.get(&ObjectKey::new(Kind::ConfigMap, namespace, name)).map(Arc::as_ref) {
            Some(Object::ConfigMap(map)) => Some(map),
            _ => None,
        }
    }

    /// A secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Secret> {
        match self.objects.get(&ObjectKey::new(Kind::Secret, namespace, name)).map(Arc::as_ref) {
            Some(Object::Secret(secret)) => Some(secret),
            _ => None,
        }
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.objects.values().filter_map(|object| match object.as_ref() {
            Object::Service(service) => Some(service),
            _ => None,
        })
    }
}

fn default_account(namespace: &str) -> Object {
    Object::ServiceAccount(ServiceAccount {
        metadata: ObjectMeta {
            name: Some("default".into()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    })
}

/// A manifest may come from a cluster, status and all; the status here is the mesh's to write.
fn drop_status(object: &mut Object) {
    match object {
        Object::Namespace(o) => o.status = None,
        Object::Service(o) => o.status = None,
        Object::Pod(o) => o.status = None,
        Object::Deployment(o) => o.status = None,
        Object::StatefulSet(o) => o.status = None,
        Object::DaemonSet(o) => o.status = None,
        Object::Job(o) => o.status = None,
        Object::ServiceAccount(_) | Object::ConfigMap(_) | Object::Secret(_) => {}
    }
}

fn keep_addresses(new: &mut Service, old: &Service) {
    if let (Some(new), Some(old)) = (new.spec.as_mut(), old.spec.as_ref())
        && new.cluster_ip.is_none()
        && old.cluster_ip.as_deref() != Some("None")
    {
        new.cluster_ip.clone_from(&old.cluster_ip);
        new.cluster_ips.clone_from(&old.cluster_ips);
        if new.ip_families.is_none() {
            new.ip_families.clone_from(&old.ip_families);
        }
        if new.ip_family_policy.is_none() {
            new.ip_family_policy.clone_from(&old.ip_family_policy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn object(text: &str) -> Object {
        Object::parse(&manifest::read_text("t", text).unwrap()[0]).unwrap().0
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let mut store = Store::new(Timestamp::UNIX_EPOCH);
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n";
        assert_eq!(store.apply(object(text), Timestamp::UNIX_EPOCH), Applied::Created);
        assert_eq!(store.apply(object(text), Timestamp::UNIX_EPOCH), Applied::Unchanged);
        let uid = store.config_map("default", "c").unwrap().metadata.uid.clone();
        assert_eq!(
            store.apply(object(&text.replace("a: b", "a: c")), Timestamp::UNIX_EPOCH),
            Applied::Configured
        );
        let map = store.config_map("default", "c").unwrap();
        assert_eq!(map.metadata.uid, uid);
        assert_eq!(map.metadata.generation, Some(2));
    }

    #[test]
    fn a_namespace_brings_its_default_account_and_takes_everything_along() {
        let mut store = Store::new(Timestamp::UNIX_EPOCH);
        store.apply(object("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n"), Timestamp::UNIX_EPOCH);
        assert!(store.service_account("x", "default").is_some());
        let gone = store.remove(&ObjectKey::new(Kind::Namespace, "", "x"));
        assert_eq!(gone.len(), 2);
        assert!(store.service_account("default", "default").is_some());
    }
}
