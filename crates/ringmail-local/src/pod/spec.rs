//! From a container of a pod's spec to what the sandbox is told.

use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::env::{self, ConfigError};
use crate::programs::Programs;
use crate::sandbox::{ContainerSpec, EtcFiles, Mount, Profile};
use crate::volumes::{fs_group, user_of};

/// Annotation of a pod: directories, separated by commas, that its containers find empty and writable although they belong to the
/// machine's root, such as `/var/log/nginx`.
pub(super) const WRITABLE: &str = "local.ringmail.dev/writable";

/// What is the same for all containers of a pod.
#[derive(Clone, Debug)]
pub(super) struct PodFacts {
    pub(super) hostname: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) dns: Vec<IpAddr>,
    pub(super) domain: String,
}

/// The sandbox's specification of a container.
pub(super) fn container_spec(
    pod: &Pod,
    container: &Container,
    profile: Profile,
    programs: &Programs,
    variables: &[(String, String)],
    mounts: Vec<Mount>,
    facts: &PodFacts,
) -> Result<ContainerSpec, ConfigError> {
    let command = programs.command(container).ok_or_else(|| {
        ConfigError(format!(
            "no program stands for image `{}`",
            container.image.as_deref().unwrap_or_default()
        ))
    })?;
    let argv: Vec<String> = command.iter().map(|word| env::expand(word, variables)).collect();
    let context = container.security_context.as_ref();
    let pod_context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    // The mesh's own containers run as their profile says, whatever the pod's author wants for the others.
    let trusted = profile.is_trusted();
    let uid = user_of(pod, container).filter(|_| !trusted);
    let non_root = context
        .and_then(|c| c.run_as_non_root)
        .or_else(|| pod_context.and_then(|c| c.run_as_non_root))
        .unwrap_or(false);
    if non_root && uid.unwrap_or(0) == 0 && !trusted {
        return Err(ConfigError(format!(
            "container has runAsNonRoot and would run as root: give container `{}` a `runAsUser`",
            container.name
        )));
    }
    let gid = context.and_then(|c| c.run_as_group).or_else(|| pod_context.and_then(|c| c.run_as_group));
    let gid = gid.and_then(|g| u32::try_from(g).ok()).filter(|_| !trusted);
    let capabilities = context.and_then(|c| c.capabilities.as_ref()).filter(|_| !trusted);
    let groups = pod_context.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    let groups = groups.into_iter().filter_map(|g| u32::try_from(g).ok()).chain(fs_group(pod));
    let groups = groups.filter(|_| !trusted).collect();
    let annotations = pod.metadata.annotations.as_ref();
    let writable = annotations.and_then(|a| a.get(WRITABLE)).map(String::as_str).unwrap_or_default();
    Ok(ContainerSpec {
        argv,
        env: variables.to_vec(),
        cwd: container
            .working_dir
            .as_deref()
            .filter(|d| !d.is_empty())
            .map_or_else(|| PathBuf::from("/"), PathBuf::from),
        hostname: facts.hostname.clone(),
        uid,
        gid,
        groups,
        profile,
        add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
        drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
        no_new_privileges: context.and_then(|c| c.allow_privilege_escalation) == Some(false),
        read_only_root: context.and_then(|c| c.read_only_root_filesystem) == Some(true),
        mounts,
        etc: etc(pod, facts),
        writable: writable
            .split(',')
            .map(str::trim)
            .filter(|d| d.starts_with('/'))
            .map(PathBuf::from)
            .collect(),
        scratch_bytes: None,
    })
}

/// The variables that every container has, under those of its spec.
pub(super) fn base_environment(
    hostname: &str,
    path: &str,
    variables: Vec<(String, String)>,
) -> Vec<(String, String)> {
    let base = [("PATH", path), ("HOSTNAME", hostname), ("HOME", "/root")];
    let missing = base.into_iter().filter(|(name, _)| !variables.iter().any(|(known, _)| known == name));
    let missing: Vec<_> = missing.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    missing.into_iter().chain(variables).collect()
}

