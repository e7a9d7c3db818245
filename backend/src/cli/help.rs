//! What `--help`, `--version`, `--object help` and `--print-capabilities` print.

use crate::qapi;
use crate::qapi::tables::objects::{OBJECT_OPTIONS, OBJECT_TYPE};

/// The QEMU release whose options, messages and monitor this program follows.
pub const QEMU_VERSION: &str = "10.0.2";
/// The same in numbers.
pub const QEMU_VERSION_TRIPLE: [u32; 3] = [10, 0, 2];

/// `-V`: the first line has the program and its version where scripts look for them in QSD's.
pub(super) fn version() -> String {
    format!(
        "virtioblkd version {} (compatible with qemu-storage-daemon {QEMU_VERSION})\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The JSON object of docs/interop/vhost-user.rst, "Backend program conventions".
pub(super) fn capabilities() -> String {
    "{\n  \"type\": \"block\",\n  \"features\": [\n    \"read-only\",\n    \"blk-file\"\n  ]\n}\n"
        .to_owned()
}

/// `--object help`, `--object TYPE,help`: what the table says, in QSD's order.
pub(super) fn objects(kind: Option<&str>) -> String {
    let made_with = kind.and_then(|kind| Some((kind, OBJECT_OPTIONS.case(kind)?)));
    let (title, mut lines): (String, Vec<String>) = match made_with {
        Some((kind, object)) => {
            let members = object.members.iter();
            let line = |m: &qapi::Member| format!("  {}=<{}>\n", m.name, m.ty.qom_name());
            (format!("{kind} options:\n"), members.map(line).collect())
        }
        None => {
            let types = OBJECT_TYPE.values.iter();
            let title = "List of user creatable objects:\n".to_owned();
            (title, types.map(|name| format!("  {name}\n")).collect())
        }
    };
    lines.sort_unstable();
    title + &lines.concat()
}

/// `-h`
pub(super) fn usage() -> String {
    USAGE.to_owned()
}

const USAGE: &str = "\
Usage: virtioblkd [options]
       virtioblkd --blk-file <path> --socket-path <path> [--read-only]
       virtioblkd graph --qmp <socket> [--format text|dot|svg]
Serves disks to virtual machines over vhost-user.

One disk, one front end (the vhost-user backend program conventions):
  --blk-file <path>      the file or block device to serve
  --format raw           what is in it; without this, raw is assumed and said
                         so on stderr, and names of other formats are refused
  --read-only            serve it read-only
  --socket-path <path>   listen on this path
  --fd <N>               use the connected socket that is file descriptor N
                         (with neither: the socket that systemd passed)
  --print-capabilities   print what this program can do as JSON and exit

Any number of disks, in qemu-storage-daemon's words, executed in order; every
argument may also be a JSON object:
  --blockdev [driver=]<driver>,node-name=<N>[,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off][,force-share=on|off]
             [,detect-zeroes=off|on|unmap][,driver specific parameters...]
    file, host_device    filename=<path>[,aio=threads|native|io_uring]
                         [,locking=on|off|auto]
    raw                  file=<node>|file.driver=...[,offset=<n>][,size=<n>]
                         [,x-bitmap-journal=<path>]
    null-co, null-aio    [size=<n>][,latency-ns=<n>][,read-zeroes=on|off]
    qcow2                file=<node>|file.driver=...[,backing=<node>|...]
                         [,data-file=<node>|...][,lazy-refcounts=on|off]
                         [,pass-discard-request=on|off]
                         [,pass-discard-snapshot=on|off]
                         [,pass-discard-other=on|off][,discard-no-unref=on|off]
                         [,overlap-check=none|constant|cached|all]
                         [,cache-size=<n>][,l2-cache-size=<n>]
                         [,l2-cache-entry-size=<n>][,refcount-cache-size=<n>]
                         [,cache-clean-interval=<seconds>]
                         [,x-snapshot=<id or name>]
                         [,x-image-names=paths|any][,x-probe-backing=on|off]
                         [,x-bitmap-journal=<path>]
    copy-on-read         file=<node>|file.driver=...[,bottom=<node>]
    copy-before-write    file=<node>|file.driver=...
                         ,target=<node>|target.driver=...
                         [,bitmap.node=<node>,bitmap.name=<bitmap>]
                         [,on-cbw-error=break-guest-write|break-snapshot]
                         [,cbw-timeout=<seconds>][,min-cluster-size=<n>]
    snapshot-access      file=<node>|file.driver=...
    throttle             throttle-group=<id>,file=<node>|file.driver=...
    compress             file=<node>|file.driver=...
    preallocate          file=<node>|file.driver=...[,prealloc-align=<n>]
                         [,prealloc-size=<n>]
    blkdebug             image=<node>|image.driver=...[,align=<n>]
                         [,max-transfer=<n>][,inject-error.<i>.event=<e>...]
                         [,set-state.<i>.event=<e>...]
    nbd                  server.type=unix,server.path=<path>
                         |server.type=inet,server.host=<host>,server.port=<port>
                         |server.type=fd,server.str=<N>
                         [,export=<name>][,tls-creds=<id>[,tls-hostname=<name>]]
                         [,reconnect-delay=<seconds>][,open-timeout=<seconds>]
                         [,x-dirty-bitmap=<context>]
    x-delay              file=<node>|file.driver=...[,latency-ns=<n>]
  --export [type=]vhost-user-blk,id=<id>,node-name=<N>,
           addr.type=unix,addr.path=<socket-path>
           [,writable=on|off][,writethrough=on|off][,serial=<text>]
           [,logical-block-size=<n>][,num-queues=<n>]
           [,require-safe-del=on|off]
           [,iothread=<id>][,fixed-iothread=on|off]
           addr.type=fd,addr.str=<N>            a listening socket
           addr.type=connected-fd,addr.str=<N>  a connected one
  --nbd-server addr.type=unix,addr.path=<path>
               addr.type=inet,addr.host=<host>,addr.port=<port>
               addr.type=fd,addr.str=<N>            a listening socket
               [,tls-creds=<id>][,max-connections=<n>]
               [,handshake-max-seconds=<n>]
               [,x-send-timeout=<seconds>]          for replies left unread
  --export [type=]nbd,id=<id>,node-name=<N>[,name=<name>][,description=<text>]
           [,writable=on|off][,writethrough=on|off][,allocation-depth=on|off]
           [,bitmaps.<i>=<name>|,bitmaps.<i>.node=<N>,bitmaps.<i>.name=<name>]...
           [,iothread=<id>][,fixed-iothread=on|off]
  --object iothread,id=<id>[,poll-max-ns=<n>][,poll-grow=<n>][,poll-shrink=<n>]
  --object tls-creds-x509,id=<id>,dir=<path>,endpoint=server|client
           [,verify-peer=on|off][,sanity-check=on|off]
  --object throttle-group,id=<id>[,limits.iops-total=<n>]
           [,limits.bps-total=<n>][,limits.iops-total-max=<n>]
           [,limits.iops-total-max-length=<seconds>][,limits.iops-size=<n>]...
  --object help          list object types
  --object <type>,help   list properties of a type

The process:
  --daemonize            go to the background once everything is up
  --pidfile <path>       write the process id there once everything is up
  -h, --help             display this help and exit
  -V, --version          output version information and exit
";
