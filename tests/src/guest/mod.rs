//! A real Linux guest in QEMU whose disks are vhost-user-blk sockets, driven by shell scripts from the host.
//!
//! The guest is Debian's cloud kernel with an initramfs of our own making; nothing it does outlives it but its disks.
//! The rule to know: a script runs to its end or the guest is killed; there is no third state, so no test waits for ever.
//!
//! ```no_run
//! use tests::guest::{Guest, GuestSpec};
//!
//! let spec = GuestSpec::new().disk("/run/disk.sock");
//! let mut guest = Guest::boot(&spec)?;
//! guest.check("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt")?;
//! guest.power_off()?;
//! # Ok::<(), tests::guest::GuestError>(())
//! ```

mod accel;
mod agent;
mod cache;
mod cpio;
mod error;
mod initramfs;
mod modules;
mod qemu;

pub use accel::Accel;
pub use agent::Output;
pub use error::GuestError;

use agent::{Agent, Silence};
use cache::GuestCache;
use initramfs::Image;
use qemu::{OnLoss, Qemu};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Boot under TCG takes about ten seconds here and the longest script a minute; on a busy day four times as long was seen.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Queues and processors: Linux uses as many queues as there are processors at most.
pub const QUEUES: u16 = 4;
/// How often a machine is started that TCG does not bring up.
const STARTS_MAX: u32 = 4;
/// How often somebody looks whether it lost one.
const LOOK: Duration = Duration::from_secs(2);
/// What its kernel says then, after 21 seconds.
const LOST_TIMER: &str = "timer wakeup didn't happen";
/// What QEMU 10.0.2 died of once, a second into a boot: an assertion of its own about a write to a device's interrupt vectors, which no
/// backend takes part in. Any other death of QEMU is a failure.
const VECTOR_ASSERTION: &str = "msix_table_mmio_write: Assertion";

/// How a boot went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boot {
    Up,
    Failed(&'static str),
}

/// What to boot.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    sockets: Vec<PathBuf>,
    on_loss: OnLoss,
    time_limit: Duration,
}

impl GuestSpec {
    /// A guest without disks.
    pub fn new() -> GuestSpec {
        let sockets = Vec::new();
        let time_limit = TIME_LIMIT;
        GuestSpec {
            sockets,
            on_loss: OnLoss::End,
            time_limit,
        }
    }

    /// Adds a disk, served at this socket: the first is `/dev/vda`, the next `/dev/vdb`.
    pub fn disk(mut self, socket: impl AsRef<Path>) -> GuestSpec {
        self.sockets.push(socket.as_ref().to_path_buf());
        self
    }

    /// Disks wait for another daemon where theirs goes away.
    pub fn reconnecting(mut self) -> GuestSpec {
        self.on_loss = OnLoss::Reconnect;
        self
    }

    /// How long the boot, and each script, may take.
    pub fn time_limit(mut self, limit: Duration) -> GuestSpec {
        self.time_limit = limit;
        self
    }
}

impl Default for GuestSpec {
    fn default() -> Self {
        GuestSpec::new()
    }
}

/// A running guest. Dropping it kills QEMU, as pulling the plug would; see [`Guest::power_off`].
#[derive(Debug)]
pub struct Guest {
    agent: Agent,
    qemu: Qemu,
    time_limit: Duration,
    accel: Accel,
    // Other guests wait until this one is gone. None while KVM is probed: the prober holds it.
    _cache: Option<GuestCache>,
}

impl Guest {
    /// Boots a guest and waits until it takes scripts. Waits for other guests on this machine to end first.
    ///
    /// # Errors
    /// [`GuestError::Prepare`] where the host lacks something; the others as the boot goes.
    pub fn boot(spec: &GuestSpec) -> Result<Guest, GuestError> {
        let prepare = |source| GuestError::Prepare {
            what: "find what to boot",
            source,
        };
        let cache = GuestCache::open().map_err(prepare)?;
        let image = initramfs::prepare(cache.directory()).map_err(prepare)?;
        let accel = Accel::choose(&cache, &image)?;
        let mut guest = Guest::launch(spec, &image, accel)?;
        guest._cache = Some(cache);
        Ok(guest)
    }

    /// Under TCG on a busy machine a processor's timer is lost now and then, and the kernel says so and gets no further, or QEMU dies
    /// ([`VECTOR_ASSERTION`]). No disk is in use by then, and the machine is started anew.
    fn launch(spec: &GuestSpec, image: &Image, accel: Accel) -> Result<Guest, GuestError> {
        for start in 1..STARTS_MAX {
            let mut guest = Guest::start(spec, image, accel)?;
            match guest.boots()? {
                Boot::Up => return Ok(guest),
                Boot::Failed(how) => println!("start {start}: {how}"),
            }
        }
        let mut guest = Guest::start(spec, image, accel)?;
        guest.wait_ready("booting")?;
        Ok(guest)
    }

