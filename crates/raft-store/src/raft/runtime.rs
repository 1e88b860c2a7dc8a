//! The asynchronous runtime for the Raft library: tokio's, with a random source that can be seeded and with fewer
//! ticks.
//!
//! The library calls for random numbers and sleeps through functions without context, so both are thread-local. A
//! simulated cluster runs in one thread and seeds it once; a real manager sets up the thread of its Raft core.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft::impls::TokioRuntime as Tokio;
use openraft::{Instant as _, OptionalSend};

use flota_api::clock::Random;

#[allow(deprecated, reason = "the library's own name for its tokio runtime moved to a crate that it re-exports here")]
type Instant = <Tokio as AsyncRuntime>::Instant;

/// Shorter sleeps are not lengthened: the library batches notices of written entries with a deadline of 1 µs.
const SHORTEST_TICK: Duration = Duration::from_millis(1);

thread_local! {
    static SOURCE: RefCell<Option<Random>> = const { RefCell::new(None) };
    static TICKS: Cell<Option<Ticks>> = const { Cell::new(None) };
}

/// The moments at which the core checks its timers: every `period`, starting at `origin`.
///
/// The library's own period is 13/64 of a heartbeat and can't be set. An idle manager spends most of its CPU time on
/// these wakes. The library waits for its next tick with [`AsyncRuntime::sleep_until`], and skips ticks that it misses.
#[derive(Clone, Copy)]
pub(super) struct Ticks {
    origin: Instant,
    period: Duration,
}

impl Ticks {
    /// Returns ticks for a runtime that is built next.
    ///
    /// Tokio's timers that are more than 64 ms away are kept in slots of 64 ms, counted from when the runtime was built,
    /// and cost a second wake at the start of their slot unless they end there. A period of whole slots avoids it.
    pub(super) fn from_now(period: Duration) -> Self {
        Self { origin: Instant::now(), period }
    }

    /// Makes cores that run on this thread check their timers at these ticks only.
    pub(super) fn apply_to_this_thread(self) {
        TICKS.set(Some(self));
    }

    /// Returns the first tick that is not before `deadline`.
    fn at_or_after(self, deadline: Instant) -> Instant {
        let ticks = (deadline - self.origin).as_nanos().div_ceil(self.period.as_nanos().max(1));
        self.origin + self.period * u32::try_from(ticks).unwrap_or(u32::MAX)
    }
}

/// Returns when a sleep until `deadline` that starts at `now` ends: lengthened to a tick, unless it is very short.
fn lengthen(ticks: Option<Ticks>, deadline: Instant, now: Instant) -> Instant {
    match ticks {
        Some(ticks) if deadline - now >= SHORTEST_TICK => ticks.at_or_after(deadline),
        _ => deadline,
    }
}

/// Makes managers that run on this thread draw their election timeouts from `random`.
pub(super) fn seed_this_thread(random: Random) {
    SOURCE.with_borrow_mut(|source| *source = Some(random));
}

/// Tokio's runtime, with random numbers from this thread's source.
#[derive(Debug)]
pub(crate) struct Runtime(Tokio);

#[allow(deprecated, reason = "the library's own name for its tokio runtime moved to a crate that it re-exports here")]
impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = rand_openraft::rngs::SmallRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        Tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(lengthen(TICKS.get(), deadline, Instant::now()))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        use rand::Rng;
        use rand_openraft::SeedableRng;
        let seed = SOURCE.with_borrow_mut(|source| source.get_or_insert_with(Random::from_os).draw(|rng| rng.random()));
        Self::ThreadLocalRng::seed_from_u64(seed)
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_librarys_tick_loop_wakes_at_the_set_period() {
        let origin = Instant::now();
        let ticks = Ticks { origin, period: 100 * MS };
        let mut now = origin;
        for wake in 1..=100 {
            // As in the library, the next deadline is the next multiple of its own period.
            let next = (now - origin).as_millis() / 35 + 1;
            now = ticks.at_or_after(origin + 35 * MS * u32::try_from(next).unwrap());
            assert_eq!(now - origin, 100 * MS * wake);
        }
    }

    #[test]
    fn a_deadline_moves_to_the_next_tick_unless_it_is_too_near_to_be_one() {
        let now = Instant::now();
        let ticks = Ticks { origin: now - 30 * MS, period: 100 * MS };
        let lengthened = |after| lengthen(Some(ticks), now + after, now) - now;
        assert_eq!(lengthened(39 * MS), 70 * MS);
        assert_eq!(lengthened(70 * MS), 70 * MS);
        assert_eq!(lengthened(71 * MS), 170 * MS);
        assert_eq!(lengthened(Duration::from_micros(1)), Duration::from_micros(1));
    }
}
