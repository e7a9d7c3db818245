//! Wrong command lines, given to us and to the real qemu-storage-daemon: the same bytes on stderr but for the program's name, the same status.
//!
//! Every line fails before anything is opened. What fails in execution is tested where execution is.

use std::ffi::OsString;
use std::process::{Command, Output, Stdio};

const QSD: &str = "qemu-storage-daemon";

/// Lines that both refuse in the same words. An argument is separated by a space; `␣` stands for a space inside one.
const LINES: &[&str] = &[
    // getopt
    "--nosuch",
    "--nosuch=3",
    "--nosuch -h",
    "-x",
    "--blockdev",
    "--exp",
    "--pidfile",
    "--pid",
    "--object",
    "--nbd",
    "--trace",
    "-T",
    "--daemonize=1",
    "--help=3",
    "--h=",
    "--=x",
    "--=",
    "--blockdevx",
    "--daemonize --daemonize --nosuch",
    "foo",
    "-",
    "foo --nosuch",
    "foo --blockdev x",
    "--blockdev x foo",
    "--bl --pidfile",
    "--b file",
    "--e x",
    "--blockdev=file",
    "--blockdev=",
    "--obj=x",
    // keyval
    "--blockdev null-co,node-name=n,size",
    "--blockdev null-co,size,node-name=n",
    "--blockdev null-co,,node-name=n",
    "--blockdev ,",
    "--blockdev =null-co,node-name=n",
    "--blockdev .a=null-co",
    "--blockdev a..b=null-co",
    "--blockdev a.=null-co",
    "--blockdev -a=null-co",
    "--blockdev 1a=null-co",
    "--blockdev a␣b=null-co",
    "--blockdev null-co,a$b=x",
    "--blockdev null-co,0=x",
    "--blockdev null-co,a.1b=x",
    "--blockdev null-co,a.00=x,node-name=n",
    "--blockdev null-co,a.1=x,node-name=n",
    "--blockdev null-co,a.0=x,a.2=y,node-name=n",
    "--blockdev null-co,a.99999999999999999999=x",
    "--blockdev null-co,a.0=x,a.b=y,node-name=n",
    "--blockdev null-co,a.b.0=x,a.b.c=y,node-name=n",
    "--blockdev null-co,_x=x",
    "--blockdev null-co,__x=x",
    "--blockdev null-co,__com.foo_bar=x",
    "--blockdev null-co,help",
    "--blockdev null-co,?",
    "--blockdev help,null-co",
    "--blockdev null-co,help,size",
    "--blockdev null-co,help=on",
    "--blockdev help",
    "--blockdev ?",
    "--export help",
    "--blockdev null-co,a=x,a.1",
    "--blockdev null-co,a.b=x,a.b.c",
    // --blockdev
    "--blockdev driver=nosuch,node-name=a",
    "--blockdev node-name=a",
    "--blockdev []",
    "--blockdev file",
    "--blockdev file,node-name=a",
    "--blockdev file,node-name=a,filename=",
    "--blockdev host_device,node-name=a,filename=",
    "--blockdev file,filename=/tmp/x",
    "--blockdev driver=null-co,driver=file",
    "--blockdev null-co",
    "--blockdev null-co,node-name=1a",
    "--blockdev null-co,node-name=",
    "--blockdev null-co,node-name=a␣b",
    "--blockdev null-co,node-name=n,,",
    "--blockdev null-co,node-name=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "--blockdev null-co,node-name.x=1",
    "--blockdev null-co,node-name=n,size=1M",
    "--blockdev null-co,node-name=n,size=08",
    "--blockdev null-co,node-name=n,size=5␣",
    "--blockdev null-co,node-name=n,size=",
    "--blockdev null-co,node-name=n,size=9223372036854775808",
    "--blockdev null-co,node-name=n,latency-ns=-1",
    "--blockdev null-co,node-name=n,latency-ns=x",
    "--blockdev null-co,node-name=n,latency-ns=99999999999999999999",
    "--blockdev null-co,node-name=n,read-zeroes=maybe",
    "--blockdev null-co,node-name=n,read-zeroes=On",
    "--blockdev null-co,node-name=n,bogus=1",
    "--blockdev null-co,node-name=n,bogus.x=1,bogus.y=2",
    "--blockdev null-co,node-name=n,cache=1",
    "--blockdev null-co,node-name=n,cache.0=1",
    "--blockdev null-co,node-name=n,cache.direct=maybe",
    "--blockdev null-co,node-name=n,cache.direct.x=1",
    "--blockdev null-co,node-name=n,cache.bogus=on",
    "--blockdev null-co,node-name=n,cache.direct=on,cache=1",
    "--blockdev null-co,node-name=n,cache=1,cache.direct=on",
    "--blockdev null-co,node-name=n,active=maybe",
    "--blockdev null-co,node-name=n,read-only=1",
    "--blockdev null-co,node-name=n,auto-read-only=",
    "--blockdev null-co,node-name=n,force-share=on",
    "--blockdev null-co,node-name=n,discard=foo",
    "--blockdev null-co,node-name=n,discard=",
    "--blockdev null-co,node-name=n,discard=unmap,detect-zeroes=foo",
    "--blockdev null-co,node-name=n,detect-zeroes=unmap",
    "--blockdev file,node-name=a,filename=/tmp,aio=foo",
    "--blockdev file,node-name=a,filename=/tmp,locking=foo",
    "--blockdev file,node-name=a,filename=/tmp,aio-max-batch=x",
    "--blockdev file,node-name=a,filename=/tmp,x-check-cache-dropped=1",
    "--blockdev file,node-name=a,filename=/tmp,drop-cache=1",
    "--blockdev file,node-name=a,filename.x=1",
    "--blockdev raw,node-name=n",
    "--blockdev raw,node-name=n,file.0=x",
    "--blockdev raw,node-name=n,file.filename=x",
    "--blockdev raw,node-name=n,file.driver=nosuch",
    "--blockdev raw,node-name=n,file.driver.x=x",
    "--blockdev raw,node-name=n,file.driver=null-co,file.bogus=1",
    "--blockdev raw,node-name=n,file.driver=null-co,file.size=1M",
    "--blockdev raw,node-name=n,file.driver=raw,file.file.driver=null-co,file.file.size=1M",
    "--blockdev raw,node-name=n,file.driver=null-co,file.cache.direct=x",
    "--blockdev raw,node-name=n,file.driver=null-co,file.discard=x",
    "--blockdev raw,node-name=n,file.driver=null-co,file.node-name=1n",
    "--blockdev raw,node-name=n,file.driver=null-co,offset=-1",
    "--blockdev raw,node-name=n,file.driver=null-co,size=-1",
    "--blockdev raw,node-name=n,file.driver=null-co,size=1000",
    "--blockdev raw,node-name=n,file.driver=null-co,offset=1M",
    "--blockdev raw,node-name=n,file.driver=raw,file.file=zz,bogus=1",
    // JSON
    "--blockdev {",
    "--blockdev {}",
    "--blockdev {,}",
    "--blockdev {1:2}",
    "--blockdev {'a'}",
    "--blockdev {'a':}",
    "--blockdev {'a':[[}",
    "--blockdev {'a':{]}",
    "--blockdev {'a':-}",
    "--blockdev {'a':1.}",
    "--blockdev {'a':1e}",
    "--blockdev {'a':-0}",
    "--blockdev {'a':1e999}",
    "--blockdev {'a':TRUE}",
    "--blockdev {'a':[1,]}",
    "--blockdev {'a':[1␣2]}",
    "--blockdev {'driver':'null-co','node-name':'a'",
    "--blockdev {'driver':'null-co','node-name':'a'}x",
    "--blockdev {'driver':'null-co','node-name':'a'}}",
    "--blockdev {'driver':'null-co','node-name':'a'}␣{}",
    "--blockdev {'driver':'null-co','driver':'file'}",
    "--blockdev {'driver':'null-co',}",
    "--blockdev {'driver'␣'null-co'}",
    "--blockdev {'driver':'null-co'␣'a':1}",
    "--blockdev {driver:'null-co'}",
    "--blockdev {'driver':'null-co','node-name':'a','size':'1'}",
    "--blockdev {'driver':'null-co','node-name':'a','size':1.5}",
    "--blockdev {'driver':'null-co','node-name':'a','size':1e3}",
    "--blockdev {'driver':'null-co','node-name':'a','size':01}",
    "--blockdev {'driver':'null-co','node-name':'a','size':9223372036854775808}",
    "--blockdev {'driver':'null-co','node-name':'a','latency-ns':-1}",
    "--blockdev {'driver':'null-co','node-name':'a','latency-ns':99999999999999999999}",
    "--blockdev {'driver':'null-co','node-name':'a','read-zeroes':'on'}",
    "--blockdev {'driver':'null-co','node-name':'a','read-zeroes':1}",
    "--blockdev {'driver':'null-co','node-name':1}",
    "--blockdev {'driver':1,'node-name':'a'}",
    "--blockdev {'driver':null,'node-name':'a'}",
    "--blockdev {'driver':'null-co','node-name':'a','discard':1}",
    "--blockdev {'driver':'null-co','node-name':'a','discard':'foo'}",
    "--blockdev {'driver':'null-co','node-name':'a','cache':1}",
    "--blockdev {'driver':'null-co','node-name':'a','cache':null}",
    "--blockdev {'driver':'null-co','node-name':'a','cache':{'direct':1}}",
    "--blockdev {'driver':'null-co','node-name':'a','cache':{'x':1}}",
    "--blockdev {'driver':'null-co','node-name':'a','cache.direct':true}",
    "--blockdev {'driver':'raw','node-name':'a','file':1}",
    "--blockdev {'driver':'raw','node-name':'a','file':null}",
    "--blockdev {'driver':'raw','node-name':'a','file':[]}",
    "--blockdev {'driver':'raw','node-name':'a','file':{}}",
    "--blockdev {'driver':'raw','node-name':'a','file':{'driver':'null-co','size':'x'}}",
    "--blockdev {'driver':'raw','node-name':'a','file':{'driver':'null-co','bogus':{'x':1}}}",
    "--blockdev {'driver':'null-co','node-name':'a','bogus':[1]}",
    "--blockdev {'driver':'null-co','node-name':'\\x'}",
    "--blockdev {'driver':'null-co','node-name':'a}",
    "--blockdev {'driver':'null-co','node-name':'\\ud800'}",
    "--blockdev {'a':'\\ud800\\u0041'}",
    "--blockdev {'a':'\\ud83d\\ude00'}",
    "--blockdev {\"a\":\"\\u00\"}",
    "--blockdev {'a':'\\u12",
    "--blockdev {'driver':'null-co','node-name':tru}",
    "--blockdev {'driver':'null-co','node-name':nan}",
    "--blockdev {'driver':'null-co','node-name':+1}",
    "--blockdev {'driver':'null-co','node-name':%d}",
    "--blockdev {'driver':'null-co','node-name':]}",
    "--blockdev {'a':'x\ny'}",
    // --object
    "--object =",
    "--object foo,id=a",
    "--object memory-backend,id=a",
    "--object iothread",
    "--object iothread,id=",
    "--object iothread,id=1a",
    "--object iothread,id=a␣b",
    "--object iothread,id=a,bogus=1",
    "--object iothread,id=a,poll-max-ns=x",
    "--object iothread,id=a,poll-max-ns=1k",
    "--object iothread,id=a,poll-max-ns=-1",
    "--object iothread,id=a,poll-grow=-1",
    "--object iothread,id=a,aio-max-batch=-1",
    "--object help,iothread",
    "--object iothread,a.1=0,help",
    "--object help=x",
    "--object {'qom-type':'iothread'}",
    "--object {'qom-type':'iothread','id':'a','poll-max-ns':'1'}",
    "--object {'qom-type':'iothread','id':'a','help':true}",
    // --export
    "--export foo",
    "--export node-name=n,id=e",
    "--export vhost-user-blk",
    "--export vhost-user-blk,id=e",
    "--export vhost-user-blk,id.x=e",
    "--export vhost-user-blk,id=e,node-name=n",
    "--export vhost-user-blk,id=e,node-name=n,addr=x",
    "--export vhost-user-blk,id=e,node-name=n,addr.0=unix",
    "--export vhost-user-blk,id=e,node-name=n,addr.path=x",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=foo",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,addr.bogus=1",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,addr.abstract=1",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=fd",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=fd,addr.path=x",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=inet",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=inet,addr.host=h",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=vsock",
    "--export vhost-user-blk,id=1,node-name=n,addr.type=unix,addr.path=x",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,bogus=1",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,writable=maybe",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,writethrough=ON",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,iothread.0=i",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,num-queues=x",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,num-queues=-1",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,num-queues=65536",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,logical-block-size=",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,logical-block-size=x",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,logical-block-size=-1",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,logical-block-size=1.5",
    "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=x,logical-block-size=16E",
    "--export {'type':'vhost-user-blk','id':1}",
    "--export {'type':'vhost-user-blk','id':'e','node-name':'n'}",
    "--export {'type':'vhost-user-blk','id':'e','node-name':'n','writable':'on'}",
    "--export {'type':'vhost-user-blk','id':'e','node-name':'n','addr':'x'}",
    "--export {'type':'vhost-user-blk','id':'e','node-name':'n','addr':{'type':'unix','path':'x'},'num-queues':'4'}",
    "--export {'type':'vhost-user-blk','id':'e','node-name':'n','addr':{'type':'unix','path':'x'},'num-queues':65536}",
    "--export {'type':'vhost-user-blk','id':'e','node-name':'n','addr':{'type':'unix','path':'x'},'logical-block-size':'4k'}",
];

