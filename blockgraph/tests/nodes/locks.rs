//! Who may use an image at the same time: the same answers, and the same lock bytes, as the real qemu-storage-daemon.

use crate::support;
use blockgraph::driver::file::{Cache, Locking};
use blockgraph::driver::raw::Window;
use blockgraph::graph::open::Child;
use blockgraph::graph::perm::{Attachment, Perms, Wants, attach};
use blockgraph::graph::{Access, Sharing};
use blockgraph::{Current, Driver, NodeId};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use support::{file, file_options, file_with, image, named, open, raw};

const QSD: &str = "qemu-storage-daemon";
const WINDOW: Window = Window {
    offset_bytes: 0,
    size_bytes: Some(65536),
};

/// A real daemon in the background, ended with the test.
struct Daemon(String);

impl Daemon {
    /// `None`, with a line that says so, where it is not installed.
    fn start(dir: &Path, args: &[String]) -> Option<Daemon> {
        let pidfile = dir.join("pid");
        let mut command = Command::new(QSD);
        command
            .args(args)
            .arg("--daemonize")
            .arg("--pidfile")
            .arg(&pidfile);
        let Ok(status) = command.stderr(Stdio::null()).status() else {
            println!("skipped: no {QSD}");
            return None;
        };
        assert!(status.success(), "{args:?}");
        let pid = std::fs::read_to_string(pidfile).expect("a pid");
        Some(Daemon(pid.trim().to_owned()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let killed = Command::new("kill").arg("-9").arg(&self.0).status();
        assert!(killed.expect("kill runs").success());
        while Path::new("/proc").join(&self.0).exists() {
            std::thread::yield_now();
        }
    }
}

/// The bytes that anybody has locked of the image.
fn locked(path: &Path) -> Vec<u64> {
    let inode = std::fs::metadata(path).expect("there").ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").expect("read");
    let mut bytes = Vec::new();
    for line in locks.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, _, _, _, file, from, to] = words[..]
            && file.rsplit(':').next() == Some(&inode)
        {
            let number = |word: &str| word.parse::<u64>().expect("a byte");
            bytes.extend(number(from)..=number(to));
        }
    }
    bytes.sort_unstable();
    bytes
}

/// What qemu-img says to the image: per command, how it ended and why.
fn verdicts(path: &Path) -> Vec<(String, Option<i32>, String)> {
    let commands = [
        "info -f raw",
        "info -U -f raw",
        "map -f raw",
        "resize -f raw",
        "bench -c 1 -f raw",
        "bench -w -c 1 -f raw",
        "convert -f raw -O raw",
    ];
    let run = |line: &str| {
        let mut command = Command::new("qemu-img");
        command.args(line.split(' ')).arg(path);
        match line {
            "resize -f raw" => drop(command.arg("1M")),
            "convert -f raw -O raw" => drop(command.arg("/dev/null")),
            _ => {}
        }
        let output = command.output().expect("qemu-img runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (line.to_owned(), output.status.code(), said)
    };
    commands.into_iter().map(run).collect()
}

/// A graph as a user would set it up, and its user if there is one.
struct Case {
    name: &'static str,
    /// What the real daemon is told about node `f`, and which node is exported.
    qsd: &'static [&'static str],
    export: Option<(&'static str, &'static str)>,
    /// The same here.
    window: Option<Window>,
    access: Access,
    sharing: Sharing,
    wants: Option<Wants>,
}

const IDLE: Case = Case {
    name: "an idle file",
    qsd: &["driver=file,node-name=f"],
    export: None,
    window: None,
    access: Access::ReadWrite,
    sharing: Sharing::Asked,
    wants: None,
};

