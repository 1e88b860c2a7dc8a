//! How a service chooses among the nodes that fit.

use std::str::FromStr;

use crate::state::states;

states! {
    /// Which of the nodes that fit a task gets.
    PlacementStrategy {
        /// One with few tasks.
        Spread = "spread",
        /// One with many, so that others stay free for large tasks.
        Binpack = "binpack",
        /// One of which little is in use, as measured.
        LeastUsed = "least-used",
    }
}

impl FromStr for PlacementStrategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|it| it.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is none of spread, binpack and least-used"))
    }
}