fn etc(pod: &Pod, facts: &PodFacts) -> EtcFiles {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let domain = &facts.domain;
    let servers: Vec<String> = facts.dns.iter().map(|ip| format!("nameserver {ip}\n")).collect();
    let servers = servers.concat();
    let resolv_conf =
        format!("{servers}search {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5\n");
    let mut hosts =
        vec!["127.0.0.1\tlocalhost".to_owned(), "::1\tlocalhost ip6-localhost ip6-loopback".to_owned()];
    let full = spec
        .and_then(|s| s.subdomain.as_ref())
        .map(|subdomain| format!("{}.{subdomain}.{namespace}.svc.{domain}\t", facts.hostname))
        .unwrap_or_default();
    for address in &facts.addresses {
        hosts.push(format!("{address}\t{full}{}", facts.hostname));
    }
    for alias in spec.iter().flat_map(|s| s.host_aliases.iter().flatten()) {
        hosts.push(format!("{}\t{}", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t")));
    }
    EtcFiles { resolv_conf, hosts: hosts.join("\n") + "\n", nsswitch_conf: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> PodFacts {
        PodFacts {
            hostname: "db-0".into(),
            addresses: vec!["10.142.0.5".parse().unwrap()],
            dns: vec!["10.143.0.10".parse().unwrap()],
            domain: "cluster.local".into(),
        }
    }

    fn spec(pod: &str) -> Result<ContainerSpec, ConfigError> {
        let pod: Pod = serde_saphyr::from_str(pod).unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let variables = vec![("PORT".to_owned(), "80".to_owned())];
        container_spec(
            &pod,
            &container,
            Profile::Application,
            &Programs::default(),
            &variables,
            Vec::new(),
            &facts(),
        )
    }

    #[test]
    fn the_spec_becomes_a_sandbox() {
        let spec = spec(
            "{metadata: {namespace: a, annotations: {local.ringmail.dev/writable: '/var/log/x, /y'}}, spec: {subdomain: db, \
             securityContext: {runAsUser: 5, fsGroup: 7, supplementalGroups: [8]}, containers: [{name: c, command: \
             [sh, '-p=$(PORT)', '$$(PORT)'], securityContext: {runAsGroup: 6, capabilities: {drop: [ALL]}}}]}}",
        )
        .unwrap();
        assert_eq!(spec.argv, ["sh", "-p=80", "$(PORT)"]);
        assert_eq!((spec.uid, spec.gid, spec.groups), (Some(5), Some(6), vec![8, 7]));
        assert_eq!(spec.drop_capabilities, ["ALL"]);
        assert_eq!(spec.writable, [PathBuf::from("/var/log/x"), PathBuf::from("/y")]);
        assert_eq!(
            spec.etc.resolv_conf,
            "nameserver 10.143.0.10\nsearch a.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        );
        assert!(spec.etc.hosts.contains("10.142.0.5\tdb-0.db.a.svc.cluster.local\tdb-0\n"));
    }

    #[test]
    fn the_meshs_own_containers_do_not_take_the_pods_user() {
        let text = "{spec: {securityContext: {runAsUser: 5, runAsGroup: 6, fsGroup: 7}, containers: [{name: c, command: \
                    [/bin/sh], securityContext: {capabilities: {add: [NET_ADMIN]}}}]}}";
        let pod: Pod = serde_saphyr::from_str(text).unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let made = |profile| {
            container_spec(&pod, container, profile, &Programs::default(), &[], Vec::new(), &facts()).unwrap()
        };
        let own = made(Profile::Proxy);
        assert_eq!((own.uid, own.gid, own.groups.len(), own.add_capabilities.len()), (None, None, 0, 0));
        let application = made(Profile::Application);
        assert_eq!((application.uid, application.gid, application.groups), (Some(5), Some(6), vec![7]));
    }

    #[test]
    fn run_as_non_root_demands_a_user() {
        let error =
            spec("{spec: {securityContext: {runAsNonRoot: true}, containers: [{name: c, command: [sh]}]}}");
        assert!(error.unwrap_err().0.contains("runAsNonRoot"));
        let with_user = "{spec: {securityContext: {runAsNonRoot: true, runAsUser: 9}, containers: [{name: c, command: [sh]}]}}";
        assert!(spec(with_user).is_ok());
    }

    #[test]
    fn the_containers_own_variables_win_over_the_base() {
        let variables =
            base_environment("h", "/bin", vec![("PATH".into(), "/x".into()), ("A".into(), "b".into())]);
        assert_eq!(variables.iter().find(|(n, _)| n == "PATH").unwrap().1, "/x");
        assert_eq!(variables.iter().filter(|(n, _)| n == "PATH").count(), 1);
        assert_eq!(variables.len(), 4);
    }
}
