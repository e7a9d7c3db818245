//! A file that may not grow beyond RLIMIT_FSIZE. In a process of its own: the limit is the process's.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use ring::Errno;

#[test]
fn a_write_beyond_the_file_size_limit_is_an_error_and_no_signal() {
    let limit = libc::rlimit {
        rlim_cur: 64 << 10,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: ignoring a signal needs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // SAFETY: the limit is a live local.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
    assert_eq!(set, 0);
    on_each(&[1; 4096], Cache::Page, |mut rig| {
        if rig.disk.is_some() {
            return;
        }
        let end = rig.write(64 << 10, &[2; 512]);
        assert_eq!(end, Err(Errno(libc::EFBIG)), "{}", rig.name);
        // What fits goes in first, and the error is told all the same.
        let end = rig.write(60 << 10, &[3; 8192]);
        assert_eq!(end, Err(Errno(libc::EFBIG)), "{}", rig.name);
        assert_eq!(rig.host_bytes().len(), 64 << 10, "{}", rig.name);
        assert_eq!(rig.write(0, &[4; 512]), Ok(()), "{}", rig.name);
    });
}
