//! What a run is like, by seed: the disk's weather, the lanes, what may be asked.

use blockgraph::Mode;
use blockgraph::driver::file::Cache;
use ring::sim::{Order, Rng, Weather};
use tests::cells::Overlap;

/// How a run goes. Which graph it goes on is the seed's as well.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    /// What transfers of the files must be multiples of, in bytes.
    pub block_bytes: u32,
    pub weather: Weather,
    /// Some operations wait for others.
    pub holds: bool,
    /// Bytes by which each file may grow.
    pub room_bytes: u64,
    pub lanes: usize,
    pub mode: Mode,
    pub overlap: Overlap,
    /// Are there discards among the requests?
    pub discards: bool,
    /// Is the graph changed on the way?
    pub edits: bool,
    pub steps: usize,
    /// The operation of the disk that fails, if one does.
    pub fails: Option<u64>,
}

impl Plan {
    pub fn by_seed(seed: u64) -> Plan {
        let mut rng = Rng::new(seed ^ 0x91a7);
        let block_bytes = [1, 512, 512, 4096][rng.below(4) as usize];
        let mut weather = match rng.below(3) {
            0 => Weather::CALM,
            1 => Weather {
                order: Order::Shuffled,
                ..Weather::CALM
            },
            _ => Weather::ROUGH,
        };
        if block_bytes == 1 {
            // A sector that is half written could not be told from one that is torn.
            weather.short = 0;
        }
        Plan {
            seed,
            block_bytes,
            weather,
            holds: rng.below(4) == 0,
            room_bytes: 64 << 20,
            lanes: 1 + rng.below(3) as usize,
            mode: [Mode::Fast, Mode::ServeAlways, Mode::Mixed(seed)][rng.below(3) as usize],
            overlap: match rng.below(3) {
                0 => Overlap::Writes,
                _ => Overlap::Never,
            },
            discards: rng.coin(),
            edits: false,
            steps: 80,
            fails: None,
        }
    }

    /// One lane on a disk that does as it is told.
    pub fn calm(seed: u64, steps: usize) -> Plan {
        Plan {
            seed,
            block_bytes: 512,
            weather: Weather::CALM,
            holds: false,
            room_bytes: 64 << 20,
            lanes: 1,
            mode: Mode::Fast,
            overlap: Overlap::Never,
            discards: true,
            edits: false,
            steps,
            fails: None,
        }
    }

    /// The same on a graph that changes now and then.
    pub fn edited(mut self) -> Plan {
        self.edits = true;
        self
    }

    /// The same, but for one operation.
    pub fn failing_once(mut self, nth: u64) -> Plan {
        self.fails = Some(nth);
        self
    }

    /// Are crashes looked at?
    pub fn crashes(&self) -> bool {
        self.fails.is_none() && self.steps < 200
    }

    /// The same on a disk that fails now and then.
    pub fn failing(mut self) -> Plan {
        self.weather.failed = 10;
        self
    }

    pub fn cache(&self) -> Cache {
        match self.block_bytes {
            1 => Cache::Page,
            _ => Cache::Direct,
        }
    }

    /// May requests fail?
    pub fn may_fail(&self) -> bool {
        self.fails.is_some() || self.weather.failed > 0 || self.room_bytes < 1 << 20
    }
}
