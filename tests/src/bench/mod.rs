//! What a request costs: a load generator on our own rings, and the contenders it drives in turn.
//!
//! The rule of measuring on a noisy machine: every row runs its contenders A B A B in one go, and what counts is the ratio
//! within a round, not the figure. Nothing here asserts a time.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where it is surprised"
)]

pub mod fio;
pub mod instructions;
pub mod jobs;
pub mod load;
pub mod nbd;
pub mod process;
pub mod report;
pub mod rows;

/// Median of some figures; 0 of none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
