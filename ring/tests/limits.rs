//! A file that may not grow beyond RLIMIT_FSIZE. In a process of its own: the limit is the process's.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use ring::Errno;

#[test]
fn a_write_beyond_the_file_size_limit_is_an_error_and_no_signal() {
    // SAFETY: ignoring a signal needs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let _limit = FileSizeLimit::of(64 << 10);
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

/// The limit, as long as this lives: what the test runner prints may go to a file that is longer.
struct FileSizeLimit;

impl FileSizeLimit {
    fn of(len_bytes: libc::rlim_t) -> Self {
        set_soft_limit(len_bytes);
        Self
    }
}

impl Drop for FileSizeLimit {
    fn drop(&mut self) {
        set_soft_limit(libc::RLIM_INFINITY);
    }
}

fn set_soft_limit(len_bytes: libc::rlim_t) {
    let limit = libc::rlimit {
        rlim_cur: len_bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit is a live local.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
    assert_eq!(set, 0);
}