fn arguments(line: &str) -> Vec<OsString> {
    line.split(' ')
        .map(|word| word.replace('␣', " ").into())
        .collect()
}

fn run(program: &str, args: &[OsString]) -> Output {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
}

fn differences(lines: impl IntoIterator<Item = Vec<OsString>>) -> Vec<String> {
    let mut differences = Vec::new();
    for args in lines {
        let theirs = run(QSD, &args);
        let ours = run(env!("CARGO_BIN_EXE_virtioblkd"), &args);
        let expected = String::from_utf8_lossy(&theirs.stderr).replace(QSD, "virtioblkd");
        let got = String::from_utf8_lossy(&ours.stderr);
        if expected != got || theirs.status != ours.status {
            differences.push(format!(
                "{args:?}\n  QSD:  {} {expected}\n  ours: {} {got}",
                theirs.status, ours.status
            ));
        }
    }
    differences
}

#[test]
fn wrong_command_lines_are_refused_in_the_words_of_qemu_storage_daemon() {
    let differences = differences(LINES.iter().map(|line| arguments(line)));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn fragments_of_127_bytes_are_the_longest_as_in_qemu_storage_daemon() {
    let key = |len| "a".repeat(len);
    let lines = [
        format!("null-co,{}=x", key(127)),
        format!("null-co,{}=x", key(128)),
        format!("null-co,b.{}.c=x", key(127)),
        format!("null-co,b.{}.c=x", key(128)),
        format!("null-co,{}=x", key(300)),
    ];
    let differences = differences(lines.map(|line| vec!["--blockdev".into(), line.into()]));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn what_this_version_does_not_have_is_refused_and_never_ignored() {
    let node = "--blockdev null-co,node-name=n";
    let file = "--blockdev file,node-name=n,filename=/dev/null";
    let export = "--export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=/x";
    let lines = [
        "--chardev socket,id=c,path=/x".to_owned(),
        "--monitor chardev=c".to_owned(),
        "--nbd-server addr.type=unix,addr.path=/x".to_owned(),
        "-T foo".to_owned(),
        "--trace foo".to_owned(),
        "--blockdev qcow2,node-name=n,file=f".to_owned(),
        "--export nbd,id=e,node-name=n".to_owned(),
        "--object throttle-group,id=t".to_owned(),
        "--object iothread,id=t,poll-grow=2".to_owned(),
        "--object iothread,id=t,thread-pool-max=1".to_owned(),
        format!("{node},active=off"),
        format!("{file},pr-manager=p"),
        format!("{file},drop-cache=on"),
        format!("{file},aio-max-batch=4"),
        format!("{export},addr.abstract=on"),
        format!("{export},addr.tight=off"),
    ];
    for line in lines {
        let output = run(env!("CARGO_BIN_EXE_virtioblkd"), &arguments(&line));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {stderr}");
        let says_so = stderr.ends_with("not supported by this version\n");
        assert!(says_so, "{line}: {stderr}");
    }
}
