//! Who a program is and what it may do, from its specification to the last system call before it runs.

use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use super::ids::Ids;
use super::spec::{ContainerSpec, Profile};

/// What an application may do in its own user namespace: Docker's usual set.
pub const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The uid and gid of the proxy where they exist.
const PROXY_ID: u32 = 2102;

/// What a program is given, decided by the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Privileges {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None`: the kernel refuses to set any.
    groups: Option<Vec<u32>>,
    /// Names of the capabilities that bound it.
    bounding: Vec<String>,
    /// Kept across exec, whatever the uid.
    trusted: bool,
    /// Set-uid files give nothing.
    no_new: bool,
}

impl Privileges {
    /// Decides, with notes about what could not be had.
    pub(crate) fn of(spec: &ContainerSpec, ids: &Ids) -> Result<(Self, Vec<String>), SandboxError> {
        let mut notes = Vec::new();
        let own = |exists: bool| if exists && spec.profile == Profile::Proxy { PROXY_ID } else { 0 };
        let uid = spec.uid.unwrap_or_else(|| own(ids.has_uid(PROXY_ID)));
        let gid = spec.gid.unwrap_or_else(|| own(ids.has_gid(PROXY_ID)));
        let trusted = spec.profile.is_trusted();
        // A single id takes any name in a nested namespace, and there is none around trusted programs.
        let alias = |count: u32| !trusted && count == 1;
        if !alias(ids.uid_count()) && !ids.has_uid(uid) {
            return Err(SandboxError::NoSuchId { kind: "uid".to_owned(), id: uid, count: ids.uid_count() });
        }
        if !alias(ids.gid_count()) && !ids.has_gid(gid) {
            return Err(SandboxError::NoSuchId { kind: "gid".to_owned(), id: gid, count: ids.gid_count() });
        }
        let groups = if ids.groups {
            if let Some(&id) = spec.groups.iter().find(|&&group| !ids.has_gid(group)) {
                return Err(SandboxError::NoSuchId { kind: "gid".to_owned(), id, count: ids.gid_count() });
            }
            Some(spec.groups.clone())
        } else {
            if !spec.groups.is_empty() {
                notes.push(format!(
                    "supplementary groups {:?} do not exist, because this mesh has one id for all",
                    spec.groups
                ));
            }
            None
        };
        let bounding = bounding(spec)?;
        let no_new = spec.no_new_privileges || trusted;
        Ok((Self { uid, gid, groups, bounding, trusted, no_new }, notes))
    }

    /// Whom files made for the container belong to, as the mesh's user namespace numbers it.
    pub(crate) fn owner(&self, ids: &Ids) -> (u32, u32) {
        let outside = |count: u32, id: u32| if count == 1 { 0 } else { id };
        (outside(ids.uid_count(), self.uid), outside(ids.gid_count(), self.gid))
    }

    /// Makes the calling process, of one thread and with all rights in its user namespace, what its program is to be.
    pub(crate) fn take(&self) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display, what: &str| format!("{what}: {error}");
        let bounding = self
            .bounding
            .iter()
            .map(|name| Capability::from_str(name))
            .collect::<Result<CapsHashSet, _>>()
            .map_err(|error| text(&error, "capabilities"))?;
        for capability in caps::runtime::thread_all_supported() {
            if !bounding.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)
                    .map_err(|error| text(&error, "dropping a capability"))?;
            }
        }
        if self.trusted {
            setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| text(&error, "core limit"))?;
            prctl::set_keepcaps(true).map_err(|error| text(&error, "keeping capabilities"))?;
        }
        if let Some(groups) = &self.groups {
            let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
            setgroups(&groups).map_err(|error| text(&error, "supplementary groups"))?;
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setresgid(gid, gid, gid).map_err(|error| text(&error, &format!("gid {gid}")))?;
        setresuid(uid, uid, uid).map_err(|error| text(&error, &format!("uid {uid}")))?;
        // Ambient ones survive exec without being root; an application's root gets its own from the bounding set.
        let kept = if self.trusted { bounding } else { CapsHashSet::new() };
        let mut sets = vec![CapSet::Inheritable, CapSet::Ambient];
        if self.trusted {
            sets = vec![CapSet::Effective, CapSet::Inheritable, CapSet::Permitted, CapSet::Ambient];
        }
        for set in sets {
            caps::set(None, set, &kept).map_err(|error| text(&error, "keeping capabilities"))?;
        }
        if self.no_new {
            prctl::set_no_new_privs().map_err(|error| text(&error, "no new privileges"))?;
        }
        Ok(())
    }
}

