//! What is told about manifests that cannot be run, or not as written.

use jiff::Timestamp;
use ringmail_local::manifest::check::check;
use ringmail_local::manifest::{self, Document};
use ringmail_local::problem::Problem;
use ringmail_local::programs::Programs;
use ringmail_local::store::Store;

fn documents(text: &str) -> Vec<Document> {
    manifest::read_text("app.yaml", text).unwrap()
}

fn checked(text: &str) -> Result<Vec<Problem>, String> {
    let programs = Programs::parse(&["nginx=/bin/sh".to_owned()], "/usr/bin:/bin").unwrap();
    let store = Store::new(Timestamp::UNIX_EPOCH);
    match check(&store, &documents(text), &programs, &["NetworkPolicy".to_owned()]) {
        Ok(checked) => Ok(checked.warnings),
        Err(problems) => Err(problems.to_string()),
    }
}

fn refused(text: &str) -> String {
    checked(text).unwrap_err()
}

fn warned(text: &str) -> String {
    checked(text).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A deployment whose pod spec is `spec`, from line 6 on.
fn deployment(spec: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: \
         web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n{spec}"
    )
}

const CONTAINERS: &str = "      containers:\n      - {name: web, command: [sh]}\n";

#[test]
fn what_is_right_passes() {
    assert_eq!(checked(&deployment(CONTAINERS)), Ok(Vec::new()));
}

#[test]
fn an_unknown_kind_names_its_line_and_what_to_do() {
    assert_eq!(
        refused(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: batch/v1\nkind: CronJob\n"
        ),
        "RM1542: app.yaml:6: the local mesh does not run kind CronJob (batch/v1)\n  hint: it runs Namespace, \
         ServiceAccount, ConfigMap, Secret, Service, Pod, Deployment, StatefulSet, DaemonSet, Job; take the document out, \
         or leave such documents out with `--skip-kind CronJob`"
    );
}

#[test]
fn a_kind_that_is_skipped_is_no_error() {
    assert!(checked("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\n").is_ok());
}

#[test]
fn a_wrong_version_says_the_right_one() {
    assert_eq!(
        refused("apiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: a}\n"),
        "RM1542: app.yaml:1: Deployment has apiVersion `extensions/v1beta1`\n  hint: write `apiVersion: apps/v1`"
    );
}

#[test]
fn a_wrong_type_names_field_and_line() {
    assert_eq!(
        refused(&deployment(
            "      containers:\n      - name: web\n        command: [sh]\n        env: [{name: A, value: 8080}]\n"
        )),
        "RM1543: app.yaml:12: `spec.template.spec.containers[0].env[0].value`: invalid type: integer `8080`, expected a \
         string"
    );
}

#[test]
fn a_misspelt_field_is_not_ignored() {
    assert_eq!(
        refused(&deployment("      containers:\n      - name: web\n        comand: [sh]\n")),
        "RM1543: app.yaml:11: `spec.template.spec.containers[0].comand` is not a field of Deployment\n  hint: check its \
         spelling and its indentation"
    );
}

#[test]
fn a_missing_service_account_says_what_to_add() {
    assert_eq!(
        refused(&deployment(&format!("      serviceAccountName: web\n{CONTAINERS}"))),
        "RM1547: app.yaml:9: deployment/web in default: there is no ServiceAccount `web` in namespace `default`\n  hint: \
         add a document `{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: default}}`, or correct \
         `serviceAccountName`"
    );
}

#[test]
fn a_missing_namespace_is_told_once() {
    assert_eq!(
        refused(&deployment(CONTAINERS).replace("{name: web}\nspec", "{name: web, namespace: shop}\nspec")),
        "RM1547: app.yaml:3: deployment/web in shop: there is no namespace `shop`\n  hint: add a document `{apiVersion: \
         v1, kind: Namespace, metadata: {name: shop}}`"
    );
}

#[test]
fn references_to_what_is_not_there_are_refused_and_optional_ones_are_not() {
    let with = |optional: &str| {
        deployment(&format!(
            "      volumes:\n      - {{name: v, configMap: {{name: pages{optional}}}}}\n      - {{name: s, secret: \
             {{secretName: key{optional}}}}}\n{CONTAINERS}"
        ))
    };
    assert_eq!(
        refused(&with("")),
        "RM1547: app.yaml:10: deployment/web in default: there is no ConfigMap `pages` in namespace `default`\n  hint: \
         add it, or mark the reference `optional: true`\nRM1547: app.yaml:11: deployment/web in default: there is no \
         Secret `key` in namespace `default`\n  hint: add it, or mark the reference `optional: true`"
    );
    assert_eq!(checked(&with(", optional: true")), Ok(Vec::new()));
}

#[test]
fn a_mount_without_its_volume_and_an_image_without_its_program_are_refused() {
    let text = deployment(
        "      containers:\n      - name: web\n        image: registry:5000/shop/web:1\n        volumeMounts: [{name: v, \
         mountPath: /v}]\n",
    );
    assert_eq!(
        refused(&text),
        "RM1547: app.yaml:12: deployment/web in default: container `web` mounts volume `v`, which the pod does not \
         have\n  hint: add it under `spec.template.spec.volumes`, or correct `volumeMounts`\nRM1551: app.yaml:10: \
         container `web` has image `registry:5000/shop/web:1` and no `command`; images are not pulled here\n  hint: say \
         which program of this machine stands for it: `--run registry:5000/shop/web=web`, or add `command` to the \
         container"
    );
}

