//! The command line and the environment: every option, its default and its check.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use ringmail_identity::{NameError, TrustDomain};
use ringmail_registry::MeshSettings;

use crate::roles::policy::DefaultPolicy;

/// The control plane of Ringmail: certifies workloads, tells proxies where connections go and who may call.
#[derive(Clone, Debug, Parser)]
#[command(name = "ringmail-controller", version)]
pub struct Arguments {
    /// What this process does: any of identity, destination, policy, viz
    #[arg(long, env = "RINGMAIL_ROLES", value_delimiter = ',', required = true, value_parser = role)]
    pub roles: Vec<Role>,
    /// Directory of Kubernetes objects as JSON, one a file
    #[arg(long, env = "RINGMAIL_REGISTRY_DIR", value_name = "DIR")]
    pub registry_dir: PathBuf,
    /// The domain of all identities
    #[arg(long, env = "RINGMAIL_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// The domain of services' DNS names; the trust domain where it is not given
    #[arg(long, env = "RINGMAIL_CLUSTER_DOMAIN")]
    pub cluster_domain: Option<String>,
    /// The namespace part of identities
    #[arg(long, env = "RINGMAIL_IDENTITY_NAMESPACE", default_value = "ringmail")]
    pub identity_namespace: String,
    /// Pods labelled with this namespace are meshed
    #[arg(long, env = "RINGMAIL_CONTROL_PLANE_NAMESPACE", default_value = "ringmail")]
    pub control_plane_namespace: String,
    /// Addresses of pods, services and nodes
    #[arg(
        long,
        env = "RINGMAIL_CLUSTER_NETWORKS",
        value_name = "CIDRS",
        value_delimiter = ',',
        default_value = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8"
    )]
    pub cluster_networks: Vec<IpNet>,
    /// Where the kubelet's probes come from: allowed to probe paths without authentication
    #[arg(
        long,
        env = "RINGMAIL_PROBE_NETWORKS",
        value_name = "CIDRS",
        value_delimiter = ',',
        default_value = "0.0.0.0/0,::/0"
    )]
    pub probe_networks: Vec<IpNet>,
    /// Where the role identity listens
    #[arg(long, env = "RINGMAIL_IDENTITY_ADDR", default_value = "0.0.0.0:8080")]
    pub identity_addr: SocketAddr,
    /// Directory with the issuer's `tls.crt` (issuer first) and `tls.key`; needed by the role identity
    #[arg(long, env = "RINGMAIL_ISSUER_DIR", value_name = "DIR")]
    pub issuer_dir: Option<PathBuf>,
    /// The roots of trust in PEM; needed by the role identity
    #[arg(long, env = "RINGMAIL_TRUST_ANCHORS", value_name = "FILE")]
    pub trust_anchors: Option<PathBuf>,
    /// The keys of service-account tokens as a JSON Web Key Set; needed by the role identity
    #[arg(long, env = "RINGMAIL_TOKEN_JWKS", value_name = "FILE")]
    pub token_jwks: Option<PathBuf>,
    /// Audiences of which a token must name one
    #[arg(
        long,
        env = "RINGMAIL_TOKEN_AUDIENCE",
        value_delimiter = ',',
        default_value = "identity.ringmail.dev"
    )]
    pub token_audience: Vec<String>,
    /// How long a workload's certificate is valid, such as 24h
    #[arg(long, env = "RINGMAIL_ISSUANCE_LIFETIME", default_value = "24h", value_parser = duration)]
    pub issuance_lifetime: Duration,
    /// Where the role destination listens
    #[arg(long, env = "RINGMAIL_DESTINATION_ADDR", default_value = "0.0.0.0:8086")]
    pub destination_addr: SocketAddr,
    /// Where the role policy listens
    #[arg(long, env = "RINGMAIL_POLICY_ADDR", default_value = "0.0.0.0:8090")]
    pub policy_addr: SocketAddr,
    /// Who may call a pod that does not say
    #[arg(
        long,
        env = "RINGMAIL_DEFAULT_INBOUND_POLICY",
        default_value = "all-unauthenticated",
        value_name = "POLICY"
    )]
    pub default_inbound_policy: DefaultPolicy,
    /// Where the role viz listens; everyone who reaches it may ask
    #[arg(long, env = "RINGMAIL_VIZ_ADDR", default_value = "127.0.0.1:8085")]
    pub viz_addr: SocketAddr,
    /// Where `/live`, `/ready` and `/metrics` are served
    #[arg(long, env = "RINGMAIL_ADMIN_ADDR", default_value = "0.0.0.0:9990")]
    pub admin_addr: SocketAddr,
    /// What is logged, such as `info` or `ringmail_controller=debug`
    #[arg(long, env = "RINGMAIL_LOG", default_value = "info")]
    pub log: String,
    /// How logs are written
    #[arg(long, env = "RINGMAIL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Plain)]
    pub log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// A part of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Certifies workloads.
    Identity,
    /// Tells proxies where a connection goes and which identity must answer.
    Destination,
    /// Tells proxies who may call.
    Policy,
    /// Answers what is secured.
    Viz,
}

