//! Snapshots as files, `snap.<index>`: a format number, then frames of a length and sealed bytes. The first frame is the description,
//! the last an end mark with the count, so that a cut file is noticed. Written, synced, renamed, folder synced.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::OpenError;
use super::sync_dir;
use crate::raft::type_config::SnapshotMeta;
use crate::store::Tables;
use flota_api::seal::Sealer;

/// No record is larger: an entry's bound with room to spare.
const FRAME_BOUND: usize = 64 << 20;

/// Of the files; another one is refused.
const FORMAT: u8 = 1;

/// The snapshots of one manager.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFiles {
    dir: PathBuf,
    sealer: Sealer,
}

impl SnapshotFiles {
    pub(crate) fn new(dir: PathBuf, sealer: Sealer) -> Self {
        Self { dir, sealer }
    }

    /// Writes a snapshot and removes the ones before it.
    pub(crate) fn save(&self, meta: &SnapshotMeta, tables: &Tables) -> io::Result<()> {
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let path = self.dir.join(format!("snap.{index:020}"));
        // A snapshot that is built and one that is installed may be written at once.
        let temporary = self.dir.join(format!("new-snap.{index:020}"));
        let mut file = BufWriter::new(fs_err::File::create(&temporary)?);
        file.write_all(&[FORMAT])?;
        let description = postcard::to_stdvec(meta).map_err(io::Error::other)?;
        let mut count = 0u64;
        for record in std::iter::once(description).chain(tables.records()) {
            write_frame(&mut file, &self.sealer.seal(&what(count), &record))?;
            count += 1;
        }
        write_frame(&mut file, &self.sealer.seal(b"snap end", &count.to_be_bytes()))?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs_err::rename(&temporary, &path)?;
        sync_dir(&self.dir)?;
        for old in self.list()?.into_iter().filter(|other| *other < path) {
            fs_err::remove_file(old)?;
        }
        Ok(())
    }

    /// The newest snapshot, verified whole.
    pub(crate) fn load(&self) -> Result<Option<(SnapshotMeta, Tables)>, OpenError> {
        let io = |source| OpenError::Io { path: self.dir.clone(), source };
        // What a crash in the middle of writing left.
        for entry in fs_err::read_dir(&self.dir).map_err(io)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("new-snap.") {
                fs_err::remove_file(entry.path()).map_err(io)?;
            }
        }
        let Some(path) = self.list().map_err(io)?.pop() else { return Ok(None) };
        let bad = |what: String| OpenError::Damaged { path: path.clone(), what };
        self.read(&path).map(Some).map_err(|error| bad(error.to_string()))
    }

    fn read(&self, path: &Path) -> io::Result<(SnapshotMeta, Tables)> {
        let mut file = io::BufReader::new(fs_err::File::open(path)?);
        let mut format = [0];
        file.read_exact(&mut format)?;
        if format != [FORMAT] {
            return Err(io::Error::other(format!("it has the format {}; {FORMAT} is known here", format[0])));
        }
        let mut records = Vec::new();
        loop {
            let frame = read_frame(&mut file)?;
            let count = u64::try_from(records.len()).expect("it was counted in memory");
            if let Ok(end) = self.sealer.open(b"snap end", &frame) {
                if end != count.to_be_bytes() {
                    return Err(io::Error::other("it does not hold as many records as it says"));
                }
                break;
            }
            records.push(self.sealer.open(&what(count), &frame).map_err(io::Error::other)?);
        }
        let (meta, records) = records.split_first().ok_or_else(|| io::Error::other("it is empty"))?;
        let meta = postcard::from_bytes(meta).map_err(io::Error::other)?;
        let tables = Tables::from_records(records.iter().map(Vec::as_slice)).map_err(io::Error::other)?;
        Ok((meta, tables))
    }

    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("snap.") {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }
}

fn what(frame: u64) -> [u8; 12] {
    let mut what = *b"snap........";
    what[4..].copy_from_slice(&frame.to_be_bytes());
    what
}

fn write_frame(file: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    file.write_all(&length.to_be_bytes())?;
    file.write_all(bytes)
}

fn read_frame(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > FRAME_BOUND {
        return Err(io::Error::other(format!("a frame says it has {length} bytes; {FRAME_BOUND} are the most")));
    }
    let mut frame = vec![0; length];
    file.read_exact(&mut frame)?;
    Ok(frame)
}
