//! The system's random numbers and clocks for a thread that runs a simulation: from its seed, and from the world's
//! time.
//!
//! The keys of `HashMap`, tokio's `select!` and every generator that the system seeds then depend only on the seed.
//! Every new runtime starts at the world's time, so that instants of all processes can be compared. The functions of
//! libc are replaced for the whole program; other threads get the kernel's results. build.rs of this crate exports
//! `getrandom`, for libraries that look it up at run time.
#![allow(unsafe_code, reason = "C functions take the place of libc's")]

use std::cell::{Cell, RefCell};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

thread_local! {
    static SOURCE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    /// Milliseconds since the simulation began.
    static NOW: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Value of the monotonic clock at the start of a simulation, in seconds.
const MONOTONIC: u64 = 1_000_000;
/// Value of the wall clock at the start of a simulation, in seconds since 1970.
pub(super) const WALL: u64 = 1_800_000_000;

/// Makes this thread read random numbers from `seed`, and the time that [`set_time`] sets. Call it first in a new
/// thread, because earlier results stay cached.
pub fn seed_this_thread(seed: u64) {
    SOURCE.with_borrow_mut(|source| *source = Some(StdRng::seed_from_u64(seed)));
    set_time(0);
}

/// Sets the time of this thread, in milliseconds since the simulation began.
pub fn set_time(millis: u64) {
    NOW.set(Some(millis));
}

/// CPU time of this thread. A simulation must not depend on it.
pub(super) fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanoseconds.unwrap_or_default())
}

/// Bytes that this program has allocated and not freed (mallinfo(3)).
pub(super) fn allocated() -> u64 {
    // SAFETY: it takes no arguments and only reads the allocator's counters.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

fn fill(bytes: &mut [u8]) -> bool {
    // A thread that is ending may have dropped its source.
    let filled = SOURCE.try_with(|source| {
        let mut source = source.try_borrow_mut().ok()?;
        source.as_mut().map(|source| source.fill_bytes(bytes))
    });
    matches!(filled, Ok(Some(())))
}

/// getrandom(2), from the seed if this thread has one.
///
/// # Safety
/// As for libc's function: `buffer` must be writable for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    // SAFETY: the caller guarantees that `length` bytes are writable; none is read before it is written.
    let bytes = unsafe {
        std::ptr::write_bytes(buffer.cast::<u8>(), 0, length);
        std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length)
    };
    if fill(bytes) {
        return libc::ssize_t::try_from(length).unwrap_or(libc::ssize_t::MAX);
    }
    // SAFETY: these are the caller's arguments, unchanged, as getrandom(2) expects them.
    let result = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
    libc::ssize_t::try_from(result).unwrap_or(-1)
}

/// clock_gettime(2), from the world's time if this thread has one.
///
/// # Safety
/// As for libc's function: `time` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let base = match clock {
        libc::CLOCK_MONOTONIC => Some(MONOTONIC),
        libc::CLOCK_REALTIME => Some(WALL),
        _ => None,
    };
    if let (Some(base), Some(millis)) = (base, NOW.get()) {
        let seconds = libc::time_t::try_from(base + millis / 1_000).unwrap_or(libc::time_t::MAX);
        let nanoseconds = libc::c_long::try_from(millis % 1_000 * 1_000_000).unwrap_or(0);
        // SAFETY: the caller guarantees that `time` is writable.
        unsafe { time.write(libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds }) };
        return 0;
    }
    // SAFETY: these are the caller's arguments, unchanged, as clock_gettime(2) expects them.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    libc::c_int::try_from(result).unwrap_or(-1)
}
