//! The files of a pod's volumes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use ringmail_identity::token::JwtVerifier;
use ringmail_local::env::Node;
use ringmail_local::manifest::{self, Object};
use ringmail_local::sandbox::{Ids, Source};
use ringmail_local::store::Store;
use ringmail_local::tokens::{Bearer, Tokens};
use ringmail_local::volumes::{PodVolumes, Users, VolumeContext, VolumeError};

struct World {
    context: VolumeContext,
    store: Store,
    bearer: Bearer,
}

impl World {
    fn new() -> Self {
        let state = std::env::temp_dir().join(format!(
            "ringmail-volumes-{}-{}",
            std::process::id(),
            ringmail_local::ids::suffix()
        ));
        fs::create_dir_all(state.join("registry")).unwrap();
        let context = VolumeContext {
            hidden: vec![PathBuf::from("/usr/share")],
            registry: state.join("registry"),
            state,
            tokens: Tokens::new("cluster.local").unwrap(),
            node: Node { name: "local".into(), ip: "10.142.0.1".into(), cpus: 2, memory: 1 << 30 },
            // As an ordinary user without ranges: nothing can be given away.
            ids: Ids { uids: vec![(0, 1)], gids: vec![(0, 1)], groups: false },
        };
        let bearer = Bearer {
            namespace: "a".into(),
            pod: "p".into(),
            pod_uid: "u1".into(),
            account: "web".into(),
            account_uid: "u2".into(),
        };
        Self { context, store: Store::new(Timestamp::UNIX_EPOCH), bearer }
    }

    fn give(&mut self, text: &str) {
        for document in manifest::read_text("t", text).unwrap() {
            self.store.apply(Object::parse(&document).unwrap().0, Timestamp::UNIX_EPOCH);
        }
    }

    fn make(&self, pod: &Pod) -> Result<PodVolumes, VolumeError> {
        PodVolumes::create(&self.context, &self.store, pod, &self.bearer, &BTreeMap::new(), &Users::new())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.context.state);
    }
}

fn pod(volume: &str) -> Pod {
    serde_saphyr::from_str(&format!(
        "{{metadata: {{name: p, namespace: a, uid: u1, labels: {{app: web}}}}, spec: {{volumes: [{{name: v, {volume}}}], \
         containers: [{{name: c, volumeMounts: [{{name: v, mountPath: /v}}]}}]}}}}"
    ))
    .unwrap()
}

fn path_of(volumes: &mut PodVolumes, pod: &Pod) -> (PathBuf, bool) {
    let mounts = volumes.mounts(&pod.spec.as_ref().unwrap().containers[0], &[]).unwrap();
    match &mounts[0].source {
        Source::Bind { path, read_only } => (path.clone(), *read_only),
        other => panic!("{other:?}"),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

const OBJECTS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: a}\ndata: {one: '1', two: '2'}\n---\n\
                       apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: a}\nstringData: {key: secret}\n";

#[test]
fn config_maps_and_secrets_become_read_only_files_with_modes() {
    let mut world = World::new();
    world.give(OBJECTS);
    let wanted =
        pod("configMap: {name: c, defaultMode: 420, items: [{key: two, path: sub/second, mode: 256}]}");
    let mut volumes = world.make(&wanted).unwrap();
    let (path, read_only) = path_of(&mut volumes, &wanted);
    assert!(read_only);
    assert_eq!(fs::read_to_string(path.join("sub/second")).unwrap(), "2");
    assert_eq!(mode(&path.join("sub/second")), 0o400);
    assert!(!path.join("one").exists());
    let secret = pod("secret: {secretName: s, defaultMode: 256}");
    let mut volumes = world.make(&secret).unwrap();
    let (path, _) = path_of(&mut volumes, &secret);
    assert_eq!(fs::read_to_string(path.join("key")).unwrap(), "secret");
    assert_eq!(mode(&path.join("key")), 0o400);
}

#[test]
fn files_follow_their_object() {
    let mut world = World::new();
    world.give(OBJECTS);
    let wanted = pod("configMap: {name: c}");
    let mut volumes = world.make(&wanted).unwrap();
    let (path, _) = path_of(&mut volumes, &wanted);
    world.give("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: a}\ndata: {one: changed}\n");
    volumes.refresh(&world.context, &world.store, &wanted, &world.bearer, SystemTime::now()).unwrap();
    assert_eq!(fs::read_to_string(path.join("one")).unwrap(), "changed");
    assert!(!path.join("two").exists());
}

