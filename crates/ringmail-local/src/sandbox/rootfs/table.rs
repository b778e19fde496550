//! The mounts of this process's namespace, as `/proc/self/mountinfo` lists them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) at: PathBuf,
    pub(crate) kind: String,
}

/// All mounts, in the order in which they were made.
#[derive(Clone, Debug)]
pub(crate) struct MountTable(Vec<Entry>);

/// File systems which are nobody's files, or which mount themselves when looked at.
const UNSHOWN: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// What container engines keep for their own containers: many mounts, of no use to ours.
const ENGINES: &[&str] =
    &["/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet"];

impl MountTable {
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    pub(crate) fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| {
                    let (before, after) = line.split_once(" - ")?;
                    Some(Entry {
                        at: unescape(before.split(' ').nth(4)?),
                        kind: after.split(' ').next()?.to_owned(),
                    })
                })
                .collect(),
        )
    }

    /// Mount points strictly below a directory.
    pub(crate) fn below<'a>(&'a self, directory: &'a Path) -> impl Iterator<Item = &'a Entry> {
        self.0.iter().filter(move |entry| entry.at != directory && entry.at.starts_with(directory))
    }

    pub(crate) fn is_mount_point(&self, path: &Path) -> bool {
        self.0.iter().any(|entry| entry.at == path)
    }

    /// Mounts that a container sees where the machine has them: those with files, parents first, without those that
    /// come along with a parent.
    pub(crate) fn shown(&self) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self
            .0
            .iter()
            .filter(|entry| !UNSHOWN.contains(&entry.kind.as_str()))
            .filter(|entry| !belongs_to_an_engine(&entry.at))
            .collect();
        entries.sort_by(|a, b| a.at.cmp(&b.at));
        entries.dedup_by(|a, b| a.at == b.at);
        entries
    }
}

pub(crate) fn belongs_to_an_engine(path: &Path) -> bool {
    ENGINES.iter().any(|engine| path.starts_with(engine))
}

/// Space, tab, newline and backslash come as octal.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        let octal = bytes
            .get(index + 1..index + 4)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        path.push(octal.unwrap_or(byte));
        index += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 27 0:21 / /proc rw shared:3 - proc proc rw
28 27 8:2 / /mnt/a\\040b rw master:1 - ext4 /dev/sdb rw
29 28 8:3 / /mnt/a\\040b/c rw - vfat /dev/sdc rw
30 27 0:5 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
31 27 0:6 / /net rw - autofs auto rw
";

    #[test]
    fn mount_points_are_read_with_their_escapes_and_optional_fields() {
        let table = MountTable::parse(TEXT);
        assert!(table.is_mount_point(Path::new("/mnt/a b")));
        let below: Vec<_> = table.below(Path::new("/mnt")).map(|entry| entry.kind.as_str()).collect();
        assert_eq!(below, ["ext4", "vfat"]);
    }

    #[test]
    fn only_mounts_with_files_are_shown() {
        let table = MountTable::parse(TEXT);
        let shown: Vec<_> = table.shown().iter().map(|entry| entry.at.display().to_string()).collect();
        assert_eq!(shown, ["/", "/mnt/a b", "/mnt/a b/c"]);
    }
}
