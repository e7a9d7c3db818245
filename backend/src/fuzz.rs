//! Fuzzers of what is parsed: they know the grammar, so that most of what they make gets past the first check; what they look
//! for is a panic, a hang, or memory without bound.
//!
//! `QMP_FUZZ_SECONDS` is how long each goes on (default 2). A case that fails names its seed; `QMP_FUZZ_SEED` runs that one
//! alone.

use std::time::{Duration, Instant};

/// Numbers out of a seed (xorshift64*).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        number as usize % end.max(1)
    }

    pub(crate) fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// Says which case it was if that panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("QMP_FUZZ_SEED={}", self.0);
        }
    }
}

pub(crate) fn run(first_seed: u64, mut case: impl FnMut(&mut Chance)) {
    let number = |name: &str| {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse().expect("a number"))
    };
    if let Some(seed) = number("QMP_FUZZ_SEED") {
        return case(&mut Chance(seed));
    }
    let seconds = number("QMP_FUZZ_SECONDS").unwrap_or(2);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut cases = 0u64;
    while cases == 0 || Instant::now() < end {
        // Seeds next to each other begin alike unless they are stirred.
        let seed = (first_seed + cases).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let _named = Named(seed);
        case(&mut Chance(seed));
        cases += 1;
    }
    println!("{cases} cases from seed {first_seed}");
}
