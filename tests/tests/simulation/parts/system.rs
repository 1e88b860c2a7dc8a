//! Clock and random source of a simulated thread.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use flota_tests::sim::system::{seed_this_thread, set_time};

/// Returns, from a new thread, the hash of 7, the iteration order of a set, and the output of two generators.
fn drawn(seed: Option<u64>) -> (u64, Vec<u32>, u64, [u8; 8]) {
    let work = move || {
        if let Some(seed) = seed {
            seed_this_thread(seed);
        }
        let set: HashSet<u32> = (0..20).collect();
        let mut bytes = [0; 8];
        rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, &mut bytes).unwrap();
        (RandomState::new().hash_one(7), set.into_iter().collect(), rand::random(), bytes)
    };
    std::thread::spawn(work).join().unwrap()
}

#[test]
fn a_seeded_thread_draws_the_same_again_and_others_do_not() {
    assert_eq!(drawn(Some(1)), drawn(Some(1)));
    let (a, b) = (drawn(Some(1)), drawn(Some(2)));
    assert!(a.0 != b.0 && a.2 != b.2 && a.3 != b.3);
    let (c, d) = (drawn(None), drawn(None));
    assert!(c.2 != d.2 && c.3 != d.3);
}

#[test]
fn a_seeded_thread_reads_the_time_that_was_set_and_others_the_machines() {
    let work = || {
        seed_this_thread(1);
        let (instant, wall) = (Instant::now(), SystemTime::now());
        set_time(1_500);
        (instant.elapsed(), wall.elapsed().unwrap())
    };
    let elapsed = std::thread::spawn(work).join().unwrap();
    assert_eq!(elapsed, (Duration::from_millis(1_500), Duration::from_millis(1_500)));
    let before = Instant::now();
    std::thread::spawn(|| ()).join().unwrap();
    assert!(before.elapsed() > Duration::ZERO);
}