/// What a process is to do, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its roles, at least one.
    pub roles: BTreeSet<Role>,
    /// The directory that feeds the registry.
    pub registry_dir: PathBuf,
    /// Which mesh it is.
    pub mesh: MeshSettings,
    /// The domain of services' DNS names.
    pub cluster_domain: String,
    /// Addresses of pods, services and nodes.
    pub cluster_networks: Vec<IpNet>,
    /// Where probes come from.
    pub probe_networks: Vec<IpNet>,
    /// What the role identity needs; `None` without that role.
    pub identity: Option<IdentitySettings>,
    /// Where the role destination listens.
    pub destination_addr: SocketAddr,
    /// Where the role policy listens.
    pub policy_addr: SocketAddr,
    /// Who may call a pod that does not say.
    pub default_inbound_policy: DefaultPolicy,
    /// Where the role viz listens.
    pub viz_addr: SocketAddr,
    /// Where the admin server listens.
    pub admin_addr: SocketAddr,
}

/// What the role identity needs.
#[derive(Clone, Debug)]
pub struct IdentitySettings {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The directory with the issuer's `tls.crt` and `tls.key`.
    pub issuer_dir: PathBuf,
    /// The roots of trust in PEM.
    pub trust_anchors: PathBuf,
    /// The keys of tokens.
    pub token_jwks: PathBuf,
    /// Audiences of which a token must name one.
    pub audiences: Vec<String>,
    /// How long leaves are valid.
    pub lifetime: Duration,
}

