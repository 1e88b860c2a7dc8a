//! Code that decides reads no clock and no random source by itself: clippy checks it, by a file of each crate.

use std::path::Path;

const DECIDING: [&str; 3] = ["manager", "raft-store", "worker"];

const BANNED: [&str; 4] =
    ["std::time::SystemTime::now", "std::time::Instant::now", "rand::rng", "rand::SeedableRng::from_os_rng"];

#[test]
fn clippy_bans_clocks_and_random_sources_where_something_is_decided() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let whole = std::fs::read_to_string(root.join("clippy.toml")).unwrap();
    assert!(whole.lines().count() > 5, "the workspace has rules of its own");
    for name in DECIDING {
        let path = root.join("crates").join(name).join("clippy.toml");
        let own = std::fs::read_to_string(&path).unwrap();
        // Clippy reads the nearest file and no other.
        for line in whole.lines() {
            assert!(own.lines().any(|it| it == line), "{}: `{line}` is missing", path.display());
        }
        for banned in BANNED {
            assert!(own.contains(&format!("{{ path = \"{banned}\",")), "{}: {banned} is not banned", path.display());
        }
    }
}
