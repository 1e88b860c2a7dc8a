//! How many answers a second.