#[test]
fn what_is_missing_is_told_unless_it_is_optional() {
    let world = World::new();
    let error = world.make(&pod("configMap: {name: nowhere}")).unwrap_err();
    assert_eq!(error.to_string(), "configmap \"nowhere\" not found");
    assert!(world.make(&pod("configMap: {name: nowhere, optional: true}")).is_ok());
    let mut world = World::new();
    world.give(OBJECTS);
    let error = world.make(&pod("configMap: {name: c, items: [{key: three, path: x}]}")).unwrap_err();
    assert_eq!(error.to_string(), "configmap \"c\" references non-existent key three");
}

#[test]
fn a_path_cannot_leave_its_volume() {
    let mut world = World::new();
    world.give(OBJECTS);
    for path in ["../escape", "/etc/x", "a/../../b"] {
        let error =
            world.make(&pod(&format!("configMap: {{name: c, items: [{{key: one, path: '{path}'}}]}}")));
        assert!(error.unwrap_err().to_string().contains("is not a path inside the volume"), "{path}");
    }
}

#[test]
fn a_token_is_for_its_audience_private_and_replaced_before_it_ends() {
    let world = World::new();
    let wanted = pod(
        "projected: {sources: [{serviceAccountToken: {path: token, audience: x, expirationSeconds: 1000}}]}",
    );
    let mut volumes = world.make(&wanted).unwrap();
    let (path, _) = path_of(&mut volumes, &wanted);
    let read = || fs::read_to_string(path.join("token")).unwrap();
    let first = read();
    assert_eq!(mode(&path.join("token")), 0o600);
    let verifier = JwtVerifier::from_jwks(&world.context.tokens.jwks(), ["x"]).unwrap();
    let subject = verifier.verify(first.as_bytes(), SystemTime::now()).unwrap();
    assert_eq!((subject.namespace.as_str(), subject.service_account.as_str()), ("a", "web"));

    let mut refresh = |after: u64| {
        let now = SystemTime::now() + Duration::from_secs(after);
        volumes.refresh(&world.context, &world.store, &wanted, &world.bearer, now).unwrap().unwrap()
    };
    let next = refresh(100);
    assert!(next > Duration::from_secs(650) && next <= Duration::from_secs(700), "{next:?}");
    assert_eq!(read(), first);
    assert_eq!(refresh(801), Duration::from_secs(800));
    assert_ne!(read(), first);
    let late = SystemTime::now() + Duration::from_secs(1100);
    assert!(verifier.verify(first.as_bytes(), late).is_err());
    assert!(verifier.verify(read().as_bytes(), late).is_ok());
}

#[test]
fn an_empty_directory_is_writable_and_the_downward_api_is_not() {
    let world = World::new();
    let wanted = pod("emptyDir: {}");
    let mut volumes = world.make(&wanted).unwrap();
    let (path, read_only) = path_of(&mut volumes, &wanted);
    assert!(!read_only);
    assert_eq!(mode(&path), 0o777);
    volumes.remove();
    assert!(!path.exists());
    let wanted = pod("downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}");
    let mut volumes = world.make(&wanted).unwrap();
    let (path, read_only) = path_of(&mut volumes, &wanted);
    assert!(read_only);
    assert_eq!(fs::read_to_string(path.join("labels")).unwrap(), "app=\"web\"");
}

#[test]
fn host_paths_show_the_machine_but_never_the_mesh_itself() {
    let world = World::new();
    let wanted = pod("hostPath: {path: /etc, type: Directory}");
    let mut volumes = world.make(&wanted).unwrap();
    assert_eq!(path_of(&mut volumes, &wanted), (PathBuf::from("/etc"), true));

    let state = world.context.state.clone();
    std::os::unix::fs::symlink(&state, state.join("link")).unwrap();
    let shown = |path: &Path| pod(&format!("hostPath: {{path: '{}'}}", path.display()));
    for own in [
        state.as_path(),
        &state.join("registry"),
        &state.join("link"),
        state.parent().unwrap(),
        Path::new("/"),
        Path::new("/usr"),
        Path::new("/usr/share"),
        Path::new("/proc/self"),
        Path::new("/no/such/path"),
    ] {
        assert!(matches!(world.make(&shown(own)), Err(VolumeError::Refused { .. })), "{}", own.display());
    }
    let mut plane = shown(&state.join("registry"));
    plane.metadata.namespace = Some("ringmail".into());
    assert!(world.make(&plane).is_ok(), "the control plane may see the registry");
}
