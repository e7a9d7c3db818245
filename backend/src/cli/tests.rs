//! Whole command lines and what they come to.

mod nbd;
mod nodes;
mod tables;

use super::*;
use std::path::{Path, PathBuf};

fn run(args: &[&str]) -> Invocation {
    run_activated(args, &[]).unwrap_or_else(|refusal| panic!("{args:?}: {refusal}"))
}

fn run_activated(args: &[&str], activated: &[RawFd]) -> Result<Invocation, Refusal> {
    match parse(args.iter().map(OsString::from), activated)? {
        Outcome::Run(invocation) => Ok(invocation),
        Outcome::Print(text) => panic!("{args:?} printed {text}"),
    }
}

fn refused(args: &[&str]) -> String {
    run_activated(args, &[]).unwrap_err().to_string()
}

fn one(option: &str, argument: &str) -> Result<Command, String> {
    let mut steps = run(&[option, argument]).steps;
    assert_eq!(steps.len(), 1);
    steps.remove(0).command.map_err(|e| e.to_string())
}

fn node(argument: &str) -> BlockdevOptions {
    match one("--blockdev", argument) {
        Ok(Command::Blockdev(node)) => node,
        other => panic!("{argument}: {other:?}"),
    }
}

fn exported(argument: &str) -> ExportOptions {
    match one("--export", argument) {
        Ok(Command::Export(options)) => options,
        other => panic!("{argument}: {other:?}"),
    }
}

#[test]
fn both_forms_of_a_node_mean_the_same() {
    let keyval = node(
        "file,node-name=a,filename=/x,,y,cache.direct=on,discard=unmap,detect-zeroes=unmap,aio=native,locking=off",
    );
    let json = node(
        r#"{"driver":"file","node-name":"a","filename":"/x,y","cache":{"direct":true},
            "discard":"unmap","detect-zeroes":"unmap","aio":"native","locking":"off"}"#,
    );
    assert_eq!(keyval, json);
    let expected = BlockdevOptions {
        node_name: Some("a".to_owned()),
        common: NodeCommon {
            discard: Discard::Unmap,
            cache_direct: true,
            cache_no_flush: false,
            active: true,
            read_only: false,
            auto_read_only: false,
            force_share: false,
            detect_zeroes: DetectZeroes::Unmap,
        },
        driver: DriverOptions::File(FileOptions {
            filename: "/x,y".into(),
            aio: Some(Aio::Native),
            locking: Locking::Off,
        }),
        given: Given::nothing(),
    };
    assert_eq!(keyval, expected);
}

#[test]
fn an_inline_child_inherits_its_parents_rights_and_cache_mode() {
    let parent = node(
        "raw,node-name=a,read-only=on,cache.direct=on,cache.no-flush=on,force-share=on,detect-zeroes=on,offset=512,size=1024,\
         file.driver=file,file.filename=/x,file.cache.no-flush=off",
    );
    let DriverOptions::Raw(raw) = parent.driver else {
        panic!("{parent:?}");
    };
    assert_eq!((raw.offset_bytes, raw.size_bytes), (512, Some(1024)));
    let ChildRef::Inline(child) = raw.file else {
        panic!("{:?}", raw.file);
    };
    let expected = NodeCommon {
        discard: Discard::Unmap,
        cache_direct: true,
        cache_no_flush: false,
        active: true,
        read_only: true,
        auto_read_only: false,
        force_share: true,
        detect_zeroes: DetectZeroes::Off,
    };
    assert_eq!(child.common, expected);
    assert_eq!(child.node_name, None);
}

#[test]
fn null_nodes_and_filters_have_their_defaults() {
    let null = NullOptions {
        size_bytes: 1 << 30,
        latency_ns: 0,
        read_zeroes: false,
    };
    let aio = node("null-aio,node-name=n");
    assert_eq!(aio.driver, DriverOptions::NullAio(null));
    let delay = node("x-delay,node-name=d,file=n,latency-ns=1000");
    let expected = DelayOptions {
        file: ChildRef::Node("n".to_owned()),
        latency_ns: 1000,
    };
    assert_eq!(delay.driver, DriverOptions::Delay(expected));
}

#[test]
fn exports_have_their_defaults() {
    let options = exported("vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=/x");
    let expected = ExportOptions {
        id: "e".to_owned(),
        node_name: "n".to_owned(),
        writable: false,
        allow_inactive: false,
        writethrough: false,
        iothread: None,
        fixed_iothread: false,
        kind: ExportKind::VhostUserBlk(VhostUserBlkOptions {
            addr: ExportAddress::Unix("/x".into()),
            logical_block_size_bytes: None,
            num_queues: 16,
            serial: None,
            require_safe_del: false,
        }),
    };
    assert_eq!(options, expected);
}

