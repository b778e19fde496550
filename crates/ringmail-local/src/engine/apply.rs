//! Objects that users give and take.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;

use super::{Engine, State};
use crate::addresses::Pool;
use crate::control_plane::NAMESPACE;
use crate::manifest::{Document, Kind, Object, ObjectKey, check};
use crate::problem::{Problem, Problems};
use crate::programs::Programs;
use crate::protocol::Severity;
use crate::store::Applied;

/// What an apply did: each object and what happened to it, and what works differently than written.
pub type AppliedObjects = (Vec<(ObjectKey, Applied)>, Vec<Problem>);

impl Engine {
    /// Checks documents and applies them, all or none. Objects in the control plane's namespace are refused to users.
    pub fn apply(
        &self,
        documents: &[Document],
        programs: Programs,
        skip: &[String],
        by_user: bool,
    ) -> Result<AppliedObjects, Problems> {
        let mut all_programs = self.programs.read().as_ref().clone();
        all_programs.extend(programs);
        let mut state = self.state.lock();
        let checked = check::check(&state.store, documents, &all_programs, skip)?;
        if by_user {
            refuse_control_plane(checked.objects.iter().map(Object::key))?;
        }
        let mut objects = checked.objects;
        let mut claimed = Vec::new();
        let mut problems = Problems::default();
        for object in &mut objects {
            if let Object::Service(service) = object
                && let Err(problem) = give_addresses(&mut state, service, &mut claimed)
            {
                problems.push(problem);
            }
        }
        if let Err(problems) = problems.into_result() {
            for address in claimed {
                give_back(&mut state.service_pools, address);
            }
            return Err(problems);
        }
        *self.programs.write() = std::sync::Arc::new(all_programs);
        let now = Timestamp::now();
        let mut done = Vec::new();
        for object in objects {
            let key = object.key();
            let applied = state.store.apply(object, now);
            if applied != Applied::Unchanged {
                state.stuck.remove(&key);
            }
            done.push((key, applied));
        }
        self.publish_store(&state);
        Ok((done, checked.warnings))
    }

    /// Removes objects, all or none; pods of a workload are replaced by it.
    pub fn delete(&self, keys: &[ObjectKey], ignore_missing: bool) -> Result<Vec<ObjectKey>, Problems> {
        refuse_control_plane(keys.iter().filter(|key| key.kind != Kind::Pod).cloned())?;
        let mut state = self.state.lock();
        let mut problems = Problems::default();
        let exists = |state: &State, key: &ObjectKey| {
            state.store.get(key).is_some()
                || (key.kind == Kind::Pod
                    && state.pods.contains_key(&(key.namespace.clone(), key.name.clone())))
        };
        for key in keys {
            if !exists(&state, key) && !ignore_missing {
                problems.push(Problem::new(
                    "RM1559",
                    "",
                    format!("there is no {key}"),
                    "`ringmail ps` lists the pods; `-n` chooses the namespace",
                ));
            }
            if key.kind == Kind::Namespace && key.name == "default" {
                problems.push(Problem::new("RM1557", "", "the namespace `default` cannot be deleted", ""));
            }
        }
        problems.into_result()?;
        let mut gone = Vec::new();
        for key in keys {
            if !exists(&state, key) {
                continue;
            }
            gone.push(key.clone());
            for object in state.store.remove(key) {
                if let Object::Service(service) = object.as_ref() {
                    for address in service.spec.iter().flat_map(|s| s.cluster_ips.iter().flatten()) {
                        if let Ok(address) = address.parse() {
                            give_back(&mut state.service_pools, address);
                        }
                    }
                }
            }
            if key.kind == Kind::Pod
                && let Some(entry) = state.pods.get_mut(&(key.namespace.clone(), key.name.clone()))
            {
                entry.deleted.get_or_insert(Timestamp::now());
            }
            self.event(Severity::Normal, key, "Deleted", "deleted".to_owned());
        }
        self.publish_store(&state);
        Ok(gone)
    }
}

/// The control plane is the mesh's own; what a manifest does to it could only break the mesh.
pub fn refuse_control_plane(keys: impl Iterator<Item = ObjectKey>) -> Result<(), Problems> {
    let own = |key: &ObjectKey| {
        key.namespace == NAMESPACE || (key.kind == Kind::Namespace && key.name == NAMESPACE)
    };
    let problems = keys.filter(own).map(|key| {
        Problem::new(
            "RM1557",
            "",
            format!("{key}: the namespace `{NAMESPACE}` belongs to the control plane"),
            "use another namespace",
        )
    });
    Problems(problems.collect()).into_result()
}

