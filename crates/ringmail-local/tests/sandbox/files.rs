//! What containers see of the machine's files, and what becomes of their writes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ringmail_local::sandbox::{Mount, Source, mount_tmpfs, unmount};

use crate::world::{Case, World, inside};

pub(crate) fn cases() -> Vec<Case> {
    inside![
        each_container_starts_with_fresh_directories_and_its_writes_vanish,
        mounts_appear_where_the_specification_says,
        a_mount_inside_another_volume_appears_there,
        a_symbolic_link_in_a_volume_does_not_lead_a_mount_out,
        contradictory_mounts_are_refused_with_the_field,
        what_the_machine_keeps_is_read_only,
        the_state_of_the_mesh_is_not_seen_unless_mounted,
        directories_of_the_machines_root_are_writable_where_asked,
        programs_can_write_where_they_are_used_to,
        name_resolution_is_the_meshs,
        a_read_only_root_takes_writes_in_mounts_only,
        writes_are_bounded_where_asked,
        memory_is_shared_by_the_containers_that_mount_it,
        nothing_of_the_machines_mounts_can_be_uncovered,
        the_working_directory_is_made,
    ]
}

fn bind(target: &str, path: PathBuf, read_only: bool) -> Mount {
    Mount { target: target.into(), source: Source::Bind { path, read_only } }
}

/// A directory of the mesh's state, as the engine makes volumes.
fn volume(world: &World, name: &str) -> PathBuf {
    let path = world.facts.state_dir.join(name);
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    path
}

async fn each_container_starts_with_fresh_directories_and_its_writes_vanish(world: World) {
    let pod = world.pod().await;
    let look = "ls -A /tmp /dev/shm; ls -A /run | grep -v lock; \
                ls -d /etc/ringmail-x /usr/ringmail-x /ringmail-x 2>/dev/null; true";
    let write = "touch /tmp/a /run/b /dev/shm/c /etc/ringmail-x /usr/ringmail-x /ringmail-x && rm -r /opt";
    let script = format!("{look}; {write} && ls /tmp /etc/ringmail-x");
    let expected = "/dev/shm:\n\n/tmp:\n/etc/ringmail-x\n\n/tmp:\na";
    for _ in 0..2 {
        let (output, exit) = world.run(&pod, world.sh(&script.replace(" && rm -r /opt", ""))).await;
        assert_eq!((output.trim_end(), exit.code), (expected, 0));
    }
    assert!(!Path::new("/etc/ringmail-x").exists());
    assert!(Path::new("/usr/bin").exists());
}

async fn mounts_appear_where_the_specification_says(world: World) {
    let pod = world.pod().await;
    let (readable, writable) = (volume(&world, "readable"), volume(&world, "writable"));
    fs::write(readable.join("file"), "content").unwrap();
    fs::write(world.facts.state_dir.join("single"), "single").unwrap();
    let file = |target: &str, content: &str, mode| Mount {
        target: target.into(),
        source: Source::File { content: content.as_bytes().to_vec(), mode },
    };
    let mut spec = world.sh("cat /var/lib/ringmail-test/deep/file /etc/ringmail/conf /etc/hostname-of-test \
         /var/run/secrets/token /usr/lib/ringmail-test/single && stat -c %a /etc/ringmail/conf && \
         stat -c %a /scratch && touch /scratch/x && echo new > /data/dir/out && \
         ! touch /var/lib/ringmail-test/deep/new && cat /usr/share/doc/ringmail-test");
    spec.mounts = vec![
        bind("/var/lib/ringmail-test/deep", readable.clone(), true),
        bind("/data/dir", writable.clone(), false),
        bind("/usr/lib/ringmail-test/single", world.facts.state_dir.join("single"), true),
        Mount { target: "/scratch".into(), source: Source::Tmpfs { bytes: Some(1 << 20) } },
        file("/etc/ringmail/conf", "conf", 0o640),
        file("/etc/hostname-of-test", "name", 0o644),
        // A link to /run on most machines.
        file("/var/run/secrets/token", "token", 0o600),
        file("/usr/share/doc/ringmail-test", "doc", 0o644),
    ];
    let output = world.output(&pod, spec.clone()).await;
    assert_eq!(
        output,
        "contentconfnametokensingle640\n777\ntouch: cannot touch \
         '/var/lib/ringmail-test/deep/new': Read-only file system\ndoc"
    );
    assert_eq!(fs::read_to_string(writable.join("out")).unwrap(), "new\n");

    // An unprivileged user of the container can use them as well.
    "touch /scratch/y /data/dir/z && id -u && cat /etc/ringmail/conf".clone_into(&mut spec.argv[2]);
    spec.uid = Some(1234);
    assert_eq!(world.output(&pod, spec).await, "1234\nconf");
}