#[test]
fn export_options_are_read() {
    let options = exported(
        "vhost-user-blk,id=e,node-name=n,addr.type=connected-fd,addr.str=9,writable=on,\
         logical-block-size=4k,num-queues=256,serial=abc,iothread=i,fixed-iothread=on",
    );
    let ExportKind::VhostUserBlk(blk) = &options.kind else {
        panic!("vhost-user-blk");
    };
    assert_eq!(blk.addr, ExportAddress::ConnectedFd(9));
    assert_eq!(blk.logical_block_size_bytes, Some(4096));
    assert_eq!((blk.num_queues, blk.serial.as_deref()), (256, Some("abc")));
    assert_eq!(options.iothread.as_deref(), Some("i"));
    assert!(options.writable && options.fixed_iothread && !options.writethrough);
}

#[test]
fn what_is_wrong_inside_an_export_is_refused() {
    let export = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=/x";
    let fd = "vhost-user-blk,id=e,node-name=n,addr.type=fd";
    let path = "a".repeat(108);
    // As QSD says them once the node is found.
    let cases = [
        (
            format!("{export},num-queues=0"),
            "num-queues must be greater than 0",
        ),
        (
            format!("{export},num-queues=257"),
            "num-queues must not be greater than 256",
        ),
        (
            format!("{export},logical-block-size=1000"),
            "parameter logical-block-size must be a power of 2 between 512 and 2097152",
        ),
        (
            format!("{export},logical-block-size=4M"),
            "parameter logical-block-size must be a power of 2 between 512 and 2097152",
        ),
        (
            format!("{export},allow-inactive=on"),
            "Export type does not support inactive exports",
        ),
        (
            format!("{export},serial={path}"),
            "serial must not be longer than 20 bytes",
        ),
        (
            format!("{export},addr.path="),
            "'addr.path' must not be empty",
        ),
        (
            format!("{export},addr.path={path}"),
            &format!("UNIX socket path '{path}' is too long\nPath must be less than 108 bytes"),
        ),
        (format!("{fd},addr.str=x"), "Unable to parse FD number x"),
        (format!("{fd},addr.str="), "Unable to parse FD number "),
        (
            format!("{fd},addr.str=-1"),
            "File descriptor '-1' is not a socket",
        ),
        (
            "vhost-user-blk,id=e,node-name=n,addr.type=inet,addr.host=h,addr.port=1".to_owned(),
            "Only socket address types 'unix' and 'fd' are supported",
        ),
    ];
    for (argument, expected) in cases {
        let got = one("--export", &argument).unwrap_err();
        assert_eq!(got, *expected, "{argument}");
    }
}

#[test]
fn steps_keep_their_order_and_a_wrong_one_does_not_hide_those_before_it() {
    let invocation = run(&[
        "--object=iothread,id=i,poll-max-ns=0",
        "--pidfile",
        "/p1",
        "--blockdev",
        "null-co,node-name=n",
        "--export",
        "wrong",
        "--pid=/p2",
        "stray",
    ]);
    let origins: Vec<_> = invocation.steps.iter().map(|s| s.origin.as_str()).collect();
    let expected = [
        "--object=iothread,id=i,poll-max-ns=0",
        "--blockdev null-co,node-name=n",
        "--export wrong",
        "stray",
    ];
    assert_eq!(origins, expected);
    let oks: Vec<_> = invocation.steps.iter().map(|s| s.command.is_ok()).collect();
    assert_eq!(oks, [true, true, false, false]);
    let iothread = IothreadOptions {
        id: "i".to_owned(),
        poll_max_ns: 0,
        poll_grow: 0,
        poll_shrink: 0,
    };
    let first = invocation.steps[0].command.clone();
    assert_eq!(
        first,
        Ok(Command::Object(ObjectOptions::Iothread(iothread)))
    );
    assert_eq!(invocation.pidfile, Some(PathBuf::from("/p2")));
    assert_eq!(invocation.daemonize, Daemonize::Foreground);
}

#[test]
fn help_for_objects_is_a_step_like_any_other() {
    for (argument, starts) in [
        ("help", "List of user creatable objects:\n"),
        ("?", "List of user creatable objects:\n"),
        ("nosuch,help", "List of user creatable objects:\n"),
        ("iothread,help", "iothread options:\n"),
    ] {
        let Ok(Command::ShowHelp(text)) = one("--object", argument) else {
            panic!("{argument}");
        };
        assert!(text.starts_with(starts), "{argument}: {text}");
    }
}

#[test]
fn one_disk_can_be_served_without_writing_a_graph() {
    let invocation = run(&["--blk-file", "/d.raw", "--socket-path=/s", "--read-only"]);
    let [node, export] = invocation.steps.as_slice() else {
        panic!("{:?}", invocation.steps);
    };
    let Ok(Command::Blockdev(node)) = &node.command else {
        panic!("{node:?}");
    };
    let Ok(Command::Export(export)) = &export.command else {
        panic!("{export:?}");
    };
    assert!(matches!(&node.driver, DriverOptions::File(f) if f.filename == Path::new("/d.raw")));
    assert!(node.common.read_only && !export.writable);
    assert_eq!(node.node_name.as_ref(), Some(&export.node_name));
    let ExportKind::VhostUserBlk(blk) = &export.kind else {
        panic!("vhost-user-blk");
    };
    assert_eq!(blk.addr, ExportAddress::Unix("/s".into()));
    assert_eq!(invocation.notices.len(), 1, "{:?}", invocation.notices);
}

