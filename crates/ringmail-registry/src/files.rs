//! A registry filled from a directory of Kubernetes JSON.
//!
//! One object a file, named `<kind in lower case>.<namespace, or _ where it has none>.<name>.json`, written by
//! renaming it into place and removed to delete the object. Names that start with a dot or end otherwise are left
//! alone.
//!
//! A file that cannot be read or parsed is logged with its name; its object stays as it was, and all others go on.
//! When the directory vanishes, everything stays as it was until it is back: losing sight of the objects is no
//! reason to break the connections between them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::object::{Object, ObjectRef};
use crate::parse::ObjectError;
use crate::registry::Registry;
use crate::watch_dir::WatchDir;

/// How often the directory is looked at even if the kernel tells of no change.
pub const RESYNC: Duration = Duration::from_secs(1);

/// More than a step of the clock that stamps files: a jiffy, at most 10 ms.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// A larger file is no single object: Kubernetes' own limit for one is 1.5 MiB.
pub const MAX_FILE: u64 = 4 << 20;

/// A directory of objects that feeds a registry.
#[derive(Debug)]
pub struct FileSource {
    directory: PathBuf,
    registry: Registry,
    seen: BTreeMap<String, Seen>,
    /// Whether the directory could be read the last time: its loss is logged once.
    readable: bool,
}

/// Why a file is no object.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be read.
    #[error("RM1601: {}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It is larger than any single object.
    #[error("RM1601: {}: {length} bytes are too many for one object (at most {MAX_FILE})", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// It is no JSON: perhaps not yet written to its end. Write beside it and rename into place.
    #[error("RM1601: {}: no JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It is JSON, but no object that can be kept.
    #[error("{}: {source}", path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// Which field and why.
        source: ObjectError,
    },
    /// Its name promises another object.
    #[error("RM1603: {}: the name promises {promised}, the file holds {found}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// What the name says.
        promised: String,
        /// What the file says.
        found: String,
    },
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    /// The object that the file held when it was last good.
    object: Option<ObjectRef>,
}

/// Tells one state of a file from another without reading it. The kernel's clock for files moves in steps: two states
/// within one step look the same, so a file that changed just now is `None`, which equals no later state.
#[derive(Debug)]
struct Stamp(Option<(u64, u64, Duration)>);

impl Stamp {
    fn of(metadata: &Metadata, now: SystemTime) -> Self {
        let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
        let changed = Duration::new(seconds, u32::try_from(metadata.ctime_nsec()).unwrap_or_default());
        let age = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().checked_sub(changed);
        Self(age.is_some_and(|age| age > CLOCK_STEP).then_some((metadata.ino(), metadata.len(), changed)))
    }

    fn same(&self, other: &Self) -> bool {
        self.0.is_some() && self.0 == other.0
    }
}

impl FileSource {
    /// Reads `directory` into `registry`.
    pub fn new(directory: impl Into<PathBuf>, registry: Registry) -> Self {
        Self { directory: directory.into(), registry, seen: BTreeMap::new(), readable: true }
    }

    /// Reads the directory and follows it, for ever.
    pub async fn run(mut self) {
        let mut watch = WatchDir::new(self.directory.clone(), RESYNC);
        loop {
            watch.arm();
            let (source, result) = match tokio::task::spawn_blocking(move || {
                let result = self.read();
                (self, result)
            })
            .await
            {
                Ok(done) => done,
                Err(error) => {
                    tracing::error!("the registry's directory is followed no longer: {error}");
                    return;
                }
            };
            self = source;
            self.report(&result);
            if result.is_ok() && !self.registry.is_synced() {
                tracing::info!(
                    "registry synced: {} objects in {}",
                    self.seen.len(),
                    self.directory.display()
                );
                self.registry.mark_synced();
            }
            watch.changed().await;
        }
    }

