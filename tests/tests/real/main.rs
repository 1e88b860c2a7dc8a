//! Real clusters: real `flotad`, kernel, images and faults. Put here what a user would do or suffer, one file for
//! each theme.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests say why they fail, and long ones what they saw")]

mod archives;
mod autolock;
mod bad_input;
mod bind_mounts;
mod ca;
mod certificates;
mod day_two;
mod dependencies;
mod devices;
mod encryption;
mod examples;
mod faults;
mod health;
mod histories;
mod image_mounts;
mod image_volumes;
mod images;
mod jobs;
mod link;
mod moves;
mod network_check;
mod networks;
mod nodes;
mod placement;
mod platforms;
mod port_forward;
mod recovery;
mod registries;
mod retries;
mod roles;
mod runbook;
mod runtimes;
mod scaling;
mod secrets;
mod servers;
mod services;
mod settings;
mod swarm_settings;
mod timeline;
mod traffic;
mod updates;
mod users;
mod volumes;
