//! One thread that makes appended entries durable. sled's own `flush` does not reach the disk (it writes and
//! calls sync_file_range), so an acknowledgement is `flush` and then fdatasync on its file. Entries that come in
//! during one sync share the next.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc;

/// What to do when everything that was written before is on disk, or can't be.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The thread's end of the line; dropping it ends the thread.
#[derive(Clone, Debug)]
pub(super) struct Flusher(mpsc::Sender<Done>);

impl Flusher {
    pub(super) fn start(db: sled::Db, file: File) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Done>();
        std::thread::Builder::new().name("raft-flusher".into()).spawn(move || {
            while let Ok(first) = receiver.recv() {
                let waiting: Vec<Done> = std::iter::once(first).chain(receiver.try_iter()).collect();
                let result = sync(&db, &file);
                for done in waiting {
                    done(match &result {
                        Ok(()) => Ok(()),
                        // An error can be told once only: each gets its own.
                        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                    });
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Calls `done` once everything written so far is durable.
    pub(super) fn after_sync(&self, done: Done) {
        if let Err(mpsc::SendError(done)) = self.0.send(done) {
            done(Err(io::Error::other("the flusher has stopped")));
        }
    }

    /// Waits until everything written so far is durable.
    pub(super) async fn sync(&self) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.after_sync(Box::new(move |result| drop(sender.send(result))));
        receiver.await.map_err(|_| io::Error::other("the flusher has stopped"))?
    }
}

fn sync(db: &sled::Db, file: &File) -> io::Result<()> {
    db.flush().map_err(io::Error::other)?;
    file.sync_data()
}

/// The file that sled writes; synced with its folder, so that it is found again.
pub(super) fn open_data_file(dir: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(dir.join("db"))?;
    file.sync_all()?;
    super::sync_dir(dir)?;
    super::sync_dir(dir.parent().unwrap_or(Path::new("/")))?;
    Ok(file)
}