    /// Looks at the directory once and brings the registry up to date; bad files are logged and skipped.
    pub fn read(&mut self) -> io::Result<()> {
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let Some(promise) = promised(&name) else { continue };
            // Followed through symbolic links, as mounted volumes use them.
            let path = entry.path();
            let metadata = match fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => metadata,
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // It is there, and not seeing it is no reason to forget it.
                Err(source) => {
                    tracing::error!("{}; the object stays as it was", FileError::Read { path, source });
                    present.insert(name);
                    continue;
                }
            };
            present.insert(name.clone());
            let stamp = Stamp::of(&metadata, SystemTime::now());
            if self.seen.get(&name).is_some_and(|seen| seen.stamp.same(&stamp)) {
                continue;
            }
            let kept = self.seen.remove(&name).and_then(|seen| seen.object);
            let object = self.take(&path, &promise, metadata.len(), kept);
            self.seen.insert(name, Seen { stamp, object });
        }
        // A listing may miss an entry that is replaced while it is made: only what cannot be found either is gone.
        let lost = |name: &&String| {
            let found = || fs::symlink_metadata(self.directory.join(name));
            !present.contains(*name) && found().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let gone: Vec<_> = self.seen.keys().filter(lost).cloned().collect();
        for object in
            gone.into_iter().filter_map(|name| self.seen.remove(&name)).filter_map(|seen| seen.object)
        {
            self.registry.delete(&object);
        }
        Ok(())
    }

    /// Applies one file; what it holds, or what it held when it was last good.
    fn take(
        &self,
        path: &Path,
        promise: &Promise,
        length: u64,
        kept: Option<ObjectRef>,
    ) -> Option<ObjectRef> {
        match load(path, promise, length) {
            Ok(Some(object)) => {
                let reference = object.reference();
                self.registry.apply(object);
                Some(reference)
            }
            Ok(None) => {
                if let Some(object) = kept {
                    self.registry.delete(&object);
                }
                None
            }
            Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => kept,
            Err(error) => {
                tracing::error!(
                    "{error}; {}",
                    if kept.is_some() { "the object stays as it was" } else { "it is left out" }
                );
                kept
            }
        }
    }

    fn report(&mut self, result: &io::Result<()>) {
        match result {
            Err(error) if self.readable => {
                let directory = self.directory.display();
                tracing::error!(
                    "RM1604: the registry's directory {directory} cannot be read: {error}; all objects stay as they were"
                );
            }
            Ok(()) if !self.readable => {
                tracing::info!("the registry's directory {} is back", self.directory.display());
            }
            _ => {}
        }
        self.readable = result.is_ok();
    }
}

/// What a file's name says that it holds.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    kind: String,
    namespace: Option<String>,
    name: String,
}

fn promised(file: &str) -> Option<Promise> {
    let stem = file.strip_suffix(".json").filter(|_| !file.starts_with('.'))?;
    let (kind, rest) = stem.split_once('.')?;
    let (namespace, name) = rest.split_once('.')?;
    Some(Promise {
        kind: kind.to_owned(),
        namespace: (namespace != "_").then(|| namespace.to_owned()),
        name: name.to_owned(),
    })
}

fn load(path: &Path, promise: &Promise, length: u64) -> Result<Option<Object>, FileError> {
    if length > MAX_FILE {
        return Err(FileError::TooLarge { path: path.to_owned(), length });
    }
    let bytes = fs::read(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    let value =
        serde_json::from_slice(&bytes).map_err(|source| FileError::Json { path: path.to_owned(), source })?;
    let Some(object) =
        Object::from_json(value).map_err(|source| FileError::Object { path: path.to_owned(), source })?
    else {
        return Ok(None);
    };
    let found = held(&object);
    if found == *promise {
        return Ok(Some(object));
    }
    let say = |promise: &Promise| match &promise.namespace {
        Some(namespace) => format!("{} {namespace}/{}", promise.kind, promise.name),
        None => format!("{} {}", promise.kind, promise.name),
    };
    Err(FileError::Name { path: path.to_owned(), promised: say(promise), found: say(&found) })
}

fn held(object: &Object) -> Promise {
    let (kind, namespace, name) = match object.reference() {
        ObjectRef::Pod(name) => ("pod".into(), Some(name.namespace), name.name),
        ObjectRef::Service(name) => ("service".into(), Some(name.namespace), name.name),
        ObjectRef::Namespace(name) => ("namespace".into(), None, name),
        ObjectRef::Node(name) => ("node".into(), None, name),
        ObjectRef::Controller(kind, name) => (kind, Some(name.namespace), name.name),
    };
    Promise {
        kind: kind.to_string(),
        namespace: namespace.map(|text| text.to_string()),
        name: name.to_string(),
    }
}