/// The capabilities of a profile, with what the specification drops and adds.
fn bounding(spec: &ContainerSpec) -> Result<Vec<String>, SandboxError> {
    let names: &[&str] = match spec.profile {
        Profile::Proxy => &["NET_RAW"],
        Profile::Init => &["NET_ADMIN", "NET_RAW"],
        Profile::Application => DEFAULT_CAPABILITIES,
    };
    let mut set: CapsHashSet = names.iter().filter_map(|name| parse(name)).collect();
    if spec.profile.is_trusted() {
        return Ok(set.iter().map(ToString::to_string).collect());
    }
    for (field, list, add) in [
        ("drop_capabilities", &spec.drop_capabilities, false),
        ("add_capabilities", &spec.add_capabilities, true),
    ] {
        for name in list {
            let chosen = if name.eq_ignore_ascii_case("all") {
                caps::all()
            } else {
                let capability = parse(name).ok_or_else(|| SandboxError::Spec {
                    field: field.to_owned(),
                    reason: format!("`{name}` is not a capability"),
                })?;
                CapsHashSet::from([capability])
            };
            if add {
                set.extend(chosen);
            } else {
                set.retain(|capability| !chosen.contains(capability));
            }
        }
    }
    let mut names: Vec<String> = set.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(names)
}

/// Kubernetes writes `NET_ADMIN`, the kernel `CAP_NET_ADMIN`.
fn parse(name: &str) -> Option<Capability> {
    Capability::from_str(&caps::to_canonical(name)).ok()
}

/// Keeps all rights across the next exec, whatever the uid.
pub(crate) fn keep_all() -> Result<(), caps::errors::CapsError> {
    let all = caps::read(None, CapSet::Permitted)?;
    caps::set(None, CapSet::Inheritable, &all)?;
    caps::set(None, CapSet::Ambient, &all)
}

/// The init of a container needs to signal programs of other users, and nothing else.
pub(crate) fn keep_only_kill() -> Result<(), caps::errors::CapsError> {
    let kill = CapsHashSet::from([Capability::CAP_KILL]);
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kill)?;
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: u32) -> Ids {
        Ids { uids: vec![(0, count)], gids: vec![(0, count)], groups: count > 1 }
    }

    #[test]
    fn a_single_id_takes_any_name_in_an_application_and_loses_groups_with_a_note() {
        let mut spec = ContainerSpec::new(["true"]);
        spec.uid = Some(999);
        spec.groups = vec![4];
        let (privileges, notes) = Privileges::of(&spec, &ids(1)).unwrap();
        assert_eq!((privileges.uid, privileges.owner(&ids(1))), (999, (0, 0)));
        assert_eq!(notes.len(), 1);
        let (privileges, notes) = Privileges::of(&spec, &ids(65_536)).unwrap();
        assert_eq!((privileges.owner(&ids(65_536)), notes.len()), ((999, 0), 0));
    }

    #[test]
    fn a_uid_outside_of_the_range_is_refused() {
        let mut spec = ContainerSpec::new(["true"]);
        spec.uid = Some(70_000);
        let error = Privileges::of(&spec, &ids(65_537)).unwrap_err();
        assert_eq!(error.to_string(), "uid 70000 does not exist in this mesh, which has 65537 of them");
    }

    #[test]
    fn the_proxy_has_its_uid_where_it_exists_and_one_capability() {
        let mut spec = ContainerSpec::new(["/bin/true"]);
        spec.profile = Profile::Proxy;
        spec.add_capabilities = vec!["SYS_ADMIN".to_owned()];
        let (privileges, _) = Privileges::of(&spec, &ids(65_536)).unwrap();
        assert_eq!((privileges.uid, privileges.bounding), (2102, vec!["CAP_NET_RAW".to_owned()]));
        assert_eq!(Privileges::of(&spec, &ids(1)).unwrap().0.uid, 0);
    }

    #[test]
    fn capabilities_are_dropped_and_then_added_and_unknown_ones_refused() {
        let mut spec = ContainerSpec::new(["true"]);
        spec.drop_capabilities = vec!["ALL".to_owned()];
        spec.add_capabilities = vec!["NET_BIND_SERVICE".to_owned(), "cap_chown".to_owned()];
        assert_eq!(bounding(&spec).unwrap(), ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
        spec.add_capabilities = vec!["FLY".to_owned()];
        assert_eq!(bounding(&spec).unwrap_err().to_string(), "add_capabilities: `FLY` is not a capability");
    }
}
