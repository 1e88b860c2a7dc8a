//! The thread on which a worker writes its small files: the records of tasks, and what it knows of its managers. A slow
//! disk delays these writes, but neither heartbeats nor the work of other tasks.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs jobs one after the other. It ends when this is dropped, after the jobs that were given to it.
#[derive(Debug)]
pub(crate) struct DiskThread(mpsc::Sender<Job>);

impl DiskThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel refuses another thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        // A job that panics drops what its caller waits for. Later jobs must run, or their callers would wait for ever.
        let run = move || jobs.into_iter().for_each(|job| drop(catch_unwind(AssertUnwindSafe(job))));
        std::thread::Builder::new().name("flota-disk".into()).spawn(run)?;
        Ok(Self(sender))
    }

    /// Runs a job after those that were given before. Does not block. Callers bound the number of their jobs.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The thread ends only when this is dropped.
        let _ = self.0.send(Box::new(job));
    }

    /// Blocks until all jobs are done that were given before.
    pub(crate) fn drain(&self) {
        let (done, is_done) = mpsc::channel();
        self.run(move || {
            let _ = done.send(());
        });
        // An error means that the thread has ended, and its jobs with it.
        let _ = is_done.recv();
    }
}