fn cases() -> Vec<Case> {
    const RAW: &str = "driver=raw,node-name=r,file=f";
    const SIZED: &str = "driver=raw,node-name=r,file=f,size=65536";
    const FILE: &str = "driver=file,node-name=f";
    let (whole, part) = (Some(Window::default()), Some(WINDOW));
    let case = |name, qsd, export, window, wants| Case {
        name,
        qsd,
        export,
        window,
        wants,
        ..IDLE
    };
    let (read, write) = (Some(Wants::READ), Some(Wants::READ_WRITE));
    vec![
        IDLE,
        case("an idle raw", &[FILE, RAW], None, whole, None),
        case("an idle window", &[FILE, SIZED], None, part, None),
        case("a reader", &[FILE], Some(("f", "off")), None, read),
        case("a writer", &[FILE], Some(("f", "on")), None, write),
        case(
            "raw, a reader",
            &[FILE, RAW],
            Some(("r", "off")),
            whole,
            read,
        ),
        case(
            "raw, a writer",
            &[FILE, RAW],
            Some(("r", "on")),
            whole,
            write,
        ),
        case(
            "window, reader",
            &[FILE, SIZED],
            Some(("r", "off")),
            part,
            read,
        ),
        case(
            "window, writer",
            &[FILE, SIZED],
            Some(("r", "on")),
            part,
            write,
        ),
        Case {
            name: "forced sharing under a window",
            qsd: &["driver=file,node-name=f,read-only=on,force-share=on", SIZED],
            export: Some(("r", "off")),
            window: part,
            access: Access::ReadOnly,
            sharing: Sharing::Forced,
            wants: read,
        },
    ]
}

fn qsd_args(dir: &Path, path: &Path, case: &Case) -> Vec<String> {
    let mut args = Vec::new();
    for node in case.qsd {
        let file = match node.starts_with("driver=file") {
            true => format!(",filename={}", path.display()),
            false => String::new(),
        };
        args.extend(["--blockdev".into(), format!("{node}{file}")]);
    }
    if let Some((node, writable)) = case.export {
        let socket = dir.join("socket");
        args.extend([
            "--export".into(),
            format!(
                "type=vhost-user-blk,id=e,addr.type=unix,addr.path={},node-name={node},writable={writable}",
                socket.display()
            ),
        ]);
    }
    args
}

/// The same graph here; what is returned keeps it.
fn ours(path: &Path, case: &Case) -> (Arc<Current>, Option<Attachment>) {
    let current = Arc::new(Current::default());
    let mut spec = named(file(path, Cache::Page), "f");
    spec.common.access = case.access;
    spec.common.sharing = case.sharing;
    let mut top = open(&current, spec).expect("opened").0;
    if let Some(window) = case.window {
        let spec = raw(Child::Named("f".into()), window);
        top = open(&current, spec).expect("opened").0;
    }
    let user = case.wants.map(|wants| user(&current, top, wants));
    (current, user)
}

fn user(current: &Arc<Current>, node: NodeId, wants: Wants) -> Attachment {
    attach(current, node, wants, None).expect("attached")
}

#[test]
fn qemu_img_and_the_lock_table_cannot_tell_us_from_qemu_storage_daemon() {
    for case in cases() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image(dir.path(), 1 << 20);
        let Some(theirs) = Daemon::start(dir.path(), &qsd_args(dir.path(), &path, &case)) else {
            return;
        };
        let expected = (locked(&path), verdicts(&path));
        drop(theirs);
        assert_eq!(locked(&path), Vec::<u64>::new());
        let (graph, user) = ours(&path, &case);
        assert_eq!((locked(&path), verdicts(&path)), expected, "{}", case.name);
        drop(user);
        if case.window.is_none() {
            assert_eq!(locked(&path), Vec::<u64>::new(), "{}", case.name);
        }
        drop(graph);
        assert_eq!(locked(&path), Vec::<u64>::new(), "{}", case.name);
    }
}

