//! The content of a file, from an archive to the disk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::{UnpackError, at, errno, refused};
use crate::tar::{Entry, TarReader};

/// Writes the content of a file. The holes of a sparse file stay holes.
pub(super) fn write(
    entry: &Entry,
    path: &Path,
    archive: &mut TarReader<impl Read>,
    mut file: File,
) -> Result<(), UnpackError> {
    let fail = |error: io::Error| at(path)(errno(&error));
    let mut buffer = vec![0; 64 << 10];
    let Some(regions) = &entry.regions else {
        loop {
            match archive.read(&mut buffer)? {
                0 => return Ok(()),
                count => file.write_all(&buffer[..count]).map_err(fail)?,
            }
        }
    };
    for region in regions {
        if region.offset.checked_add(region.length).is_none_or(|end| end > entry.size) {
            return Err(refused(path, "has a region outside of the sparse file"));
        }
        file.seek(SeekFrom::Start(region.offset)).map_err(fail)?;
        let mut left = region.length;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = archive.read(&mut buffer[..most])?;
            if count == 0 {
                return Err(refused(path, "has less content than the regions of the sparse file"));
            }
            file.write_all(&buffer[..count]).map_err(fail)?;
            left -= count as u64;
        }
    }
    file.set_len(entry.size).map_err(fail)
}