#[test]
fn the_format_of_a_file_is_never_guessed_from_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, b"QFI\xfb\0\0\0\x03").unwrap();
    let path = path.to_str().unwrap();
    let args = ["--blk-file", path, "--fd", "9"];
    assert!(run(&args).notices[0].contains("serving it as raw"));
    let args = ["--blk-file", path, "--fd", "9", "--format", "raw"];
    assert!(run(&args).notices.is_empty());
    let args = ["--blk-file", "/x.QCOW2", "--fd", "9"];
    assert!(refused(&args).contains("qcow2"));
    let args = ["--blk-file", "/x.qcow2", "--fd", "9", "--format", "raw"];
    assert_eq!(run(&args).steps.len(), 2);
    let args = ["--blk-file", "/x", "--fd", "9", "--format", "qcow2"];
    assert!(refused(&args).ends_with("format 'qcow2' is not supported by this version"));
}

#[test]
fn a_socket_comes_from_exactly_one_place() {
    let file = ["--blk-file", "/d"];
    let addr = |more: &[&str], activated: &[RawFd]| {
        let args = [&file, more].concat();
        let mut invocation = run_activated(&args, activated)?;
        match invocation.steps.remove(1).command? {
            Command::Export(options) => {
                let ExportKind::VhostUserBlk(blk) = options.kind else {
                    panic!("vhost-user-blk");
                };
                Ok(blk.addr)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        addr(&["--fd", "9"], &[3]),
        Ok(ExportAddress::ConnectedFd(9))
    );
    assert_eq!(addr(&[], &[3]), Ok(ExportAddress::ListeningFd(3)));
    let failures: [(&[&str], &[RawFd]); 5] = [
        (&[], &[]),
        (&[], &[3, 4]),
        (&["--fd", "9", "--socket-path", "/s"], &[]),
        (&["--fd", "-1"], &[]),
        (&["--socket-path", ""], &[]),
    ];
    for (more, activated) in failures {
        let got: Result<_, Refusal> = addr(more, activated);
        assert!(got.is_err(), "{more:?} {activated:?}");
    }
}

#[test]
fn the_two_styles_do_not_mix() {
    let mixed = [
        "--blk-file",
        "/d",
        "--fd",
        "9",
        "--blockdev",
        "null-co,node-name=n",
    ];
    assert!(refused(&mixed).ends_with("cannot be combined with --blk-file"));
    assert!(refused(&["--read-only"]).contains("need --blk-file"));
    let twice = ["--blk-file", "/d", "--blk-file", "/e", "--fd", "9"];
    assert_eq!(refused(&twice), "--blk-file /e: may be given only once");
}

#[test]
fn capabilities_are_printed_whatever_else_is_there() {
    let args = ["--nosuch", "--blk-file", "/d", "--print-capabilities", "-h"];
    let Ok(Outcome::Print(text)) = parse(args.map(OsString::from), &[]) else {
        panic!("not printed");
    };
    let value: Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({"type": "block", "features": ["read-only", "blk-file"]});
    assert_eq!(value, expected);
}

#[test]
fn a_value_that_looks_like_an_option_is_a_value() {
    let invocation = run(&["--blockdev", "--print-capabilities"]);
    assert_eq!(invocation.steps.len(), 1);
}

proptest::proptest! {
    #[test]
    fn no_arguments_make_it_panic(
        args in proptest::collection::vec(
            "(--(blockdev|export|object|b|fd|blk-file|pidfile|h|)(=?)|-[hTVx]|)[a-z{}\\[\\]\"':.,=0-9-]{0,30}",
            0..6,
        )
    ) {
        let _ = parse(args.into_iter().map(OsString::from), &[]);
    }

    #[test]
    fn no_nodes_options_make_it_panic(argument in
        "(file|raw|null-co|x-delay|host_device)(,(node-name|size|offset|file|file\\.driver|filename|cache|cache\\.direct|aio|latency-ns|discard)=[a-z0-9-]{0,5}){0,6}"
    ) {
        let _ = parse(["--blockdev".into(), OsString::from(argument)], &[]);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(1u8..=255, 0..60)) {
        use std::os::unix::ffi::OsStringExt;
        for option in ["--blockdev", "--export", "--object"] {
            let _ = parse([option.into(), OsString::from_vec(bytes.clone())], &[]);
        }
        let _ = parse([OsString::from_vec(bytes)], &[]);
    }
}
