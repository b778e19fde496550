//! The directory in which the control plane finds the mesh's objects: one file an object, as Kubernetes JSON.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Writes the files; knows what it wrote, so that only changes touch the disk and wake the readers.
#[derive(Debug)]
pub struct RegistryDir {
    path: PathBuf,
    written: BTreeMap<String, Vec<u8>>,
}

impl RegistryDir {
    /// Makes the directory.
    pub fn create(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self { path: path.to_owned(), written: BTreeMap::new() })
    }

    /// Brings the directory to hold exactly these objects.
    pub fn sync<'a>(&mut self, objects: impl Iterator<Item = &'a Value>) -> io::Result<()> {
        let mut wanted = BTreeMap::new();
        for object in objects {
            if let Some(name) = file_name(object) {
                wanted.insert(name, serde_json::to_vec(object)?);
            }
        }
        for (name, content) in &wanted {
            if self.written.get(name) != Some(content) {
                self.write(name, content)?;
            }
        }
        for name in self.written.keys().filter(|name| !wanted.contains_key(*name)) {
            match std::fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.written = wanted;
        Ok(())
    }

    /// A reader sees the old content or the new one, never a part.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!(".{name}.new"));
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(content)?;
        drop(file);
        std::fs::rename(temporary, self.path.join(name))
    }
}

/// `pod.ballot.web-1.json`; `_` stands for no namespace.
fn file_name(object: &Value) -> Option<String> {
    let kind = object.get("kind")?.as_str()?.to_ascii_lowercase();
    let metadata = object.get("metadata")?;
    let name = metadata.get("name")?.as_str()?;
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or("_");
    Some(format!("{kind}.{namespace}.{name}.json"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_directory_holds_exactly_the_objects() {
        let path = std::env::temp_dir().join(format!("ringmail-registry-{}", crate::ids::suffix()));
        let mut dir = RegistryDir::create(&path).unwrap();
        let pod = json!({"kind": "Pod", "metadata": {"namespace": "a", "name": "p"}, "x": 1});
        let namespace = json!({"kind": "Namespace", "metadata": {"name": "a"}});
        let files = || {
            let mut names: Vec<_> = std::fs::read_dir(&path)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        dir.sync([&pod, &namespace].into_iter()).unwrap();
        assert_eq!(files(), ["namespace._.a.json", "pod.a.p.json"]);
        let changed = json!({"kind": "Pod", "metadata": {"namespace": "a", "name": "p"}, "x": 2});
        dir.sync([&changed].into_iter()).unwrap();
        assert_eq!(files(), ["pod.a.p.json"]);
        let read: Value = serde_json::from_slice(&std::fs::read(path.join("pod.a.p.json")).unwrap()).unwrap();
        assert_eq!(read, changed);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
