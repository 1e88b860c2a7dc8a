//! What users may ask. Every request reaches the leader (see [`crate::forward`]); names are looked up here, so that
//! a lookup and what follows from it see one state. One file for each noun.

mod cluster;
mod find;
mod images;
mod nodes;
mod progress;
mod registries;
mod server;
mod services;
mod stacks;
mod status;
mod streams;
mod tasks;
mod validate;

pub use server::ControlService;

pub(crate) use status::propose_status;
