//! Real clusters: real `flotad`, kernel, images and faults. Put here what a user would do or suffer, one file for
//! each theme.
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

mod archives;
mod bad_input;
mod devices;
mod faults;
mod health;
mod histories;
mod images;
mod networks;
mod nodes;
mod runtimes;
mod services;