async fn a_mount_inside_another_volume_appears_there(world: World) {
    let pod = world.pod().await;
    let (outer, inner) = (volume(&world, "outer"), volume(&world, "inner"));
    fs::write(inner.join("file"), "inner").unwrap();
    let mut spec = world.sh("cat /a/b/c/file /a/conf");
    spec.mounts = vec![
        bind("/a/b/c", inner, true),
        Mount { target: "/a/conf".into(), source: Source::File { content: b" conf".to_vec(), mode: 0o644 } },
        bind("/a", outer.clone(), false),
    ];
    assert_eq!(world.output(&pod, spec).await, "inner conf");
    // Mount points are left behind in the volume, as everywhere; contents are not.
    assert!(fs::read_dir(outer.join("b/c")).unwrap().next().is_none());
    assert_eq!(fs::read(outer.join("conf")).unwrap(), b"");
}

async fn a_symbolic_link_in_a_volume_does_not_lead_a_mount_out(world: World) {
    let pod = world.pod().await;
    let outer = volume(&world, "outer");
    let victim = volume(&world, "victim");
    symlink(&victim, outer.join("link")).unwrap();
    let mut spec = world.sh("true");
    spec.mounts = vec![
        bind("/a", outer.clone(), false),
        Mount { target: "/a/link/file".into(), source: Source::File { content: Vec::new(), mode: 0o644 } },
    ];
    let error = world.try_run(&pod, spec.clone()).await.unwrap_err();
    assert_eq!(error.code(), "RM1507");
    assert!(error.to_string().contains("`/a/link` is a symbolic link in a volume"), "{error}");
    assert!(fs::read_dir(&victim).unwrap().next().is_none());

    fs::remove_file(outer.join("link")).unwrap();
    fs::create_dir(outer.join("link")).unwrap();
    world.output(&pod, spec).await;
}

