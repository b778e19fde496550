//! The containers and the volume that are added to a pod.

use serde_json::{Map, Value, json};

use crate::environment::environment;
use crate::inject::{Identities, Request};
use crate::ports::Ports;
use crate::settings::Settings;
use crate::values::{Exemption, Values};
use crate::{INIT_CONTAINER, PROXY_CONTAINER, TOKEN_DIRECTORY, TOKEN_VOLUME};

/// All that the parts of one pod are made from.
pub(crate) struct Parts<'a> {
    pub(crate) values: &'a Values,
    pub(crate) identities: &'a Identities,
    pub(crate) settings: &'a Settings,
    pub(crate) request: &'a Request<'a>,
    /// Which part of the control plane the pod is.
    pub(crate) component: Option<&'a str>,
}

impl Parts<'_> {
    fn image(&self) -> String {
        format!("{}:{}", self.settings.image, self.settings.version)
    }

    /// The identity service cannot wait for a proxy that waits for a certificate from it.
    fn is_awaited(&self) -> bool {
        self.settings.awaited && self.component != Some("identity")
    }
}

/// Sets the redirection before any other container starts.
pub(crate) fn init_container(parts: &Parts<'_>) -> Value {
    let settings = parts.settings;
    let mut arguments = vec![
        "init".to_owned(),
        format!("--incoming-proxy-port={}", settings.inbound_port),
        format!("--outgoing-proxy-port={}", settings.outbound_port),
        match parts.values.exemption {
            Exemption::Uid => format!("--proxy-uid={}", settings.uid),
            Exemption::Mark(mark) => format!("--proxy-mark={mark:#x}"),
        },
    ];
    // Whoever scrapes metrics or takes taps reaches the proxy itself.
    let own = Ports::of_numbers([settings.control_port, settings.admin_port]);
    arguments.push(format!("--inbound-ports-to-ignore={}", own.and(&settings.skip_inbound)));
    if !settings.skip_outbound.is_empty() {
        arguments.push(format!("--outbound-ports-to-ignore={}", settings.skip_outbound));
    }
    if !settings.skip_subnets.is_empty() {
        let subnets: Vec<String> = settings.skip_subnets.iter().map(ToString::to_string).collect();
        arguments.push(format!("--subnets-to-ignore={}", subnets.join(",")));
    }
    arguments.push(format!("--ipv6={}", parts.values.ipv6));
    json!({
        "name": INIT_CONTAINER,
        "image": parts.image(),
        "imagePullPolicy": settings.pull_policy,
        "args": arguments,
        "resources": {
            "requests": { "cpu": "10m", "memory": "16Mi" },
            "limits": { "cpu": "100m", "memory": "32Mi" },
        },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": false,
            // The kernel gives an added capability to a program that root starts, not to another user's.
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// The proxy, as a native sidecar or as an ordinary container.
pub(crate) fn proxy_container(parts: &Parts<'_>) -> Value {
    let settings = parts.settings;
    let mut container = Map::new();
    let mut put = |key: &str, value: Value| container.insert(key.to_owned(), value);
    put("name", json!(PROXY_CONTAINER));
    put("image", json!(parts.image()));
    put("imagePullPolicy", json!(settings.pull_policy));
    put("env", Value::Array(environment(parts)));
    put(
        "ports",
        json!([
            { "name": "ringmail-proxy", "containerPort": settings.inbound_port },
            { "name": "ringmail-admin", "containerPort": settings.admin_port },
        ]),
    );
    let probe = |path: &str| json!({ "path": path, "port": settings.admin_port });
    if settings.native {
        put("restartPolicy", json!("Always"));
        if parts.is_awaited() {
            let probe = json!({ "httpGet": probe("/ready"), "periodSeconds": 1, "failureThreshold": 120 });
            put("startupProbe", probe);
        }
    } else {
        let mut lifecycle = Map::new();
        if parts.is_awaited() {
            let port = format!("--port={}", settings.admin_port);
            let command = json!(["ringmail-proxy", "await", "--timeout=120", port]);
            lifecycle.insert("postStart".to_owned(), json!({ "exec": { "command": command } }));
        }
        if settings.wait_before_exit > 0 {
            lifecycle
                .insert("preStop".to_owned(), json!({ "sleep": { "seconds": settings.wait_before_exit } }));
        }
        if !lifecycle.is_empty() {
            put("lifecycle", Value::Object(lifecycle));
        }
    }
    put(
        "livenessProbe",
        json!({ "httpGet": probe("/live"), "initialDelaySeconds": 10, "timeoutSeconds": 1 }),
    );
    put(
        "readinessProbe",
        json!({ "httpGet": probe("/ready"), "initialDelaySeconds": 2, "timeoutSeconds": 1 }),
    );
    let mut resources = Map::new();
    for (kind, amounts) in [("requests", &settings.requests), ("limits", &settings.limits)] {
        if !amounts.is_empty() {
            resources.insert(kind.to_owned(), Value::Object(amounts.clone()));
        }
    }
    if !resources.is_empty() {
        put("resources", Value::Object(resources));
    }
    put("securityContext", security(parts));
    put("terminationMessagePolicy", json!("FallbackToLogsOnError"));
    put("volumeMounts", json!([{ "name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": true }]));
    Value::Object(container)
}

/// The token that proves the workload to the identity service; the kubelet renews its file.
pub(crate) fn token_volume(values: &Values) -> Value {
    let token = json!({
        "path": TOKEN_VOLUME,
        "expirationSeconds": TOKEN_LIFETIME,
        "audience": values.token_audience,
    });
    json!({ "name": TOKEN_VOLUME, "projected": { "sources": [{ "serviceAccountToken": token }] } })
}

fn security(parts: &Parts<'_>) -> Value {
    let mut context = Map::new();
    let mut put = |key: &str, value: Value| context.insert(key.to_owned(), value);
    put("allowPrivilegeEscalation", json!(false));
    match parts.values.exemption {
        Exemption::Uid => put("capabilities", json!({ "drop": ["ALL"] })),
        // A mark on a socket needs it (socket(7), SO_MARK, since Linux 5.17).
        Exemption::Mark(_) => put("capabilities", json!({ "drop": ["ALL"], "add": ["NET_RAW"] })),
    };
    put("privileged", json!(false));
    put("readOnlyRootFilesystem", json!(true));
    if parts.values.exemption == Exemption::Uid {
        put("runAsNonRoot", json!(true));
        put("runAsUser", json!(parts.settings.uid));
        if let Some(gid) = parts.settings.gid {
            put("runAsGroup", json!(gid));
        }
    }
    put("seccompProfile", json!({ "type": "RuntimeDefault" }));
    Value::Object(context)
}

const TOKEN_LIFETIME: u32 = 86_400;
