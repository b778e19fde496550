//! From what there is to what is wanted, one round after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Engine, JobState, PodEntry, State, Stuck, build};
use crate::controllers::job::Progress;
use crate::controllers::{Plan, PodView, Step, daemon_set, deployment, job, stateful_set};
use crate::manifest::{Kind, Object, ObjectKey};
use crate::pod::{PodHandle, PodPlan};
use crate::protocol::Severity;
use crate::sandbox::Profile;
use crate::tokens::Bearer;

impl Engine {
    /// One round whenever something changed, or a time has come.
    pub(super) async fn keep_reconciling(self: Arc<Self>) {
        loop {
            let again = self.reconcile().await;
            self.rounds.send_modify(|round| *round += 1);
            let wait = again.unwrap_or(Duration::from_hours(1));
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait.max(Duration::from_millis(5))) => {}
            }
            // Changes come in crowds; a moment later they are one round.
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    async fn reconcile(self: &Arc<Self>) -> Option<Duration> {
        let (ending, again, view) = {
            let mut state = self.state.lock();
            let again = if *self.closing.borrow() { None } else { self.steps(&mut state) };
            self.forget_gone(&mut state);
            let ending: Vec<PodHandle> = state
                .pods
                .values()
                .filter(|entry| entry.deleted.is_some())
                .map(|entry| entry.handle.clone())
                .collect();
            (ending, again, self.network_view(&state))
        };
        let applied = self.apply_network(view).await;
        // Only now: nobody is sent to a pod any more that begins to end.
        for handle in ending {
            handle.stop(None);
        }
        if applied { again } else { Some(again.map_or(RETRY, |again| again.min(RETRY))) }
    }

    /// Asks every controller, and does what it says.
    fn steps(self: &Arc<Self>, state: &mut State) -> Option<Duration> {
        let mut again: Option<Duration> = None;
        let mut soonest = |after: Duration| again = Some(again.map_or(after, |known| known.min(after)));
        let workloads: Vec<(ObjectKey, Arc<Object>)> = state
            .store
            .iter()
            .filter(|(_, object)| object.template().is_some())
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();

        // Pods of workloads that are gone, or were replaced by another of the same name.
        let now = Timestamp::now();
        for entry in state.pods.values_mut().filter(|e| e.deleted.is_none()) {
            let wanted =
                workloads.iter().any(|(key, object)| entry.belongs_to(key) && entry.has_owner(object));
            if !wanted {
                entry.deleted = Some(now);
            }
        }

        for (key, object) in &workloads {
            let Some(template) = object.template() else { continue };
            let revision = build::revision(&template);
            let views: Vec<PodView> =
                state.pods.values().filter(|e| e.belongs_to(key)).map(PodEntry::view).collect();
            let plan = self.plan(state, key, object, &revision, &views);
            if let Some(after) = plan.again_after {
                soonest(after);
            }
            for step in plan.steps {
                match step {
                    Step::Delete { name } => {
                        if let Some(entry) = state.pods.get_mut(&(key.namespace.clone(), name)) {
                            entry.deleted.get_or_insert(now);
                        }
                    }
                    Step::Create { ordinal } => {
                        if let Some(stuck) = state.stuck.get(key)
                            && let Some(left) = stuck.until.checked_duration_since(Instant::now())
                        {
                            soonest(left);
                            break;
                        }
                        match self.create(state, key, object, &revision, ordinal) {
                            Ok(()) => {
                                state.stuck.remove(key);
                            }
                            Err(message) => {
                                self.event(Severity::Warning, key, "FailedCreate", message.clone());
                                state
                                    .stuck
                                    .insert(key.clone(), Stuck { message, until: Instant::now() + RETRY });
                                soonest(RETRY);
                                break;
                            }
                        }
                    }
                }
            }
        }
        let known: Vec<ObjectKey> = workloads.into_iter().map(|(key, _)| key).collect();
        state.stuck.retain(|key, _| known.contains(key));
        state.jobs.retain(|key, _| known.contains(key));
        again
    }

    fn plan(
        &self,
        state: &mut State,
        key: &ObjectKey,
        object: &Object,
        revision: &str,
        views: &[PodView],
    ) -> Plan {
        match object {
            Object::Deployment(o) => {
                o.spec.as_ref().map(|s| deployment::plan(s, revision, views)).unwrap_or_default()
            }
            Object::StatefulSet(o) => {
                o.spec.as_ref().map(|s| stateful_set::plan(s, revision, views)).unwrap_or_default()
            }
            Object::DaemonSet(o) => {
                o.spec.as_ref().map(|s| daemon_set::plan(s, revision, views)).unwrap_or_default()
            }
            Object::Job(o) => self.job(state, key, o, views),
            Object::Pod(_) => bare_pod(revision, views),
            _ => Plan::default(),
        }
    }

