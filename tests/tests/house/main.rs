//! The rules of the house, checked: who may import whom, how long a file may be.
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

mod edges;
mod modules;
mod sizes;
