//! KVM where it truly works, else TCG. The rule to know: `/dev/kvm` proves nothing (nested set-ups hang), so a guest is booted to find out.

use super::cache::GuestCache;
use super::initramfs::Image;
use super::{Guest, GuestError, GuestSpec};
use std::fs;
use std::time::Duration;

/// A guest on working KVM is up in about a second.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// How QEMU runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// On the processor itself.
    Kvm,
    /// Translated, one host thread per guest processor.
    Tcg,
}

impl Accel {
    /// QEMU's arguments for it.
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// The name to print.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG (no working KVM here)",
        }
    }

    /// Which to use here: tried once per boot of the host, then remembered in the cache.
    ///
    /// # Errors
    /// What reading and writing the cache says. A probe that fails is an answer, not an error.
    pub(super) fn choose(cache: &GuestCache, image: &Image) -> Result<Accel, GuestError> {
        let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(prepare)?;
        let memory = cache.directory().join("accel");
        let remembered = fs::read_to_string(&memory).unwrap_or_default();
        match remembered.strip_prefix(&host_boot) {
            Some("kvm") => return Ok(Accel::Kvm),
            Some("tcg") => return Ok(Accel::Tcg),
            _ => {}
        }
        let (accel, word) = match probe(image) {
            Ok(()) => (Accel::Kvm, "kvm"),
            Err(_) => (Accel::Tcg, "tcg"),
        };
        fs::write(&memory, host_boot + word).map_err(prepare)?;
        Ok(accel)
    }
}

fn prepare(source: std::io::Error) -> GuestError {
    let what = "remember whether KVM works";
    GuestError::Prepare { what, source }
}

fn probe(image: &Image) -> Result<(), GuestError> {
    if let Err(source) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        let what = "open /dev/kvm";
        return Err(GuestError::Prepare { what, source });
    }
    let spec = GuestSpec::new().time_limit(PROBE_LIMIT);
    let mut guest = Guest::launch(&spec, image, Accel::Kvm)?;
    guest.check("true")?;
    guest.power_off()
}
