//! The worker: keeps a session with the leader, and carries out what it assigns.
//!
//! ```text
//!  leader ⇄ agent.rs (session) ─▶ task_pool.rs ─▶ task_runner.rs, one for each task
//!               ▲                                   │ restart.rs decides, executor.rs acts     
//!               └── reporter.rs ◀── statuses ◀──────┘
//!  executor.rs: image (images.rs), container (translate.rs → runtime), task_db.rs keeps what must outlive the daemon
//! ```
//!
//! A restart is local: a container that ended is started again by its policy, without a manager. Containers do not
//! end with the daemon; the next one finds them by their folders.

mod agent;
mod assignments;
mod describe;
mod devices;
mod executor;
mod gpus;
mod images;
mod managers;
mod offers;
mod reporter;
mod restart;
mod streams;
mod task_db;
mod task_pool;
mod task_runner;
mod translate;
mod worker;

pub use describe::describe;
pub use images::ImagesService;
pub use offers::NodeOffers;
pub use worker::{StartError, Worker, WorkerOptions};
