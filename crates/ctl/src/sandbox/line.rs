//! One direction of a bad cable: which frames it loses, and when it hands over the others.
//!
//! A frame passes what it passes on a real path: first a link that is as fast as `rate`, with a bounded buffer in front of
//! it, then a way that takes `delay`. The order of frames is kept. Nothing here reads a clock or the system's random source.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::settings::LinkSettings;

/// The buffer in front of the link holds what the link sends in this time, as that of a usual router does.
const BUFFER: Duration = Duration::from_millis(100);
/// The least that the buffer holds, in bytes: some full frames, however slow the link is.
const LEAST_BUFFER: u64 = 32 * 1_514;
/// Most bytes on the way. A longer and faster path than this loses what is beyond it.
const MOST_BYTES: usize = 64 << 20;

/// One direction of a cable. Times are counted from any fixed moment.
pub(crate) struct Line {
    settings: LinkSettings,
    random: SmallRng,
    /// When the link has sent everything that it has taken.
    free_at: Duration,
    /// Frames with the times at which they arrive, which never fall.
    on_the_way: VecDeque<(Duration, Vec<u8>)>,
    bytes: usize,
}

impl Line {
    /// Returns an idle line, whose losses and delays follow from `seed`.
    pub(crate) fn new(settings: LinkSettings, seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self { settings, random, free_at: Duration::ZERO, on_the_way: VecDeque::new(), bytes: 0 }
    }

    /// Takes a frame, or loses it.
    pub(crate) fn send(&mut self, now: Duration, frame: &[u8]) {
        let lost = self.random.random_bool(self.settings.loss.probability());
        let LinkSettings { delay, jitter, .. } = self.settings;
        let delay = delay.saturating_sub(jitter) + jitter.mul_f64(self.random.random_range(0.0..=2.0));
        if lost || self.bytes + frame.len() > MOST_BYTES {
            return;
        }
        let Some(sent) = self.through_the_link(now, frame.len() as u64) else { return };
        let last = self.on_the_way.back().map_or(Duration::ZERO, |(last, _)| *last);
        self.bytes += frame.len();
        self.on_the_way.push_back((last.max(sent + delay), frame.to_vec()));
    }

    /// Returns when the link has sent a frame of this length, or `None` if its buffer is full.
    fn through_the_link(&mut self, now: Duration, length: u64) -> Option<Duration> {
        let Some(rate) = self.settings.rate else { return Some(now) };
        let start = self.free_at.max(now);
        if start - now > BUFFER.max(rate.time_for(LEAST_BUFFER)) {
            return None;
        }
        self.free_at = start + rate.time_for(length);
        Some(self.free_at)
    }

    /// Returns when the next frame arrives.
    pub(crate) fn next_arrival(&self) -> Option<Duration> {
        self.on_the_way.front().map(|(arrival, _)| *arrival)
    }

    /// Returns the next frame, if it has arrived by now.
    pub(crate) fn recv(&mut self, now: Duration) -> Option<Vec<u8>> {
        let (_, frame) = self.on_the_way.pop_front_if(|(arrival, _)| *arrival <= now)?;
        self.bytes -= frame.len();
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::settings::{Loss, Rate};

    const MS: Duration = Duration::from_millis(1);

    fn settings() -> LinkSettings {
        LinkSettings { delay: 40 * MS, jitter: Duration::ZERO, loss: Loss::default(), rate: None }
    }

    /// Sends `count` numbered frames of this length, one each `interval`, and returns each that arrives with its time.
    fn pass(settings: LinkSettings, seed: u64, count: u32, length: usize, interval: Duration) -> Vec<(u32, Duration)> {
        let mut line = Line::new(settings, seed);
        for number in 0..count {
            let mut frame = vec![0; length];
            frame[..4].copy_from_slice(&number.to_be_bytes());
            line.send(interval * number, &frame);
        }
        let mut arrived = Vec::new();
        while let Some(at) = line.next_arrival() {
            assert!(line.recv(at - Duration::from_nanos(1)).is_none(), "not before its time");
            let frame = line.recv(at).expect("it has arrived");
            arrived.push((u32::from_be_bytes(frame[..4].try_into().expect("four bytes")), at));
        }
        assert_eq!(line.bytes, 0);
        arrived
    }

    #[test]
    fn every_frame_is_late_by_the_delay_give_or_take_the_jitter_and_the_order_stays() {
        let arrived = pass(settings(), 1, 100, 60, MS);
        assert!(arrived.iter().enumerate().all(|(index, (_, at))| *at == 40 * MS + MS * index as u32));
        let arrived = pass(LinkSettings { jitter: 5 * MS, ..settings() }, 1, 1_000, 60, 20 * MS);
        let delays: Vec<Duration> = arrived.iter().map(|(number, at)| *at - 20 * MS * *number).collect();
        assert!(delays.iter().all(|delay| (35 * MS..=45 * MS).contains(delay)), "{delays:?}");
        assert!(delays.iter().any(|it| *it < 36 * MS) && delays.iter().any(|it| *it > 44 * MS), "{delays:?}");
        let crowded = pass(LinkSettings { jitter: 40 * MS, ..settings() }, 1, 1_000, 60, MS / 10);
        assert!(crowded.is_sorted() && crowded.len() == 1_000, "the order is kept, and nothing is lost");
    }

    #[test]
    fn losses_have_the_stated_share_and_follow_from_the_seed() {
        let lossy = |percent: f64, seed| {
            let loss = Loss::from_percent(percent).expect("a loss");
            pass(LinkSettings { loss, ..settings() }, seed, 10_000, 60, MS)
        };
        let arrived = lossy(2.0, 7);
        assert!((9_750..9_850).contains(&arrived.len()), "{}", arrived.len());
        assert_eq!(arrived, lossy(2.0, 7), "the same seed, the same losses");
        assert_ne!(arrived, lossy(2.0, 8));
        assert_eq!((lossy(0.0, 7).len(), lossy(100.0, 7).len()), (10_000, 0));
    }

    #[test]
    fn the_rate_is_kept_and_a_full_buffer_loses_frames() {
        let rate = Some(Rate::from_bits(12_000_000).expect("a rate"));
        // A frame of 1,500 bytes takes 1 ms.
        let fits = pass(LinkSettings { rate, ..settings() }, 1, 1_000, 1_500, MS);
        assert!(fits.len() == 1_000 && fits.iter().all(|(number, at)| *at == MS * *number + 41 * MS));
        let twice = pass(LinkSettings { rate, ..settings() }, 1, 1_000, 1_500, MS / 2);
        assert!((600..=602).contains(&twice.len()), "half of what comes, and once the buffer: {}", twice.len());
        assert!(twice.iter().all(|(number, at)| *at - MS / 2 * *number <= 142 * MS), "nothing waits longer than that");
        let slow = Some(Rate::from_bits(10_000).expect("a rate"));
        assert!(pass(LinkSettings { rate: slow, ..settings() }, 1, 30, 1_500, MS).len() == 30, "a few frames fit");
    }

    #[test]
    fn what_is_on_the_way_is_bounded() {
        let endless = LinkSettings { delay: 10_000 * MS, ..settings() };
        let mut line = Line::new(endless, 1);
        (0..2_000).for_each(|_| line.send(Duration::ZERO, &[0; 65_536]));
        assert_eq!(line.bytes, MOST_BYTES);
    }
}
