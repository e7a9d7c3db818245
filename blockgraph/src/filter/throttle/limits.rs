//! What a throttle group's user may ask for, and what QEMU refuses of it.
//!
//! The rule: limits that passed [`Limits::check`] multiply and divide without overflow; a [`Group`](super::Group) takes no
//! others. The model and the texts are QEMU's.

use thiserror::Error;

/// No rate is higher, in bytes or operations per second.
pub const RATE_MAX: u64 = 1_000_000_000_000_000;

/// One rate with its burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes or operations per second in the long run; 0: no limit.
    pub avg: u64,
    /// The same during a burst; 0: no burst but a tenth of a second's worth.
    pub max: u64,
    /// How long a burst at `max` may last, in seconds.
    pub max_length_s: u64,
}

impl Rate {
    /// No limit.
    pub const NONE: Rate = Rate {
        avg: 0,
        max: 0,
        max_length_s: 1,
    };
}

impl Default for Rate {
    fn default() -> Rate {
        Rate::NONE
    }
}

/// A group's limits, as its options give them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes read and written.
    pub bps_total: Rate,
    /// Bytes read.
    pub bps_read: Rate,
    /// Bytes written.
    pub bps_write: Rate,
    /// Operations.
    pub iops_total: Rate,
    /// Reads.
    pub iops_read: Rate,
    /// Writes.
    pub iops_write: Rate,
    /// A larger operation counts as several, each of that many bytes; 0: as one.
    pub iops_size: u64,
}

/// Why limits are refused; the texts are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LimitsError {
    /// A burst of more seconds than 32 bits hold. The name is the option's.
    #[error("{name} value must be in the range [0, {max}]", max = u32::MAX)]
    LengthRange {
        /// The option.
        name: &'static str,
    },
    /// A total beside a part of it.
    #[error("bps/iops/max total values and read/write values cannot be used at the same time")]
    TotalAndPart,
    /// Nothing that `iops-size` could change.
    #[error("iops size requires an iops value to be set")]
    SizeAlone,
    /// Beyond all reason.
    #[error("bps/iops/max values must be within [0, {RATE_MAX}]")]
    RateRange,
    /// A burst of no length.
    #[error("the burst length cannot be 0")]
    NoLength,
    /// A length without a burst.
    #[error("burst length set without burst rate")]
    LengthAlone,
    /// More than [`RATE_MAX`] in one burst.
    #[error("burst length too high for this burst rate")]
    LengthTooHigh,
    /// A burst without a rate to return to.
    #[error("bps_max/iops_max require corresponding bps/iops values")]
    BurstAlone,
    /// A burst slower than the rate.
    #[error("bps_max/iops_max cannot be lower than bps/iops")]
    BurstTooLow,
}

impl Limits {
    /// Errors: the first thing QEMU would find wrong.
    pub fn check(&self) -> Result<(), LimitsError> {
        for (rate, name) in self.rates() {
            // Negative ones were never in range, but QEMU compares them as signed numbers here.
            if rate.max_length_s.cast_signed() > i64::from(u32::MAX) {
                return Err(LimitsError::LengthRange { name });
            }
        }
        let both = |total: u64, read: u64, write: u64| total != 0 && (read != 0 || write != 0);
        let conflict = |total: Rate, read: Rate, write: Rate| {
            both(total.avg, read.avg, write.avg) || both(total.max, read.max, write.max)
        };
        if conflict(self.bps_total, self.bps_read, self.bps_write)
            || conflict(self.iops_total, self.iops_read, self.iops_write)
        {
            return Err(LimitsError::TotalAndPart);
        }
        let iops = self.iops_total.avg | self.iops_read.avg | self.iops_write.avg;
        if self.iops_size != 0 && iops == 0 {
            return Err(LimitsError::SizeAlone);
        }
        self.rates().iter().try_for_each(|(rate, _)| rate.check())
    }

    /// True if there is a limit at all.
    pub fn any(&self) -> bool {
        self.rates().iter().any(|(rate, _)| rate.avg != 0)
    }