#[test]
fn what_the_local_mesh_does_not_do_is_said_by_name() {
    let text = deployment(&format!("      hostNetwork: true\n{CONTAINERS}"));
    assert_eq!(
        refused(&text),
        "RM1544: app.yaml:9: `spec.template.spec.hostNetwork: true` is not done by the local mesh\n  hint: a pod always \
         has its own network here; publish a port of its Service instead"
    );
    let text = deployment("      containers:\n      - {name: web, command: [sh], tty: true}\n");
    assert_eq!(
        warned(&text),
        "RM1545: app.yaml:10: `spec.template.spec.containers[0].tty: true`: ignored, a container's output goes to its \
         log; `ringmail exec -t` has a terminal"
    );
    let twin = deployment(
        "      hostNetwork: false\n      containers:\n      - {name: web, command: [sh], tty: false}\n",
    );
    assert_eq!(checked(&twin), Ok(Vec::new()));
}

#[test]
fn a_service_without_pods_is_a_warning_with_the_nearest_labels() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: wbe}\n  ports: [{port: 80}]\n";
    assert_eq!(
        warned(&format!("{}---\n{service}", deployment(CONTAINERS))),
        "RM1548: app.yaml:16: service/web in default selects no pods: nothing has the labels app=wbe; nearest is \
         deployment/web in default with app=web\n  hint: make the selector equal to labels of a pod template in the same \
         namespace"
    );
    let right = service.replace("wbe", "web");
    assert_eq!(warned(&format!("{}---\n{right}", deployment(CONTAINERS))), "");
    let named = right.replace("port: 80", "port: 80, targetPort: http");
    assert!(
        warned(&format!("{}---\n{named}", deployment(CONTAINERS))).contains("a container port named `http`")
    );
}

#[test]
fn a_selector_that_misses_its_own_template_is_refused() {
    let text = deployment(CONTAINERS).replace("matchLabels: {app: web}", "matchLabels: {app: other}");
    assert!(
        refused(&text)
            .starts_with("RM1543: app.yaml:5: deployment/web in default: its selector does not match")
    );
}

#[test]
fn probes_and_restart_policies_follow_the_rules() {
    let probe =
        "      containers:\n      - {name: web, command: [sh], readinessProbe: {httpGet: {port: http}}}\n";
    assert!(refused(&deployment(probe)).contains("container `web` has no port named `http`"));
    let empty = "      containers:\n      - {name: web, command: [sh], readinessProbe: {periodSeconds: 1}}\n";
    assert!(refused(&deployment(empty)).contains("exactly one of httpGet, tcpSocket, exec and grpc"));
    let policy = format!("      restartPolicy: Never\n{CONTAINERS}");
    assert!(refused(&deployment(&policy)).contains("a Deployment takes Always"));
}

#[test]
fn the_same_object_twice_names_both_places() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    assert_eq!(
        refused(&format!("{text}---\n{text}")),
        "RM1546: app.yaml:7: configmap/a in default is given twice, first at app.yaml:3\n  hint: keep one of them"
    );
}

#[test]
fn a_syntax_error_names_the_place() {
    let problems = manifest::read_text("app.yaml", "kind: A\n---\na: [1, 2\nb: 3\n").unwrap_err().to_string();
    assert!(problems.starts_with("RM1541: app.yaml:"), "{problems}");
    assert!(problems.contains("not valid YAML"), "{problems}");
}

#[test]
fn secrets_take_plain_text_and_names_are_checked() {
    let secret = documents(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: Zm9v}\nstringData: {b: bar}\n",
    );
    let (object, _) = manifest::Object::parse(&secret[0]).unwrap();
    assert_eq!(object.to_json()["data"]["b"], "YmFy");
    assert!(
        refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name}\n").contains("is not a name")
    );
    assert!(
        refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}\n").contains("generateName")
    );
}

#[test]
fn files_directories_and_their_absence_are_told() {
    let directory = std::env::temp_dir().join(format!("ringmail-manifests-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let shown = directory.display().to_string();
    let empty = manifest::read(std::slice::from_ref(&shown)).unwrap_err().to_string();
    assert!(empty.contains("holds no .yaml, .yml or .json file"), "{empty}");
    std::fs::write(directory.join("b.json"), r#"{"kind": "B"}"#).unwrap();
    std::fs::write(directory.join("a.yaml"), "kind: A\n").unwrap();
    std::fs::write(directory.join("readme.md"), "no").unwrap();
    let kinds: Vec<String> =
        manifest::read(&[shown]).unwrap().iter().map(|d| d.value["kind"].to_string()).collect();
    assert_eq!(kinds, ["\"A\"", "\"B\""]);
    std::fs::remove_dir_all(&directory).unwrap();
    let missing = manifest::read(&["no/such.yaml".to_owned()]).unwrap_err().to_string();
    assert!(missing.starts_with("RM1540: no/such.yaml: cannot be read"), "{missing}");
}
