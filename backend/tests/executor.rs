//! A command that fails leaves nothing behind: no node, no name, no export, no socket, no descriptor and so no lock.
//!
//! Alone in its process, since it counts descriptors.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use backend::cli::{self, Command, Outcome};
use backend::daemon::Daemon;
use ring::inherited::Inherited;

/// What is there before the failing command.
const BEFORE: &str = "--object iothread,id=io --blockdev file,node-name=f,filename=DIR/disk \
    --blockdev null-co,node-name=ro,read-only=on \
    --export vhost-user-blk,id=first,node-name=f,addr.type=unix,addr.path=DIR/first";

/// A command that fails, and one with the same names that works afterwards.
const CASES: &[(&str, &str)] = &[
    ("--object iothread,id=io", "--object iothread,id=io2"),
    ("--blockdev file,node-name=n,filename=DIR/none", NODE),
    ("--blockdev file,node-name=n,filename=DIR", NODE),
    (
        "--blockdev host_device,node-name=n,filename=DIR/disk2",
        NODE,
    ),
    ("--blockdev raw,node-name=n,file=missing", NODE),
    (
        "--blockdev raw,node-name=n,offset=2097152,file.driver=file,file.node-name=g,file.filename=DIR/disk2",
        "--blockdev file,node-name=g,filename=DIR/disk2",
    ),
    (
        "--blockdev raw,node-name=n,file.driver=raw,file.node-name=g,file.file.driver=file,\
         file.file.node-name=n,file.file.filename=DIR/disk2",
        "--blockdev file,node-name=g,filename=DIR/disk2",
    ),
    (
        "--blockdev raw,node-name=f,file.driver=file,file.node-name=n,file.filename=DIR/disk2",
        NODE,
    ),
    (
        "--blockdev x-delay,node-name=f,file.driver=file,file.node-name=n,file.filename=DIR/disk2",
        NODE,
    ),
    (
        "--export vhost-user-blk,id=e,node-name=missing,addr.type=unix,addr.path=DIR/s",
        EXPORT,
    ),
    (
        "--export vhost-user-blk,id=first,node-name=f,addr.type=unix,addr.path=DIR/s",
        EXPORT,
    ),
    (
        "--export vhost-user-blk,id=e,node-name=ro,writable=on,addr.type=unix,addr.path=DIR/s",
        EXPORT,
    ),
    (
        "--export vhost-user-blk,id=e,node-name=f,iothread=none,addr.type=unix,addr.path=DIR/s",
        EXPORT,
    ),
    (
        "--export vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=DIR/none/s",
        EXPORT,
    ),
    (
        "--export vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=DIR/disk2",
        EXPORT,
    ),
    (
        "--export vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=DIR/disk2/s",
        EXPORT,
    ),
    (
        "--export vhost-user-blk,id=e,node-name=f,addr.type=fd,addr.str=99",
        EXPORT,
    ),
    (
        "--export vhost-user-blk,id=e,node-name=f,addr.type=connected-fd,addr.str=99",
        EXPORT,
    ),
];
const NODE: &str = "--blockdev file,node-name=n,filename=DIR/disk2";
const EXPORT: &str = "--export vhost-user-blk,id=e,node-name=f,iothread=io,writable=on,addr.type=unix,addr.path=DIR/s";

fn commands(line: &str, dir: &Path) -> Vec<Command> {
    let line = line.replace("DIR", dir.to_str().expect("UTF-8"));
    let words = line.split_whitespace().map(Into::into);
    let outcome = cli::parse(words, &[]).expect("a line that is well formed");
    let Outcome::Run(invocation) = outcome else {
        panic!("{line} runs nothing");
    };
    let steps = invocation.steps.into_iter();
    steps.map(|step| step.command.expect("a command")).collect()
}

/// Everything in the directory but what lies in it from the start.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("the directory");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries
        .map(|entry| name(entry.expect("an entry")))
        .collect()
}

fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[test]
fn a_command_that_fails_leaves_nothing_behind() {
    for (failing, working) in CASES {
        let dir = tempfile::tempdir().expect("temporary directory");
        for disk in ["disk", "disk2"] {
            let file = fs::File::create(dir.path().join(disk)).expect("disk");
            file.set_len(1 << 20).expect("disk");
        }
        let mut daemon = Daemon::new(Inherited::none()).expect("a daemon");
        for command in commands(BEFORE, dir.path()) {
            daemon.execute(command).expect("what is there before");
        }
        let (fds, files) = (open_fds(), names(dir.path()));
        for attempt in 0..3 {
            for command in commands(failing, dir.path()) {
                let refusal = daemon.execute(command).expect_err(failing);
                println!("{failing}: {refusal}");
            }
            assert_eq!(open_fds(), fds, "descriptors, attempt {attempt}: {failing}");
            assert_eq!(names(dir.path()), files, "{failing}");
        }
        for command in commands(working, dir.path()) {
            daemon.execute(command).expect(failing);
        }
        daemon.shut_down().expect("an orderly end");
        assert!(!names(dir.path()).contains("first"), "a socket is left");
    }
}