    fn rates(&self) -> [(Rate, &'static str); 6] {
        [
            (self.bps_total, "bps-total-max-length"),
            (self.bps_read, "bps-read-max-length"),
            (self.bps_write, "bps-write-max-length"),
            (self.iops_total, "iops-total-max-length"),
            (self.iops_read, "iops-read-max-length"),
            (self.iops_write, "iops-write-max-length"),
        ]
    }
}

impl Rate {
    fn check(&self) -> Result<(), LimitsError> {
        let Rate {
            avg,
            max,
            max_length_s,
        } = *self;
        if avg > RATE_MAX || max > RATE_MAX {
            return Err(LimitsError::RateRange);
        }
        if max_length_s == 0 {
            return Err(LimitsError::NoLength);
        }
        if max_length_s > 1 && max == 0 {
            return Err(LimitsError::LengthAlone);
        }
        if max != 0 && max_length_s > RATE_MAX / max {
            return Err(LimitsError::LengthTooHigh);
        }
        if max != 0 && avg == 0 {
            return Err(LimitsError::BurstAlone);
        }
        if max != 0 && max < avg {
            return Err(LimitsError::BurstTooLow);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(avg: u64, max: u64, max_length_s: u64) -> Rate {
        Rate {
            avg,
            max,
            max_length_s,
        }
    }

    fn bps(total: Rate) -> Limits {
        Limits {
            bps_total: total,
            ..Limits::default()
        }
    }

    fn text(limits: Limits) -> String {
        match limits.check() {
            Ok(()) => String::from("taken"),
            Err(error) => error.to_string(),
        }
    }

    /// Each line was said by qemu-storage-daemon 10.0.2 of the same limits.
    #[test]
    fn limits_are_refused_in_qemus_words() {
        let both = Limits {
            bps_read: rate(1, 0, 1),
            ..bps(rate(1, 0, 1))
        };
        let total =
            "bps/iops/max total values and read/write values cannot be used at the same time";
        assert_eq!(text(both), total);
        let maxima = Limits {
            bps_read: rate(0, 10, 1),
            ..bps(rate(5, 10, 1))
        };
        assert_eq!(text(maxima), total);
        let require = "bps_max/iops_max require corresponding bps/iops values";
        assert_eq!(text(bps(rate(0, 5, 1))), require);
        let other = Limits {
            iops_read: rate(5, 0, 1),
            iops_total: rate(0, 3, 1),
            ..Limits::default()
        };
        assert_eq!(text(other), require);
        let lower = "bps_max/iops_max cannot be lower than bps/iops";
        assert_eq!(text(bps(rate(5, 2, 1))), lower);
        assert_eq!(
            text(bps(rate(5, 0, 2))),
            "burst length set without burst rate"
        );
        assert_eq!(text(bps(rate(5, 10, 0))), "the burst length cannot be 0");
        let size = Limits {
            iops_size: 4096,
            ..Limits::default()
        };
        assert_eq!(text(size), "iops size requires an iops value to be set");
        let range = "bps/iops/max values must be within [0, 1000000000000000]";
        assert_eq!(text(bps(rate(RATE_MAX + 1, 0, 1))), range);
        assert_eq!(text(bps(rate(u64::MAX, 0, 1))), range);
        let high = "burst length too high for this burst rate";
        assert_eq!(text(bps(rate(5, RATE_MAX, 2))), high);
        assert_eq!(text(bps(rate(5, 10, u64::MAX))), high);
        assert_eq!(
            text(bps(rate(5, 10, 5_000_000_000))),
            "bps-total-max-length value must be in the range [0, 4294967295]"
        );
    }

    #[test]
    fn limits_that_qemu_takes_are_taken() {
        for size in [4096, 5_000_000_000, u64::MAX] {
            let limits = Limits {
                iops_total: rate(5, 0, 1),
                iops_size: size,
                ..Limits::default()
            };
            assert_eq!(text(limits), "taken");
        }
        assert_eq!(text(bps(rate(5, 10, 60))), "taken");
        assert_eq!(text(bps(rate(RATE_MAX, RATE_MAX, 1))), "taken");
        assert_eq!(text(Limits::default()), "taken");
    }
}
