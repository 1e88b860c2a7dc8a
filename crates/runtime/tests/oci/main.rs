//! The runtime against a real kernel: the program `flota-runtime` and the library's doors. Needs root and busybox.
//!
//! Put here what a caller, a container or an image could do, by theme; what needs no kernel stands in `src/`.
//! Each test has a bundle of its own, and the bundle's end removes all that it left ([`harness::Bundle`]).
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

mod bad_input; // configurations, bundles and ids that are refused, each with one line and nothing left
mod census; // what is on the machine of a test: processes, mounts, cgroups, states, namespaces
mod checks; // contained processes: they end with what they have started, and one that stays starts them
mod config; // namespaces, devices, cgroup limits, names and what else `linux` says
mod exec; // further processes in a container
mod fuzz_corpus; // the corpus of configurations, and mutations of it: no panic
mod harness; // a bundle, and the program under test
mod hooks; // programs at points of a container's life
mod image_mounts; // images that a container mounts beside its root
mod launcher; // the process that supervisors are forked from
mod lifecycle; // create, start, kill, delete, pause, list, update, …
mod mounts; // `mounts`, the root, masked and read-only paths
mod other_runtimes; // the same container by three runtimes under our supervisor
mod own_ids; // containers with user and group ids of their own
mod process; // `process`: identity, capabilities, limits, priorities
mod rootless; // of a user without rights
mod running; // a call of the program: its output and code
mod seccomp; // filters, and the agent that is asked
mod security; // by CVE: what an image or a caller must not be able to do
mod signals; // a runtime that is killed in the middle
mod supervised; // a container of a daemon
mod supervisor; // the library: output, exit codes, exec, attach, the supervisor's end
mod systemd; // scopes of systemd, by a bus and a manager of the test
mod terminal; // terminals and descriptors that are passed on
mod waiting; // how long a test waits
