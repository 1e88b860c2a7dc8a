//! The rules of the house, checked: who may import whom, how long a file may be, what must not read a clock.
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

mod citations;
mod determinism;
mod edges;
mod graph;
mod modules;
mod names;
mod sizes;
mod source;