async fn contradictory_mounts_are_refused_with_the_field(world: World) {
    let pod = world.pod().await;
    let source = volume(&world, "volume");
    let mut spec = world.sh("true");
    for (mounts, expected) in [
        (vec![bind("data", source.clone(), true)], "mounts[0].target: `data` is not an absolute path"),
        (
            vec![bind("/data", source.clone(), true), bind("/x/../data", source.clone(), false)],
            "mounts: two mounts at `/data`",
        ),
        (vec![bind("/proc/sys", source.clone(), true)], "mounts: nothing can be mounted at `/proc/sys`"),
        (vec![bind("/", source.clone(), true)], "mounts: nothing can be mounted at `/`"),
        (
            vec![bind("/data", source.join("missing"), true)],
            "mount at `/data`: looking at its source `/dev/shm/volume/missing`: No such file or directory \
             (os error 2)",
        ),
    ] {
        spec.mounts = mounts;
        let error = world.try_run(&pod, spec.clone()).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

async fn what_the_machine_keeps_is_read_only(world: World) {
    let pod = world.pod().await;
    let output = world
        .output(
            &pod,
            world.sh(
                "for file in /home/ringmail-x /root/ringmail-x /proc/sys/kernel/hostname /proc/sysrq-trigger \
                 /sys/kernel/ringmail-x; do (echo x > $file) 2>/dev/null && echo wrote $file; done; \
                 test -c /dev/null && test ! -e /dev/kmsg && ls /sys/class/net",
            ),
        )
        .await;
    assert_eq!(output, "eth0\nlo");
}

async fn the_state_of_the_mesh_is_not_seen_unless_mounted(world: World) {
    let pod = world.pod().await;
    let tokens = volume(&world, "tokens");
    fs::write(tokens.join("token"), "secret token").unwrap();
    let hidden = &world.facts.hide[0];
    assert_eq!(fs::read_to_string(hidden.join("control")).unwrap(), "secret");
    let look = format!(
        "cat {0}/tokens/token {1}/control /tokens/token; grep -rs 'secret token' /dev/shm /run /tmp /mnt; \
         cat /proc/1/environ /proc/1/root/etc/hostname; true",
        world.facts.state_dir.display(),
        hidden.display()
    );
    let mut spec = world.sh(&format!("({look}) 2>/dev/null"));
    assert_eq!(world.output(&pod, spec.clone()).await, "");
    spec.mounts = vec![bind("/tokens", tokens, true)];
    assert_eq!(world.output(&pod, spec).await, "secret token");
}

async fn directories_of_the_machines_root_are_writable_where_asked(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("ls -A /usr/lib; touch /usr/lib/x /usr/lib/ringmail-test/y && ls -A /usr/lib");
    spec.uid = Some(1234);
    let (output, exit) = world.run(&pod, spec.clone()).await;
    assert_ne!(exit.code, 0, "{output}");
    // Programs find their libraries in there; the shell's are loaded already.
    spec.writable = vec!["/usr/share".into(), "/usr/share/ringmail-test".into()];
    "ls -A /usr/share; touch /usr/share/x /usr/share/ringmail-test/y && ls -A /usr/share"
        .clone_into(&mut spec.argv[2]);
    assert_eq!(world.output(&pod, spec).await, "ringmail-test\nringmail-test\nx");
}

async fn programs_can_write_where_they_are_used_to(world: World) {
    let pod = world.pod().await;
    let directories = "/var/log /var/lib /var/cache /var/lib/dpkg";
    let script =
        format!("for d in {directories}; do touch $d/ringmail-x && echo $d; done; ls /var/lib/dpkg/status");
    let output = world.output(&pod, world.sh(&script)).await;
    assert_eq!(output, format!("{}\n/var/lib/dpkg/status", directories.replace(' ', "\n")));
    assert!(!Path::new("/var/log/ringmail-x").exists());
    if world.facts.is_rootless() {
        // Logs of the machine are of no use, and could not be written to.
        let output =
            world.output(&pod, world.sh("find /var/log -type f | wc -l; test -d /var/log/apt")).await;
        assert_eq!(output, "0");
        let mut spec = world.sh(&script);
        spec.uid = Some(1234);
        world.output(&pod, spec).await;
    }
}

async fn name_resolution_is_the_meshs(world: World) {
    let pod = world.pod().await;
    let output = world
        .output(&pod, world.sh("cat /etc/resolv.conf /etc/hosts; grep hosts: /etc/nsswitch.conf; hostname; cat /etc/hostname"))
        .await;
    assert_eq!(output, "nameserver 10.143.0.10\n127.0.0.1 localhost\nhosts: files dns\npod\npod");
}

async fn a_read_only_root_takes_writes_in_mounts_only(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("for file in /etc/x /usr/x /tmp/x /run/x /x /data/x /dev/shm/x; do \
         (echo x > $file) 2>/dev/null && echo wrote $file; done; true");
    spec.mounts = vec![bind("/data", volume(&world, "data"), false)];
    spec.read_only_root = true;
    assert_eq!(world.output(&pod, spec.clone()).await, "wrote /data/x\nwrote /dev/shm/x");
    spec.read_only_root = false;
    let output = world.output(&pod, spec).await;
    assert_eq!(output.lines().count(), 7, "{output}");
}

async fn writes_are_bounded_where_asked(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("head -c 3000000 /dev/zero > /tmp/large && stat -c %s /tmp/large");
    assert_eq!(world.output(&pod, spec.clone()).await, "3000000");
    spec.scratch_bytes = Some(1 << 20);
    let (output, exit) = world.run(&pod, spec).await;
    assert!(exit.code != 0 && output.contains("No space left"), "{output}");
}

async fn memory_is_shared_by_the_containers_that_mount_it(world: World) {
    let pod = world.pod().await;
    let shared = volume(&world, "shared");
    mount_tmpfs(&shared, Some(1 << 20), 0o777).unwrap();
    let mut spec =
        world.sh("echo from-one > /shared/file; ! head -c 2000000 /dev/zero > /shared/large 2>/dev/null");
    spec.mounts = vec![bind("/shared", shared.clone(), false)];
    world.output(&pod, spec.clone()).await;
    "cat /shared/file".clone_into(&mut spec.argv[2]);
    assert_eq!(world.output(&pod, spec).await, "from-one");
    unmount(&shared).unwrap();
    assert!(!shared.join("file").exists());
}

async fn nothing_of_the_machines_mounts_can_be_uncovered(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh(
        "for path in /etc/hosts /proc/sys /proc /dev/shm /home /usr / /sys; do \
         umount $path 2>/dev/null && echo uncovered $path; umount -l $path 2>/dev/null && echo uncovered $path; \
         done; for path in /proc/sys /home /sys; do \
         mount -o remount,rw,bind $path 2>/dev/null && echo writable $path; done; true",
    );
    assert_eq!(world.output(&pod, spec.clone()).await, "");
    // Nor with all rights in its own user namespace.
    spec.add_capabilities = vec!["ALL".to_owned()];
    assert_eq!(world.output(&pod, spec).await, "");
}

async fn the_working_directory_is_made(world: World) {
    let pod = world.pod().await;
    let mut spec = world.sh("pwd");
    spec.cwd = "/srv/ringmail-test/work".into();
    spec.uid = Some(1234);
    assert_eq!(world.output(&pod, spec.clone()).await, "/srv/ringmail-test/work");
    spec.cwd = "/etc/passwd".into();
    let error = world.try_run(&pod, spec.clone()).await.unwrap_err();
    assert_eq!(error.code(), "RM1510", "{error}");
    spec.cwd = "relative".into();
    assert_eq!(
        world.try_run(&pod, spec).await.unwrap_err().to_string(),
        "cwd: `relative` is not an absolute path"
    );
}
