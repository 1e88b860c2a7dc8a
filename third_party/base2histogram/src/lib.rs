//! Counts of values by size, four buckets to each power of two: what openraft uses of `base2histogram`, without tables.

use std::fmt;
use std::marker::PhantomData;

/// Bits of a value kept below its highest one.
const FRACTION: u32 = 2;
const GROUP: usize = 1 << FRACTION;
/// One group for the values below `GROUP`, one for each higher bit.
const BUCKETS: usize = GROUP * (u64::BITS - FRACTION + 1) as usize;

/// How often values of each size were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    data: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], data: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value that was seen `times` times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let count = &mut self.counts[bucket(value)];
        *count = count.saturating_add(times);
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The smallest value of the bucket that holds this share (0 to 1) of what was counted; 0 if nothing was.
    pub fn percentile(&self, share: f64) -> u64 {
        let wanted = ((self.total() as f64 * share).ceil() as u64).max(1);
        let mut seen: u64 = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= wanted {
                return smallest(index);
            }
        }
        0
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

fn bucket(value: u64) -> usize {
    if value < GROUP as u64 {
        return value as usize;
    }
    let shift = u64::BITS - value.leading_zeros() - 1 - FRACTION;
    GROUP * (shift as usize + 1) + (value >> shift) as usize % GROUP
}

fn smallest(bucket: usize) -> u64 {
    if bucket < GROUP {
        return bucket as u64;
    }
    ((GROUP + bucket % GROUP) as u64) << (bucket / GROUP - 1)
}

/// Percentiles of what a histogram counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values.
    pub samples: u64,
    /// 0.1th percentile.
    pub p0_1: u64,
    /// 1st.
    pub p1: u64,
    /// 5th.
    pub p5: u64,
    /// 10th.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// 90th.
    pub p90: u64,
    /// 99th.
    pub p99: u64,
    /// 99.9th.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, p1, p5, p10, p50, p90, p99, p99_9 } = self;
        write!(f, "[samples: {samples}, P0.1: {p0_1}, P1: {p1}, P5: {p5}, P10: {p10}, P50: {p50}, ")?;
        write!(f, "P90: {p90}, P99: {p99}, P99.9: {p99_9}]")
    }
}

/// Histograms by name, one line each.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart(Vec<(String, Histogram)>);

impl AsciiChart {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more.
    #[expect(clippy::should_implement_trait, reason = "the name that openraft calls")]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.0.push((name.into(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, histogram)| writeln!(f, "{name}: {}", histogram.percentile_stats()))
    }
}