    fn job(
        &self,
        state: &mut State,
        key: &ObjectKey,
        object: &k8s_openapi::api::batch::v1::Job,
        views: &[PodView],
    ) -> Plan {
        let Some(spec) = &object.spec else { return Plan::default() };
        let uid = object.metadata.uid.clone();
        if state.jobs.get(key).is_some_and(|known| known.uid != uid) {
            state.jobs.remove(key);
        }
        let known = state.jobs.entry(key.clone()).or_insert_with(|| JobState {
            began: Instant::now(),
            uid,
            progress: Progress::Active,
            finished: None,
        });
        let mut plan = if known.progress == Progress::Active {
            let (plan, progress) = job::plan(spec, known.began.elapsed(), views);
            if progress != known.progress {
                known.finished = Some(Instant::now());
                match &progress {
                    Progress::Complete => {
                        self.event(Severity::Normal, key, "Completed", "job completed".to_owned());
                    }
                    Progress::Failed { reason, message } => {
                        self.event(Severity::Warning, key, reason, message.clone());
                    }
                    Progress::Active => {}
                }
                known.progress = progress;
            }
            plan
        } else {
            Plan::default()
        };
        if let (Some(finished), Some(ttl)) = (known.finished, spec.ttl_seconds_after_finished) {
            let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
            let left = ttl.saturating_sub(finished.elapsed());
            plan.again_after = Some(plan.again_after.map_or(left, |again| again.min(left)));
            if left.is_zero() {
                state.store.remove(key);
                self.publish_store(state);
            }
        }
        plan
    }

    fn create(
        self: &Arc<Self>,
        state: &mut State,
        key: &ObjectKey,
        object: &Object,
        revision: &str,
        ordinal: Option<u32>,
    ) -> Result<(), String> {
        let template = object.template().ok_or("it has no template")?;
        let now = Timestamp::now();
        let wanted = build::pod(object, &template, revision, ordinal, now);
        let namespace = state.store.namespace(&key.namespace).ok_or("its namespace is gone")?;
        let owner = (key.kind != Kind::Pod).then_some((key.kind.as_str(), key.name.as_str()));
        let meshed = self.meshing.apply(&wanted, namespace, owner).map_err(|error| error.to_string())?;
        for warning in meshed.warnings {
            self.event(Severity::Warning, key, "Injection", warning);
        }
        let mut pod = meshed.pod;
        let name = pod.metadata.name.clone().unwrap_or_default();
        let place = (key.namespace.clone(), name.clone());
        if state.pods.contains_key(&place) {
            return Err(format!("pod {name} still exists"));
        }
        let account = crate::env::account(&pod);
        let account_uid = state
            .store
            .service_account(&key.namespace, &account)
            .and_then(|a| a.metadata.uid.clone())
            .ok_or_else(|| {
                format!("there is no ServiceAccount `{account}` in namespace `{}`", key.namespace)
            })?;
        let mut addresses = Vec::new();
        for pool in &mut state.pod_pools {
            addresses.push(pool.take().ok_or("the pods' network has no free address")?);
        }
        pod.metadata.resource_version = Some(state.store.next_version().to_string());
        let proxy_uid =
            Some(ringmail_redirect::PROXY_UID).filter(|uid| self.context.volumes.ids.has_uid(*uid));
        let own = |profile| if profile == Profile::Proxy { proxy_uid.unwrap_or(0) } else { 0 };
        let users = meshed.trusted.iter().map(|(name, profile)| (name.clone(), own(*profile))).collect();
        let plan = PodPlan {
            bearer: Bearer {
                namespace: key.namespace.clone(),
                pod: name,
                pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
                account,
                account_uid,
            },
            claims: build::claims(object, &pod, &self.context.volumes.state),
            addresses: addresses.clone(),
            trusted: meshed.trusted,
            pod: pod.clone(),
            users,
        };
        state.sequence += 1;
        let handle = PodHandle::start(self.context.clone(), self.clone(), plan);
        state.pods.insert(
            place,
            PodEntry {
                owner: (key.kind != Kind::Pod).then(|| key.clone()),
                revision: revision.to_owned(),
                ordinal,
                sequence: state.sequence,
                pod,
                addresses,
                deleted: None,
                handle,
            },
        );
        Ok(())
    }

    /// Pods that were removed and of which nothing is left.
    fn forget_gone(&self, state: &mut State) {
        let gone: Vec<_> = state
            .pods
            .iter()
            .filter(|(_, entry)| entry.deleted.is_some() && entry.handle.is_gone())
            .map(|(place, _)| place.clone())
            .collect();
        let some = !gone.is_empty();
        for place in gone {
            let Some(entry) = state.pods.remove(&place) else { continue };
            for address in entry.addresses {
                for pool in state.pod_pools.iter_mut().filter(|pool| pool.holds(address)) {
                    pool.give_back(address);
                }
            }
        }
        if some {
            // Its name may be used again now.
            self.wake.notify_one();
        }
    }
}

impl PodEntry {
    /// Whether its owner is still the very same object.
    fn has_owner(&self, object: &Object) -> bool {
        let references = self.pod.metadata.owner_references.as_ref();
        match references.and_then(|r| r.first()) {
            Some(reference) => Some(&reference.uid) == object.metadata().uid.as_ref(),
            None => true,
        }
    }
}

/// A pod without a controller: made once; a changed one replaces it.
fn bare_pod(revision: &str, views: &[PodView]) -> Plan {
    let mut plan = Plan::default();
    match views.first() {
        None => plan.steps.push(Step::Create { ordinal: None }),
        Some(pod) if pod.revision != revision && !pod.terminating => {
            plan.steps.push(Step::Delete { name: pod.name.clone() });
        }
        Some(_) => {}
    }
    plan
}

/// Pause before something is tried again that failed.
const RETRY: Duration = Duration::from_secs(2);