fn give_addresses(
    state: &mut State,
    service: &mut Service,
    claimed: &mut Vec<IpAddr>,
) -> Result<(), Problem> {
    let key = ObjectKey::new(
        Kind::Service,
        service.metadata.namespace.clone().unwrap_or_default(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    let known: Vec<String> = match state.store.get(&key).map(std::sync::Arc::as_ref) {
        Some(Object::Service(known)) => {
            known.spec.iter().flat_map(|s| s.cluster_ips.clone().unwrap_or_default()).collect()
        }
        _ => Vec::new(),
    };
    let Some(spec) = service.spec.as_mut() else { return Ok(()) };
    if spec.cluster_ip.as_deref() == Some("None") {
        spec.cluster_ips = Some(vec!["None".to_owned()]);
        let dual = spec.ip_family_policy.as_deref().is_some_and(|policy| policy != "SingleStack");
        let pools = state.service_pools.iter().take(if dual { usize::MAX } else { 1 });
        spec.ip_families.get_or_insert_with(|| pools.map(|pool| family(pool.is_ipv4())).collect());
        return Ok(());
    }
    let refused = |what: String| {
        Problem::new("RM1556", key.to_string(), what, "leave `clusterIP` out, and the mesh chooses one")
    };
    let mut wanted: Vec<String> = spec.cluster_ips.clone().unwrap_or_default();
    if let Some(first) = spec.cluster_ip.clone().filter(|ip| !ip.is_empty())
        && !wanted.contains(&first)
    {
        wanted.insert(0, first);
    }
    if wanted.is_empty() && !known.is_empty() && known[0] != "None" {
        // The store keeps what an object has.
        return Ok(());
    }
    let mut addresses = Vec::new();
    if wanted.is_empty() {
        let dual = spec.ip_family_policy.as_deref().is_some_and(|policy| policy != "SingleStack");
        let families = spec.ip_families.clone().unwrap_or_default();
        let fits = |pool: &Pool, family: &str| (family == "IPv4") == pool.is_ipv4();
        let mut order: Vec<usize> = families
            .iter()
            .filter_map(|family| state.service_pools.iter().position(|pool| fits(pool, family)))
            .collect();
        if order.len() < families.len() {
            return Err(refused(format!("ipFamilies {} are not all in this mesh", families.join(", "))));
        }
        if order.is_empty() || dual {
            for index in 0..if dual { state.service_pools.len() } else { 1 } {
                if !order.contains(&index) {
                    order.push(index);
                }
            }
        }
        for index in order {
            let address = state.service_pools[index]
                .take()
                .ok_or_else(|| refused("the services' network has no free address".to_owned()))?;
            claimed.push(address);
            addresses.push(address);
        }
    }
    for text in wanted {
        let address: IpAddr =
            text.parse().map_err(|_| refused(format!("clusterIP `{text}` is not an address")))?;
        let Some(pool) = state.service_pools.iter_mut().find(|pool| pool.holds(address)) else {
            return Err(refused(format!("clusterIP {address} is not in the services' network")));
        };
        if !known.contains(&text) && !pool.claim(address) {
            return Err(refused(format!("clusterIP {address} belongs to another service")));
        }
        claimed.push(address);
        addresses.push(address);
    }
    spec.cluster_ip = addresses.first().map(ToString::to_string);
    spec.cluster_ips = Some(addresses.iter().map(ToString::to_string).collect());
    spec.ip_families = Some(addresses.iter().map(|ip| family(ip.is_ipv4())).collect());
    spec.ip_family_policy.get_or_insert_with(|| {
        if addresses.len() > 1 { "PreferDualStack" } else { "SingleStack" }.to_owned()
    });
    Ok(())
}

fn family(ipv4: bool) -> String {
    if ipv4 { "IPv4" } else { "IPv6" }.to_owned()
}

fn give_back(pools: &mut [Pool], address: IpAddr) {
    for pool in pools.iter_mut().filter(|pool| pool.holds(address)) {
        pool.give_back(address);
    }
}
