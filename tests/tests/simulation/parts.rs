//! The parts of the simulator itself. They are tested here and not in their own files: the library of the simulator would be
//! compiled a second time for that, which takes minutes.

mod availability;
mod entries;
mod linearizability;
mod network;
mod services;
mod system;
