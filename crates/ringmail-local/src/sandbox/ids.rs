//! Which uids and gids exist in the mesh, and how they come to exist in its user namespaces.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, User};
use serde::{Deserialize, Serialize};

use super::error::SandboxError;

/// Whether an ordinary user's mesh is to have more than one id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdChoice {
    /// The ranges of `/etc/subuid` and `/etc/subgid`, where there are any and `newuidmap` is installed.
    #[default]
    Ranges,
    /// The user's own id alone, even where there are ranges.
    Single,
}

/// The uids and gids that exist in a user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// First uid and how many, ascending.
    pub uids: Vec<(u32, u32)>,
    /// First gid and how many, ascending.
    pub gids: Vec<(u32, u32)>,
    /// Whether supplementary groups may be set.
    pub groups: bool,
}

impl Ids {
    /// Those of the calling process's user namespace.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            uids: read_map(Path::new("/proc/self/uid_map"))?,
            gids: read_map(Path::new("/proc/self/gid_map"))?,
            groups: fs::read_to_string("/proc/self/setgroups")?.trim() == "allow",
        })
    }

    /// Whether processes can have this uid. Where there is a single one, an application can have any (it is an alias).
    pub fn has_uid(&self, uid: u32) -> bool {
        contains(&self.uids, uid)
    }

    /// Whether processes can have this gid; see [`Self::has_uid`].
    pub fn has_gid(&self, gid: u32) -> bool {
        contains(&self.gids, gid)
    }

    /// How many uids there are.
    pub fn uid_count(&self) -> u32 {
        count(&self.uids)
    }

    /// How many gids there are.
    pub fn gid_count(&self) -> u32 {
        count(&self.gids)
    }

    /// Whether this is the machine's own user namespace, in which every id exists.
    pub fn is_initial(&self) -> bool {
        self.uids == [(0, u32::MAX)]
    }

    /// The map of a namespace nested in this one: the same ids, or, where there is one only, `uid` as its alias.
    pub(crate) fn nested(&self, uid: u32, gid: u32) -> NestedMap {
        NestedMap { uids: lines(&self.uids, uid), gids: lines(&self.gids, gid) }
    }
}

fn contains(ranges: &[(u32, u32)], id: u32) -> bool {
    ranges.iter().any(|&(start, count)| id >= start && id - start < count)
}

fn count(ranges: &[(u32, u32)]) -> u32 {
    ranges.iter().fold(0, |sum, range| sum.saturating_add(range.1))
}

fn lines(ranges: &[(u32, u32)], alias: u32) -> String {
    match ranges {
        [(start, 1)] => format!("{alias} {start} 1\n"),
        ranges => ranges
            .iter()
            .fold(String::new(), |lines, (start, count)| lines + &format!("{start} {start} {count}\n")),
    }
}

fn read_map(path: &Path) -> io::Result<Vec<(u32, u32)>> {
    let text = fs::read_to_string(path)?;
    let mut ranges: Vec<(u32, u32)> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let start = fields.next()?.parse().ok()?;
            Some((start, fields.nth(1)?.parse().ok()?))
        })
        .collect();
    ranges.sort_unstable();
    Ok(ranges)
}

/// What is written to `/proc/PID/uid_map` and `gid_map`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NestedMap {
    uids: String,
    gids: String,
}

impl NestedMap {
    /// Maps the ids of a process that has just made its user namespace; the caller has `CAP_SETUID` and `CAP_SETGID` in
    /// the parent namespace.
    pub(crate) fn write(&self, pid: u32) -> io::Result<()> {
        fs::write(format!("/proc/{pid}/gid_map"), &self.gids)?;
        fs::write(format!("/proc/{pid}/uid_map"), &self.uids)
    }
}

/// Maps the calling user's ids into the user namespace that process `pid`, a child of the caller, has just made: the user
/// is root in there; ids from 1 on are the user's ranges. Says why when there are none.
pub(crate) fn map_user(pid: u32, choice: IdChoice) -> Result<Option<String>, SandboxError> {
    let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
    let mut note = None;
    let mut done = (false, false);
    if choice == IdChoice::Ranges {
        let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        let ranges = subordinate("/etc/subuid", name.as_deref(), uid).zip(subordinate(
            "/etc/subgid",
            name.as_deref(),
            uid,
        ));
        match ranges {
            None => {
                note = Some(format!("uid {uid} has no range in /etc/subuid and /etc/subgid: one id for all"));
            }
            Some((uids, gids)) => {
                let mapped = helper("newgidmap", pid, gid, gids)
                    .inspect(|()| done.1 = true)
                    .and_then(|()| helper("newuidmap", pid, uid, uids).inspect(|()| done.0 = true));
                note = mapped.err().map(|reason| format!("{reason}: one id for all"));
            }
        }
    }
    let refused = |reason: io::Error| SandboxError::IdMap { uid, reason: reason.to_string() };
    if !done.1 {
        fs::write(format!("/proc/{pid}/setgroups"), "deny").map_err(refused)?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("0 {gid} 1\n")).map_err(refused)?;
    }
    if !done.0 {
        fs::write(format!("/proc/{pid}/uid_map"), format!("0 {uid} 1\n")).map_err(refused)?;
    }
    Ok(note)
}

/// The largest range of a user in `/etc/subuid` or `/etc/subgid`.
fn subordinate(path: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    largest_range(&fs::read_to_string(path).ok()?, name, uid)
}

fn largest_range(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    let id = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let start = fields.next()?.parse().ok()?;
            let count = fields.next()?.parse::<u32>().ok()?;
            ((Some(owner) == name || owner == id) && count > 0).then_some((start, count))
        })
        .max_by_key(|range| range.1)
}

/// `newuidmap` or `newgidmap`, which may map ranges that the kernel would not let the user map.
fn helper(program: &str, pid: u32, own: u32, (start, count): (u32, u32)) -> Result<(), String> {
    // Beyond 65536 ids a map gains nothing: files and programs know 16 bits.
    let arguments = [pid, 0, own, 1, 1, start, count.min(65_536)].map(|number| number.to_string());
    let output = Command::new(program)
        .args(&arguments)
        .output()
        .map_err(|error| format!("`{program}` cannot be started ({error})"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{program} {}` failed: {}", arguments.join(" "), said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_a_user_is_found_by_name_or_number() {
        let text = "alice:100000:65536\n1001:300000:10\nbob:200000:1000\nbob:500000:65536\n\nbroken\n";
        assert_eq!(largest_range(text, Some("alice"), 7), Some((100_000, 65_536)));
        assert_eq!(largest_range(text, Some("bob"), 7), Some((500_000, 65_536)));
        assert_eq!(largest_range(text, None, 1001), Some((300_000, 10)));
        assert_eq!(largest_range(text, Some("carol"), 7), None);
    }

    #[test]
    fn a_nested_namespace_keeps_the_ids_and_a_single_one_takes_the_name_asked_for() {
        let ranges = Ids { uids: vec![(0, 1), (1, 65_536)], gids: vec![(0, 1), (1, 65_536)], groups: true };
        assert_eq!(ranges.nested(33, 33).uids, "0 0 1\n1 1 65536\n");
        assert!(ranges.has_uid(33) && !ranges.has_uid(70_000));
        let single = Ids { uids: vec![(0, 1)], gids: vec![(0, 1)], groups: false };
        assert_eq!(single.nested(999, 33), NestedMap { uids: "999 0 1\n".into(), gids: "33 0 1\n".into() });
        assert!(!single.is_initial());
    }
}
