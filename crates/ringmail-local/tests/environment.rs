//! The environment of containers, by Kubernetes' rules.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use ringmail_local::env::{ConfigError, Node, environment, expand};
use ringmail_local::manifest::{self, Object};
use ringmail_local::store::Store;

const OBJECTS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red, size: large}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: s3cret}
---
apiVersion: v1
kind: Service
metadata: {name: db-main}
spec: {clusterIP: 10.143.0.40, ports: [{name: sql, port: 5432}]}
";

const POD: &str = "\
metadata: {name: web-0, namespace: default, uid: u-1, labels: {app: web}, annotations: {team: a}}
spec: {serviceAccountName: web, containers: [{name: c}]}
status: {podIP: 10.142.0.5, podIPs: [{ip: 10.142.0.5}, {ip: 'fd00::5'}]}
";

fn environment_of(container: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let mut store = Store::new(Timestamp::UNIX_EPOCH);
    for document in manifest::read_text("t", OBJECTS).unwrap() {
        store.apply(Object::parse(&document).unwrap().0, Timestamp::UNIX_EPOCH);
    }
    let node = Node { name: "local".into(), ip: "10.142.0.1".into(), cpus: 4, memory: 8 << 30 };
    let mut pod: Pod = serde_saphyr::from_str(POD).unwrap();
    let container: Container = serde_saphyr::from_str(container).unwrap();
    pod.spec.as_mut().unwrap().containers = vec![container.clone()];
    environment(&store, &node, &pod, &container)
}

fn value(container: &str, name: &str) -> Option<String> {
    let variables = environment_of(container).unwrap();
    variables.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

#[test]
fn references_expand_from_what_stands_before() {
    let variables = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x y".to_owned())];
    for (text, expected) in [
        ("$(A)", "1"),
        ("--a=$(A),$(B)", "--a=1,x y"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
    ] {
        assert_eq!(expand(text, &variables), expected, "{text}");
    }
    let container =
        "{name: c, env: [{name: LATER, value: '$(X)'}, {name: X, value: '1'}, {name: Y, value: '$(X)2'}]}";
    assert_eq!(value(container, "LATER").unwrap(), "$(X)");
    assert_eq!(value(container, "Y").unwrap(), "12");
}

#[test]
fn config_maps_and_secrets_give_values() {
    let container = "{name: c, envFrom: [{configMapRef: {name: settings}, prefix: CFG_}, {secretRef: {name: key}}], env: \
                     [{name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}, {name: password, value: \
                     own}]}";
    assert_eq!(value(container, "CFG_size").unwrap(), "large");
    assert_eq!(value(container, "COLOR").unwrap(), "red");
    assert_eq!(value(container, "password").unwrap(), "own");
}

#[test]
fn a_missing_key_is_the_error_that_kubelet_shows_unless_it_is_optional() {
    let container = |optional: &str| {
        format!(
            "{{name: c, env: [{{name: A, valueFrom: {{secretKeyRef: {{name: key, key: nothing{optional}}}}}}}]}}"
        )
    };
    assert_eq!(
        environment_of(&container("")).unwrap_err().to_string(),
        "couldn't find key nothing in Secret default/key"
    );
    assert_eq!(value(&container(", optional: true"), "A"), None);
    let missing = "{name: c, envFrom: [{configMapRef: {name: nowhere}}]}";
    assert_eq!(environment_of(missing).unwrap_err().to_string(), "configmap \"nowhere\" not found");
}

#[test]
fn fields_and_resources_of_the_pod_are_known() {
    let field = |path: &str| {
        let container =
            format!("{{name: c, env: [{{name: A, valueFrom: {{fieldRef: {{fieldPath: \"{path}\"}}}}}}]}}");
        environment_of(&container).map(|v| v.into_iter().find(|(n, _)| n == "A").unwrap().1)
    };
    assert_eq!(field("metadata.name").unwrap(), "web-0");
    assert_eq!(field("metadata.uid").unwrap(), "u-1");
    assert_eq!(field("spec.nodeName").unwrap(), "local");
    assert_eq!(field("spec.serviceAccountName").unwrap(), "web");
    assert_eq!(field("status.podIP").unwrap(), "10.142.0.5");
    assert_eq!(field("status.podIPs").unwrap(), "10.142.0.5,fd00::5");
    assert_eq!(field("metadata.labels['app']").unwrap(), "web");
    assert_eq!(field("metadata.annotations['none']").unwrap(), "");
    assert!(field("status.nothing").is_err());

    let resource = |resource: &str, divisor: &str| {
        let container = format!(
            "{{name: c, resources: {{limits: {{memory: 1536Mi}}, requests: {{cpu: 250m}}}}, env: [{{name: A, valueFrom: \
             {{resourceFieldRef: {{resource: {resource}, divisor: '{divisor}'}}}}}}]}}"
        );
        value(&container, "A").unwrap()
    };
    assert_eq!(resource("limits.memory", "0"), (1536u64 << 20).to_string());
    assert_eq!(resource("limits.memory", "1Gi"), "2");
    assert_eq!(resource("requests.cpu", "1m"), "250");
    assert_eq!(resource("requests.cpu", "1"), "1");
    assert_eq!(resource("limits.cpu", "1"), "4");
}

#[test]
fn services_of_the_namespace_are_linked() {
    assert_eq!(value("{name: c}", "DB_MAIN_SERVICE_HOST").unwrap(), "10.143.0.40");
    assert_eq!(value("{name: c}", "DB_MAIN_SERVICE_PORT_SQL").unwrap(), "5432");
    assert_eq!(value("{name: c}", "DB_MAIN_PORT_5432_TCP").unwrap(), "tcp://10.143.0.40:5432");
}
