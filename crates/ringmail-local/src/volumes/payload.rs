//! Which files a volume holds; no I/O.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume};

use crate::env::{self, ConfigError, Node};
use crate::store::Store;
use crate::tokens;

/// The content of a volume that is made from objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Its files.
    pub files: Vec<FileSpec>,
    /// Tokens that are to be signed for it.
    pub tokens: Vec<TokenSpec>,
}

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Path in the volume.
    pub path: PathBuf,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// One token of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpec {
    /// Path in the volume.
    pub path: PathBuf,
    /// For whom it is.
    pub audience: Option<String>,
    /// For how long.
    pub lifetime: Duration,
}

/// The content of a volume; `None` for those that are not made from objects.
pub fn payload(
    store: &Store,
    node: &Node,
    pod: &Pod,
    volume: &Volume,
) -> Result<Option<Payload>, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut payload = Payload::default();
    if let Some(source) = &volume.config_map {
        let map = store.config_map(namespace, &source.name);
        let mode = mode(source.default_mode);
        config_map(&mut payload, &source.name, map, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let mode = mode(source.default_mode);
        secret(
            &mut payload,
            name,
            store.secret(namespace, name),
            source.items.as_deref(),
            source.optional,
            mode,
        )?;
    } else if let Some(source) = &volume.downward_api {
        let mode = mode(source.default_mode);
        downward(&mut payload, node, pod, source.items.as_deref().unwrap_or_default(), mode)?;
    } else if let Some(source) = &volume.projected {
        let mode = mode(source.default_mode);
        for projection in source.sources.iter().flatten() {
            if let Some(from) = &projection.config_map {
                let map = store.config_map(namespace, &from.name);
                config_map(&mut payload, &from.name, map, from.items.as_deref(), from.optional, mode)?;
            }
            if let Some(from) = &projection.secret {
                let found = store.secret(namespace, &from.name);
                secret(&mut payload, &from.name, found, from.items.as_deref(), from.optional, mode)?;
            }
            if let Some(from) = &projection.downward_api {
                downward(&mut payload, node, pod, from.items.as_deref().unwrap_or_default(), mode)?;
            }
            if let Some(from) = &projection.service_account_token {
                payload.tokens.push(TokenSpec {
                    path: PathBuf::from(&from.path),
                    audience: from.audience.clone(),
                    lifetime: tokens::lifetime(from.expiration_seconds),
                });
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(payload))
}

fn mode(default: Option<i32>) -> u32 {
    default.map_or(0o644, |mode| mode.cast_unsigned() & 0o777)
}

fn config_map(
    payload: &mut Payload,
    name: &str,
    map: Option<&ConfigMap>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<(), ConfigError> {
    let optional = optional == Some(true);
    let Some(map) = map else {
        return if optional { Ok(()) } else { Err(ConfigError(format!("configmap \"{name}\" not found"))) };
    };
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    select(payload, &format!("configmap \"{name}\""), text.chain(binary).collect(), items, optional, mode)
}

fn secret(
    payload: &mut Payload,
    name: &str,
    secret: Option<&Secret>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<(), ConfigError> {
    let optional = optional == Some(true);
    let Some(secret) = secret else {
        return if optional { Ok(()) } else { Err(ConfigError(format!("secret \"{name}\" not found"))) };
    };
    let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
    select(payload, &format!("secret \"{name}\""), data, items, optional, mode)
}

fn select(
    payload: &mut Payload,
    of: &str,
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: u32,
) -> Result<(), ConfigError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let all = data.into_iter();
        payload.files.extend(all.map(|(key, content)| FileSpec {
            path: key.into(),
            content,
            mode: default_mode,
        }));
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(content) => payload.files.push(FileSpec {
                path: PathBuf::from(&item.path),
                content,
                mode: item.mode.map_or(default_mode, |m| mode(Some(m))),
            }),
            None if optional => {}
            None => return Err(ConfigError(format!("{of} references non-existent key {}", item.key))),
        }
    }
    Ok(())
}

fn downward(
    payload: &mut Payload,
    node: &Node,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
) -> Result<(), ConfigError> {
    for item in items {
        let text = if let Some(selector) = &item.field_ref {
            env::field(pod, node, selector)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let containers = pod.spec.iter().flat_map(|s| &s.containers);
            let container = containers.into_iter().find(|c| c.name == name).ok_or_else(|| {
                ConfigError(format!("there is no container \"{name}\" for a resourceFieldRef"))
            })?;
            env::resource(container, node, selector)?
        } else {
            continue;
        };
        payload.files.push(FileSpec {
            path: PathBuf::from(&item.path),
            content: text.into_bytes(),
            mode: item.mode.map_or(default_mode, |m| mode(Some(m))),
        });
    }
    Ok(())
}