#[test]
fn an_image_that_another_process_keeps_for_itself_is_refused_in_qemu_s_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 1 << 20);
    let at = path.display();
    let holder = |option: &str| {
        let file = format!("driver=file,node-name=f,filename={at}");
        let holder = format!("driver=blkdebug,node-name=b,image=f,{option}");
        let args = ["--blockdev".into(), file, "--blockdev".into(), holder];
        Daemon::start(dir.path(), &args)
    };
    let Some(keeps_writers_out) = holder("unshare-child-perms.0=write") else {
        return;
    };
    let current = Arc::new(Current::default());
    let (node, _) = open(&current, file(&path, Cache::Page)).expect("opened");
    let error = attach(&current, node, Wants::READ_WRITE, None).expect_err("refused");
    assert_eq!(error.to_string(), "Failed to get \"write\" lock");
    let hint = format!("Is another process using the image [{at}]?");
    assert_eq!(error.hint(), Some(hint.clone()));
    assert_eq!(locked(&path), [201], "what we tried for is given up");
    drop(user(&current, node, Wants::READ));
    drop(keeps_writers_out);
    drop(user(&current, node, Wants::READ_WRITE));
    let _resizes = holder("take-child-perms.0=resize").expect("it is there");
    let error = open(&current, raw(Child::Named("#block000".into()), WINDOW)).expect_err("refused");
    assert_eq!(error.to_string(), "Failed to get shared \"resize\" lock");
    assert_eq!(error.hint(), Some(hint));
    assert_eq!(current.get().nodes().count(), 1, "nothing is left of it");
    assert_eq!(locked(&path), [103]);
}

/// A copy of the descriptor is what a child process has until it becomes another program.
#[test]
fn locks_go_with_their_node_although_a_child_process_has_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 1 << 20);
    let mut options = file_options(&path, Cache::Page);
    options.locking = Locking::On;
    let (driver, _) = blockgraph::driver::file::open(ring::FileId(0), &options).expect("opened");
    driver.permit(Wants::READ_WRITE).expect("nobody else");
    let copy = driver.file().as_fd().try_clone_to_owned();
    assert_ne!(locked(&path), Vec::<u64>::new());
    drop(driver);
    assert_eq!(locked(&path), Vec::<u64>::new());
    drop(copy.expect("copied"));
}

#[test]
fn without_locking_nothing_is_locked_and_nobody_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 1 << 20);
    let current = Arc::new(Current::default());
    let mut options = file_options(&path, Cache::Page);
    options.locking = Locking::Off;
    let (node, _) = open(&current, file_with(options)).expect("opened");
    let _user = user(&current, node, Wants::READ_WRITE);
    assert_eq!(locked(&path), Vec::<u64>::new());
}

#[test]
fn users_of_one_process_that_disagree_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 1 << 20);
    let current = Arc::new(Current::default());
    let (f, _) = open(&current, named(file(&path, Cache::Page), "f")).expect("opened");
    let resizer = Wants {
        needs: Perms::RESIZE,
        shares: Perms::ALL,
    };
    let conflict = "Permission conflict on node 'f': permissions 'resize' are both required by an unnamed block device \
                    (uses node 'f' as 'root' child) and unshared by node 'r' (uses node 'f' as 'file' child).";
    let window = || named(raw(Child::Named("f".into()), WINDOW), "r");
    let resizes = user(&current, f, resizer);
    let error = open(&current, window()).expect_err("refused");
    assert_eq!(error.to_string(), conflict);
    drop(resizes);
    open(&current, window()).expect("opened");
    let error = attach(&current, f, resizer, None).expect_err("refused");
    assert_eq!(error.to_string(), conflict);
}

#[test]
fn a_writer_on_top_of_a_read_only_file_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image(dir.path(), 1 << 20);
    let current = Arc::new(Current::default());
    let mut spec = named(file(&path, Cache::Page), "f");
    spec.common.access = Access::ReadOnly;
    open(&current, spec).expect("opened");
    let whole = raw(Child::Named("f".into()), Window::default());
    let (r, _) = open(&current, whole).expect("opened");
    let error = attach(&current, r, Wants::READ_WRITE, None).expect_err("refused");
    assert_eq!(error.to_string(), "Block node is read-only");
    drop(user(&current, r, Wants::READ));
}