    fn boots(&mut self) -> Result<Boot, GuestError> {
        let deadline = Instant::now() + self.time_limit;
        loop {
            match self.agent.wait_ready(deadline.min(Instant::now() + LOOK)) {
                Ok(()) => return Ok(Boot::Up),
                Err(Silence::TimeLimit) if Instant::now() < deadline => {}
                Err(Silence::Closed) if self.qemu.told().contains(VECTOR_ASSERTION) => {
                    return Ok(Boot::Failed(
                        "QEMU died of its assertion about interrupt vectors",
                    ));
                }
                Err(silence) => return Err(self.give_up(silence, "booting")),
            }
            if self.qemu.told().contains(LOST_TIMER) {
                return Ok(Boot::Failed("the guest's kernel lost a timer"));
            }
        }
    }

    fn start(spec: &GuestSpec, image: &Image, accel: Accel) -> Result<Guest, GuestError> {
        let what = "start QEMU";
        let (qemu, stdin, stdout) = Qemu::start(&spec.sockets, spec.on_loss, image, accel)
            .map_err(|source| GuestError::Prepare { what, source })?;
        let agent = Agent::new(stdin, stdout);
        let time_limit = spec.time_limit;
        Ok(Guest {
            agent,
            qemu,
            time_limit,
            accel,
            _cache: None,
        })
    }

    /// How QEMU runs it.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Changes how long each script may take from now on.
    pub fn set_time_limit(&mut self, limit: Duration) {
        self.time_limit = limit;
    }

    /// Runs a shell script and returns what it printed and its exit code.
    ///
    /// # Errors
    /// [`GuestError::TimeLimit`], [`GuestError::Ended`] or [`GuestError::Rebooted`]; a failing script is not an error here.
    pub fn run(&mut self, script: &str) -> Result<Output, GuestError> {
        let deadline = Instant::now() + self.time_limit;
        self.send(script)?;
        let answer = self.agent.answer(deadline);
        answer.map_err(|silence| self.give_up(silence, &running(script)))
    }

    /// Runs a shell script that must succeed and returns what it printed; it stops at the first command that fails.
    ///
    /// # Errors
    /// As [`Guest::run`], and [`GuestError::Script`] for an exit code other than 0.
    pub fn check(&mut self, script: &str) -> Result<String, GuestError> {
        let Output { exit_code, text } = self.run(&format!("set -e\n{script}"))?;
        if exit_code == 0 {
            return Ok(text);
        }
        let script = script.to_owned();
        Err(GuestError::Script {
            script,
            exit_code,
            text,
        })
    }

    /// Resets the machine without a word to its file systems and waits until it is up again; QEMU stays.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn reboot(&mut self) -> Result<(), GuestError> {
        self.send("reboot -f")?;
        self.wait_ready("rebooting")
    }

    /// Turns the machine off and waits for QEMU to end.
    ///
    /// # Errors
    /// As [`Guest::run`], and [`GuestError::Status`] where QEMU's exit status is not success.
    pub fn power_off(mut self) -> Result<(), GuestError> {
        let deadline = Instant::now() + self.time_limit;
        self.send("poweroff -f")?;
        match self.agent.answer(deadline) {
            Err(Silence::Closed) => {}
            Err(silence) => return Err(self.give_up(silence, "turning off")),
            Ok(_) => return Err(self.give_up(Silence::Closed, "turning off")),
        }
        let what = "wait for QEMU";
        let status = self
            .qemu
            .wait()
            .map_err(|source| GuestError::Prepare { what, source })?;
        if status.success() {
            return Ok(());
        }
        let (status, console) = (status.to_string(), self.qemu.told());
        Err(GuestError::Status { status, console })
    }

    fn send(&mut self, script: &str) -> Result<(), GuestError> {
        let sent = self.agent.send(script);
        sent.map_err(|_| self.give_up(Silence::Closed, &running(script)))
    }

    fn wait_ready(&mut self, waiting_for: &str) -> Result<(), GuestError> {
        let ready = self.agent.wait_ready(Instant::now() + self.time_limit);
        ready.map_err(|silence| self.give_up(silence, waiting_for))
    }

    /// Kills QEMU, so that a guest that went silent once is never asked again.
    fn give_up(&mut self, silence: Silence, waiting_for: &str) -> GuestError {
        self.qemu.kill();
        let console = self.qemu.told();
        let waiting_for = waiting_for.to_owned();
        let limit = self.time_limit;
        match silence {
            Silence::TimeLimit => GuestError::TimeLimit {
                waiting_for,
                limit,
                console,
            },
            Silence::Closed => GuestError::Ended {
                waiting_for,
                console,
            },
            Silence::Rebooted => GuestError::Rebooted {
                waiting_for,
                console,
            },
        }
    }
}

fn running(script: &str) -> String {
    format!("running\n{script}")
}
