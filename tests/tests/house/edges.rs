//! Which of our crates may import which. An edge that is not in the list fails.

use std::collections::BTreeMap;
use std::process::Command;

const ALLOWED: [(&str, &[&str]); 12] = [
    ("flota-api", &[]),
    ("flota-runtime", &[]),
    ("flota-image", &[]),
    ("flota-network", &[]),
    ("flota-identity", &["flota-api"]),
    ("flota-raft-store", &["flota-api"]),
    ("flota-manager", &["flota-api", "flota-raft-store", "flota-identity"]),
    ("flota-worker", &["flota-api", "flota-identity", "flota-runtime", "flota-image", "flota-network"]),
    ("flota-stack", &["flota-api"]),
    (
        "flota-node",
        &["flota-api", "flota-identity", "flota-raft-store", "flota-manager", "flota-worker", "flota-image"],
    ),
    ("flota-ctl", &["flota-api", "flota-identity", "flota-stack", "flota-runtime", "flota-network"]),
    ("flota-tests", &["flota-api", "flota-identity", "flota-raft-store", "flota-manager", "flota-worker"]),
];

#[test]
fn crates_import_only_what_they_may() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output =
        Command::new(cargo).args(["metadata", "--format-version=1", "--no-deps", "--offline"]).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    let mut seen = 0;
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some(may) = allowed.get(name) else { continue };
        seen += 1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            assert!(!other.starts_with("flota-") || may.contains(&other), "{name} must not import {other}");
        }
    }
    assert_eq!(seen, ALLOWED.len(), "every crate of the list is there");
}
