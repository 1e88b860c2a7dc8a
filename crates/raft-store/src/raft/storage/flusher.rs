//! One thread that makes appended entries durable. sled's own `flush` does not reach the disk (it writes and
//! calls sync_file_range), so an acknowledgement is `flush` and then fdatasync on its file. Entries that come in
//! during one sync share the next.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, mpsc};

/// What to do when everything that was written before is on disk, or can't be.
pub(super) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What waits for a sync: the last entry that it makes durable, if any, and whom to tell.
type Waiting = (Option<u64>, Done);

/// The thread's end of the line; dropping it ends the thread.
#[derive(Clone, Debug)]
pub(super) struct Flusher(mpsc::Sender<Waiting>);

impl Flusher {
    pub(super) fn start(db: sled::Db, file: File, acknowledged: Acknowledged) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Waiting>();
        std::thread::Builder::new().name("raft-flusher".into()).spawn(move || {
            while let Ok(first) = receiver.recv() {
                let waiting: Vec<Waiting> = std::iter::once(first).chain(receiver.try_iter()).collect();
                let last = waiting.iter().filter_map(|(index, _)| *index).max();
                let result = sync(&db, &file).and_then(|()| last.map_or(Ok(()), |index| acknowledged.write(index)));
                for (_, done) in waiting {
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

    /// Calls `done` once everything written so far is durable; `last` is the last entry of it.
    pub(super) fn after_sync(&self, last: Option<u64>, done: Done) {
        if let Err(mpsc::SendError((_, done))) = self.0.send((last, done)) {
            done(Err(io::Error::other("the flusher has stopped")));
        }
    }

    /// Waits until everything written so far is durable.
    pub(super) async fn sync(&self) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.after_sync(None, Box::new(move |result| drop(sender.send(result))));
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

/// The last entry that was acknowledged, beside the store: written after the sync that the acknowledgement waited
/// for, and not synced itself. So it is never ahead of what was synced, and a store that ends before it has lost
/// something. After a power failure it may be behind, which only makes it notice less.
#[derive(Clone, Debug)]
pub(super) struct Acknowledged(Arc<File>);

impl Acknowledged {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self(Arc::new(file)))
    }

    fn write(&self, index: u64) -> io::Result<()> {
        let index = index.to_be_bytes();
        let mut record = [0; 12];
        record[..8].copy_from_slice(&index);
        record[8..].copy_from_slice(&crc32fast::hash(&index).to_be_bytes());
        self.0.write_all_at(&record, 0)
    }

    /// `None`: nothing was acknowledged, or the note itself is damaged.
    pub(super) fn read(&self) -> Option<u64> {
        let mut record = [0; 12];
        self.0.read_exact_at(&mut record, 0).ok()?;
        let (index, checksum) = record.split_first_chunk::<8>()?;
        (crc32fast::hash(index).to_be_bytes() == checksum).then_some(u64::from_be_bytes(*index))
    }

    /// Entries after this one are given up by Raft itself: durable before they are. Never raises it.
    pub(super) fn lower(&self, index: u64) -> io::Result<()> {
        if self.read().is_none_or(|known| known <= index) {
            return Ok(());
        }
        self.write(index)?;
        self.0.sync_data()
    }
}