/// Options that do not fit together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A role lacks what it needs.
    #[error("the role `identity` needs `{0}`")]
    Missing(&'static str),
    /// An empty list of networks would shut everybody out.
    #[error("`{0}` names no network")]
    NoNetwork(&'static str),
    /// A domain or namespace is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The log filter is none.
    #[error("`--log {filter}` is no filter: {problem}")]
    Log {
        /// What was given.
        filter: String,
        /// What is wrong.
        problem: String,
    },
}

impl Arguments {
    /// The options, checked against each other.
    pub fn settings(self) -> Result<Settings, SettingsError> {
        let roles: BTreeSet<_> = self.roles.iter().copied().collect();
        let mesh = MeshSettings {
            trust_domain: TrustDomain::new(&self.trust_domain, &self.identity_namespace)?,
            control_plane_namespace: self.control_plane_namespace,
        };
        let cluster_domain = self.cluster_domain.unwrap_or(self.trust_domain);
        // A domain of names obeys the rules of a trust domain.
        TrustDomain::new(&cluster_domain, &self.identity_namespace)?;
        for (option, networks) in
            [("--cluster-networks", &self.cluster_networks), ("--probe-networks", &self.probe_networks)]
        {
            if networks.is_empty() {
                return Err(SettingsError::NoNetwork(option));
            }
        }
        let identity = if roles.contains(&Role::Identity) {
            Some(IdentitySettings {
                addr: self.identity_addr,
                issuer_dir: self.issuer_dir.ok_or(SettingsError::Missing("--issuer-dir"))?,
                trust_anchors: self.trust_anchors.ok_or(SettingsError::Missing("--trust-anchors"))?,
                token_jwks: self.token_jwks.ok_or(SettingsError::Missing("--token-jwks"))?,
                audiences: self.token_audience,
                lifetime: self.issuance_lifetime,
            })
        } else {
            None
        };
        Ok(Settings {
            roles,
            registry_dir: self.registry_dir,
            mesh,
            cluster_domain,
            cluster_networks: self.cluster_networks,
            probe_networks: self.probe_networks,
            identity,
            destination_addr: self.destination_addr,
            policy_addr: self.policy_addr,
            default_inbound_policy: self.default_inbound_policy,
            viz_addr: self.viz_addr,
            admin_addr: self.admin_addr,
        })
    }

    /// What is logged.
    pub fn log_filter(&self) -> Result<tracing_subscriber::EnvFilter, SettingsError> {
        let problem = |error: tracing_subscriber::filter::ParseError| SettingsError::Log {
            filter: self.log.clone(),
            problem: error.to_string(),
        };
        tracing_subscriber::EnvFilter::builder().parse(&self.log).map_err(problem)
    }
}

fn role(text: &str) -> Result<Role, String> {
    match text.trim() {
        "identity" => Ok(Role::Identity),
        "destination" => Ok(Role::Destination),
        "policy" => Ok(Role::Policy),
        "viz" => Ok(Role::Viz),
        "injector" => Err("the role `injector` needs Kubernetes, which this version does not serve; \
                           inject manifests with `ringmail inject`"
            .to_owned()),
        other => Err(format!("`{other}` is no role: expected identity, destination, policy or viz")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let problem =
        || format!("`{text}` is no duration: expected a whole number with ms, s, m, h or d, such as 24h");
    let number = u64::from_str(number).map_err(|_| problem())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    let duration = Duration::from_millis(millis.ok_or_else(problem)?);
    if duration < Duration::from_secs(1) {
        return Err(format!("`{text}` is too short: certificates are valid for whole seconds, at least 1s"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Settings, String> {
        let all = ["ringmail-controller", "--registry-dir", "/r"].iter().chain(arguments);
        Arguments::try_parse_from(all)
            .map_err(|error| error.to_string())?
            .settings()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn any_set_of_roles_is_one_process() {
        let settings = parse(&["--roles", "destination,policy"]).expect("valid");
        assert_eq!(settings.roles, BTreeSet::from([Role::Destination, Role::Policy]));
        assert_eq!(settings.cluster_domain, "cluster.local");
        assert!(settings.identity.is_none());
    }

    #[test]
    fn the_injector_is_refused_with_what_to_do_instead() {
        let error = parse(&["--roles", "injector"]).expect_err("refused");
        assert!(error.contains("needs Kubernetes") && error.contains("ringmail inject"), "{error}");
        let error = parse(&["--roles", "x"]).expect_err("refused");
        assert!(error.contains("`x` is no role"), "{error}");
    }

    #[test]
    fn the_role_identity_says_what_it_lacks() {
        let files = ["--issuer-dir", "/i", "--trust-anchors", "/a", "--token-jwks", "/t"];
        for missing in [0, 2, 4] {
            let mut given = vec!["--roles", "identity"];
            given
                .extend(files.iter().enumerate().filter(|(n, _)| n / 2 != missing / 2).map(|(_, text)| text));
            let error = parse(&given).expect_err("refused");
            assert_eq!(error, format!("the role `identity` needs `{}`", files[missing]));
        }
        let mut given = vec!["--roles", "identity"];
        given.extend(files);
        assert_eq!(parse(&given).expect("valid").identity.expect("set").lifetime, Duration::from_hours(24));
    }

    #[test]
    fn durations_have_a_unit_and_are_no_shorter_than_a_second() {
        assert_eq!(duration("90m"), Ok(Duration::from_mins(90)));
        for bad in ["", "24", "h", "1.5h", "999ms", "-1s", "99999999999999999999d", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_networks_are_checked() {
        assert!(parse(&["--roles", "policy", "--trust-domain", "Cluster"]).is_err());
        assert!(parse(&["--roles", "policy", "--cluster-networks", "10.0.0.0/33"]).is_err());
        assert!(parse(&["--roles", "policy", "--default-inbound-policy", "open"]).is_err());
    }
}
