//! Every setting: its default, what it refuses, and that its page says the truth.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use ringmail_proxy::config::{
    Config, ConfigError, DefaultPolicy, DefaultValue, LogFormat, SETTINGS, documentation, unknown_variables,
};

fn environment() -> HashMap<String, String> {
    let mesh = super::support::Mesh::new();
    let name = mesh.id("web", "ballot").to_string();
    [
        ("IDENTITY_SVC_ADDR", "10.143.0.3:8080"),
        ("IDENTITY_SVC_NAME", "identity.ringmail.serviceaccount.identity.ringmail.cluster.local"),
        ("DESTINATION_SVC_ADDR", "127.0.0.1:8086"),
        ("POLICY_SVC_ADDR", "localhost.:8090"),
        ("POLICY_WORKLOAD", r#"{"ns":"ballot","pod":"web-1"}"#),
        ("IDENTITY_TOKEN_FILE", "/var/run/token"),
        ("IDENTITY_TRUST_ANCHORS", &mesh.anchors_pem),
        ("IDENTITY_LOCAL_NAME", &name),
    ]
    .into_iter()
    .map(|(name, value)| (format!("RINGMAIL_PROXY_{name}"), value.to_owned()))
    .collect()
}

fn read(environment: &HashMap<String, String>) -> Result<Config, ConfigError> {
    Config::read(|name| environment.get(name).cloned())
}

fn with(name: &str, value: &str) -> Result<Config, ConfigError> {
    let mut environment = environment();
    environment.insert(format!("RINGMAIL_PROXY_{name}"), value.to_owned());
    read(&environment)
}

#[test]
fn the_required_settings_are_enough_and_the_rest_has_its_default() {
    let config = read(&environment()).expect("valid");
    assert_eq!(config.inbound_listen_addr, ["0.0.0.0:4143".parse().expect("valid")]);
    assert_eq!(config.outbound_listen_addrs, ["127.0.0.1:4140".parse().expect("valid")]);
    assert_eq!(config.silent_grace, Duration::from_millis(100));
    assert_eq!(config.shutdown_grace_period, Duration::from_mins(2));
    assert_eq!(config.inbound_default_policy, DefaultPolicy::AllUnauthenticated);
    assert_eq!(config.outbound_accept_keepalive, Some(Duration::from_secs(10)));
    assert_eq!(
        (config.socket_mark, config.log_format, config.log.as_str()),
        (None, LogFormat::Plain, "info")
    );
    assert!((1..=4).contains(&config.data_threads()));
    assert_eq!(config.destination_profile_networks.len(), 5);
}

#[test]
fn every_bad_value_names_its_variable() {
    for (name, bad) in [
        ("INBOUND_LISTEN_ADDR", "0.0.0.0"),
        ("INBOUND_LISTEN_ADDR", "1.1.1.1:1,2.2.2.2:2,3.3.3.3:3"),
        ("OUTBOUND_LISTEN_ADDRS", "localhost:4140"),
        ("CONTROL_LISTEN_ADDR", ":4190"),
        ("ADMIN_LISTEN_ADDR", "4191"),
        ("IDENTITY_SVC_ADDR", "identity"),
        ("IDENTITY_SVC_ADDR", "10.0.0.300:80"),
        ("IDENTITY_SVC_NAME", "not a name"),
        ("DESTINATION_SVC_ADDR", "name:0"),
        ("DESTINATION_SVC_NAME", ".."),
        ("POLICY_SVC_ADDR", "a..b:80"),
        ("POLICY_SVC_NAME", "x."),
        ("IDENTITY_TRUST_ANCHORS", "/etc/anchors.pem"),
        ("IDENTITY_LOCAL_NAME", "spiffe://cluster.local/ns/a/sa/b"),
        ("IDENTITY_LOCAL_NAME", "we b"),
        ("TAP_SVC_NAME", "*"),
        ("INBOUND_IPS", "10.0.0.0/8"),
        ("INBOUND_PORTS", "80,http"),
        ("INBOUND_PORTS", "9-1"),
        ("INBOUND_PORTS", "0"),
        ("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", "65536"),
        ("INBOUND_DEFAULT_POLICY", "allow"),
        ("INBOUND_DEFAULT_POLICY", "cluster-authenticated"),
        ("POLICY_CLUSTER_NETWORKS", "10.0.0.0"),
        ("DESTINATION_PROFILE_NETWORKS", "10.0.0.0/33"),
        ("OUTBOUND_CONNECT_TIMEOUT", "1"),
        ("INBOUND_CONNECT_TIMEOUT", "1.5s"),
        ("INBOUND_ACCEPT_KEEPALIVE", "soon"),
        ("OUTBOUND_ACCEPT_KEEPALIVE", "-1s"),
        ("HANDSHAKE_TIMEOUT", "99999999999999999999s"),
        ("DISCOVERY_TIMEOUT", "99999999999d"),
        ("SILENT_GRACE", "ms"),
        ("SOCKET_MARK", "0"),
        ("SOCKET_MARK", "0xzz"),
        ("LOG", "info,=debug=,"),
        ("LOG_FORMAT", "xml"),
        ("SHUTDOWN_GRACE_PERIOD", "2 minutes"),
        ("CORES", "0"),
        ("CORES", "many"),
    ] {
        let error = with(name, bad).expect_err(name);
        let named =
            |problem: &ringmail_proxy::config::Problem| problem.variable == format!("RINGMAIL_PROXY_{name}");
        assert!(error.0.iter().any(named), "{name}={bad}: {error}");
    }
}

#[test]
fn every_setting_that_can_be_wrong_is_among_them() {
    // The three that take any text.
    let free = ["DESTINATION_CONTEXT", "POLICY_WORKLOAD", "IDENTITY_TOKEN_FILE"];
    for setting in SETTINGS.iter().filter(|setting| !free.contains(&setting.name)) {
        assert!(with(setting.name, "\u{1}bad").is_err(), "{} takes anything", setting.name);
    }
}

#[test]
fn all_failures_are_told_at_once() {
    let error = read(&HashMap::new()).expect_err("nothing is set");
    let required = SETTINGS.iter().filter(|setting| setting.default == DefaultValue::Required);
    for setting in required {
        assert!(error.to_string().contains(&format!("RINGMAIL_PROXY_{}: is unset", setting.name)), "{error}");
    }
    assert!(error.to_string().starts_with("RM1100: "));
}

#[test]
fn linkerds_variable_counts_where_ours_is_unset() {
    let mut environment = environment();
    environment.insert("LINKERD2_PROXY_SILENT_GRACE".to_owned(), "7ms".to_owned());
    assert_eq!(read(&environment).expect("valid").silent_grace, Duration::from_millis(7));
    environment.insert("RINGMAIL_PROXY_SILENT_GRACE".to_owned(), "8ms".to_owned());
    assert_eq!(read(&environment).expect("valid").silent_grace, Duration::from_millis(8));
    environment.insert("RINGMAIL_PROXY_SILENT_GRACE".to_owned(), String::new());
    assert_eq!(
        read(&environment).expect("valid").silent_grace,
        Duration::from_millis(100),
        "empty is our default"
    );
    environment.remove("RINGMAIL_PROXY_SILENT_GRACE");
    environment.insert("LINKERD2_PROXY_SILENT_GRACE".to_owned(), "x".to_owned());
    let error = read(&environment).expect_err("refused");
    assert_eq!(error.0[0].variable, "LINKERD2_PROXY_SILENT_GRACE");
}

#[test]
fn values_are_read_as_they_are_written() {
    assert_eq!(with("SOCKET_MARK", "0x2102").expect("valid").socket_mark, Some(0x2102));
    assert_eq!(with("OUTBOUND_ACCEPT_KEEPALIVE", "").expect("valid").outbound_accept_keepalive, None);
    assert_eq!(with("SHUTDOWN_GRACE_PERIOD", "0").expect("valid").shutdown_grace_period, Duration::ZERO);
    assert_eq!(
        with("SHUTDOWN_GRACE_PERIOD", "1d").expect("valid").shutdown_grace_period,
        Duration::from_hours(24)
    );
    let ports = with("INBOUND_PORTS", " 80, ,8080-8082").expect("valid").inbound_ports;
    assert_eq!(ports.iter().collect::<Vec<_>>(), [80, 8080, 8081, 8082]);
    assert!(ports.contains(8081) && !ports.contains(81));
    let listen =
        with("OUTBOUND_LISTEN_ADDRS", "127.0.0.1:4140,[::1]:4140").expect("valid").outbound_listen_addrs;
    assert_eq!(listen.len(), 2);
}

#[test]
fn plaintext_to_the_control_plane_is_for_loopback_alone() {
    let config = read(&environment()).expect("valid");
    assert!(config.policy_svc_addr.is_loopback() && config.destination_svc_addr.is_loopback());
    assert!(!config.identity_svc_addr.is_loopback());
    for away in ["localhost:8090", "10.0.0.1:8090", "policy.ringmail:8090"] {
        let error = with("POLICY_SVC_ADDR", away).expect_err(away);
        assert!(error.to_string().contains("RINGMAIL_PROXY_POLICY_SVC_NAME"), "{error}");
    }
}

#[test]
fn a_bad_value_is_quoted_short() {
    let error = with("INBOUND_PORTS", &"x".repeat(100_000)).expect_err("refused");
    assert!(error.to_string().len() < 400);
}

#[test]
fn a_misspelt_variable_is_noticed_and_others_are_left_alone() {
    let names = ["RINGMAIL_PROXY_LOGG", "RINGMAIL_PROXY_LOG", "LINKERD2_PROXY_ACCESS_LOG", "PATH"];
    assert_eq!(unknown_variables(names.map(str::to_owned)), ["RINGMAIL_PROXY_LOGG"]);
}

#[test]
fn the_documentation_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/proxy-configuration.md");
    let wanted = documentation();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        std::fs::write(&path, &wanted).expect("writes");
    }
    let present = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(present, wanted, "run `UPDATE_DOCS=1 cargo test -p ringmail-proxy --test periphery`");
}
