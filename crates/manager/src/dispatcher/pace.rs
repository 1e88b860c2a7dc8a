//! How often a session tells its worker what has changed: at once, and then again after a pause, in which changes gather.
//! The pause is longer in a large cluster, which bounds the leader's load; in a small one there is none.

use std::time::Duration;

use tokio::time::Instant;

/// Number of times in a second that all sessions together tell their workers something.
const TURNS_PER_SECOND: u32 = 20_000;
/// The precision of tokio's timer. A shorter pause is not worth the wait for it.
const LEAST: Duration = Duration::from_millis(1);

/// The pace of one session.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the session may tell something again.
    next: Option<Instant>,
}

/// Returns the pause of a session in a cluster of so many nodes.
fn pause(nodes: usize) -> Duration {
    Duration::from_secs(1) * u32::try_from(nodes).unwrap_or(u32::MAX) / TURNS_PER_SECOND
}

impl Pace {
    /// Records that the worker was told something just now, in a cluster of so many nodes.
    pub(super) fn told(&mut self, nodes: usize) {
        self.next = Some(pause(nodes)).filter(|pause| *pause >= LEAST).map(|pause| Instant::now() + pause);
    }

    /// Waits until the session may tell something.
    pub(super) async fn turn(&self) {
        if let Some(next) = self.next {
            tokio::time::sleep_until(next).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a session waits that told something `ago`, in a cluster of so many nodes.
    async fn waits(nodes: usize, ago: Duration) -> Duration {
        let mut pace = Pace::default();
        pace.told(nodes);
        tokio::time::advance(ago).await;
        let begun = Instant::now();
        pace.turn().await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_change_is_told_at_once_and_those_behind_it_gather_in_a_large_cluster() {
        let begun = Instant::now();
        Pace::default().turn().await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "nothing was told yet");
        assert_eq!(waits(5_000, Duration::ZERO).await, Duration::from_millis(250));
        assert_eq!(waits(5_000, Duration::from_millis(200)).await, Duration::from_millis(50));
        assert_eq!(waits(5_000, Duration::from_secs(1)).await, Duration::ZERO, "the pause is over");
        assert_eq!(waits(10, Duration::ZERO).await, Duration::ZERO, "a small cluster has no pause");
    }
}
