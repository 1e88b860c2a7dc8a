//! The asynchronous runtime that the Raft library is given: tokio's, with a random source that can be seeded.
//!
//! The library asks for random numbers through a function without arguments, so the source is the thread's: a
//! simulated cluster runs in one thread and seeds it once; a real one seeds the threads of its Raft core.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::AsyncRuntime;
use openraft::impls::TokioRuntime as Tokio;

use flota_api::clock::Random;

thread_local! {
    static SOURCE: RefCell<Option<Random>> = const { RefCell::new(None) };
}

/// Elections of managers that run on this thread draw from `random` from now on.
pub(super) fn seed_this_thread(random: Random) {
    SOURCE.with_borrow_mut(|source| *source = Some(random));
}

/// Tokio, drawing from this thread's source.
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
        Tokio::sleep_until(deadline)
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
