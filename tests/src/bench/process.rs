//! A process seen from outside: processor time, wake-ups, and which processors it may use.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Nanoseconds of processor time of all threads of a process that live, the kernel's workers for it included.
pub fn cpu_ns(pid: u32) -> u64 {
    sum_over_threads(pid, |thread| {
        let stat = fs::read_to_string(thread.join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse().ok()
    })
}

/// The same with the threads that have ended, as where each connection has one: the process's own clock, to the nanosecond
/// (clock_getcpuclockid(3)). Not for what waits to be reaped.
///
/// # Errors
/// There is no such process.
pub fn cpu_ns_of_ended_too(pid: u32) -> io::Result<u64> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock = 0;
    // SAFETY: a valid place for a clock's number.
    match unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid place for a time.
    match unsafe { libc::clock_gettime(clock, &raw mut time) } {
        0 => Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Times that threads of a process went to sleep and were woken.
pub fn wake_ups(pid: u32) -> u64 {
    sum_over_threads(pid, |thread| {
        let status = fs::read_to_string(thread.join("status")).ok()?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse().ok()
    })
}

fn sum_over_threads(pid: u32, figure: impl Fn(&Path) -> Option<u64>) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    threads.filter_map(|thread| figure(&thread.path())).sum()
}

/// Restricts this thread, and those it starts, to some processors.
pub fn pin_self(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: a valid set on this stack; the macro checks the index.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the set is valid and of the size given; 0 is this thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Words that start a program on some processors.
pub fn taskset(cpus: &[usize]) -> Vec<String> {
    let list: Vec<String> = cpus.iter().map(usize::to_string).collect();
    vec!["taskset".into(), "-c".into(), list.join(",")]
}

/// Becomes another program, for which io_uring does not exist, as in a container with the default seccomp profile.
///
/// # Errors
/// Returns only where that fails.
pub fn exec_without_io_uring(words: &[String]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    match refuse_io_uring() {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    }
}

fn refuse_io_uring() -> io::Result<()> {
    let op = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // The number of the system call is the first word of seccomp_data.
    let filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_io_uring_setup as u32,
        ),
        op(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: no memory is involved.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel copies the program, which lives on this stack.
    match unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn what_a_thread_has_used_still_counts_when_it_has_ended() {
        let pid = std::process::id();
        let before = cpu_ns_of_ended_too(pid).expect("a process");
        let busy = std::thread::spawn(|| {
            let begun = Instant::now();
            while own_ns() < 50_000_000 && begun.elapsed() < Duration::from_secs(20) {
                std::hint::spin_loop();
            }
        });
        busy.join().expect("no panic");
        let used = cpu_ns_of_ended_too(pid).expect("a process") - before;
        assert!(used >= 40_000_000, "{used} ns");
    }

    /// Of this thread alone: the sum over all shrinks where another test's thread ends.
    fn own_ns() -> u64 {
        let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("a thread");
        let used = stat.split_whitespace().next().expect("a figure");
        used.parse().expect("a number")
    }
}
