//! Whether requests take the fast walk: always in production; never, or by the toss of a seeded coin, in tests, so that
//! every block-layer test can show that serving and mapping agree.

/// How requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Map where a walk finds a way.
    Fast,
    /// Never map.
    ServeAlways,
    /// Each by the next toss of a coin seeded with this.
    Mixed(u64),
}

/// Tosses the coin.
#[derive(Debug)]
pub struct Chooser {
    mode: Mode,
    state: u64,
}

impl Chooser {
    /// A chooser at the beginning of its sequence.
    pub fn new(mode: Mode) -> Chooser {
        let state = match mode {
            Mode::Mixed(seed) => seed,
            _ => 0,
        };
        Chooser { mode, state }
    }

    /// May the next request be mapped?
    pub fn may_map(&mut self) -> bool {
        match self.mode {
            Mode::Fast => true,
            Mode::ServeAlways => false,
            Mode::Mixed(_) => {
                // SplitMix64 (Steele, Lea, Flood 2014): a well mixed bit from a counter.
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (z ^ (z >> 31)) & 1 == 1
            }
        }
    }
}
