//! Between a decompressor and the tar library, which reads the records that describe an entry (long names, PAX) whole
//! into memory: one that is too large ends the stream before it does.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Of one such record. Names and attributes are far smaller.
const RECORD_BOUND: u64 = 1 << 20;

/// Passes a tar on, block by block.
pub(crate) struct Guard<R> {
    inner: R,
    /// The header that is being passed on, and how much of it was.
    header: [u8; BLOCK],
    passed: usize,
    /// Bytes of the entry's content that are to come, with what fills its last block.
    content: u64,
    /// Size that a PAX record gives to the next entry, where its header has no room for it (pax(1)).
    size: Option<u64>,
    /// The PAX record that is being passed on.
    pax: Option<Vec<u8>>,
}

impl<R: Read> Guard<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, header: [0; BLOCK], passed: BLOCK, content: 0, size: None, pax: None }
    }

    /// Reads the next header; whether there was one.
    fn next_header(&mut self) -> io::Result<bool> {
        if let Some(record) = self.pax.take() {
            self.size = size_in(&record).or(self.size);
        }
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut self.header[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled < BLOCK {
            // Cut off, or the end: the library says which.
            self.header.copy_within(..filled, BLOCK - filled);
            self.passed = BLOCK - filled;
            return Ok(filled > 0);
        }
        self.passed = 0;
        let header = tar::Header::from_byte_slice(&self.header);
        let kind = header.entry_type();
        let size = match kind {
            _ if self.header.iter().all(|byte| *byte == 0) => 0,
            tar::EntryType::GNUSparse => return Err(io::Error::other("it holds a sparse file, which layers do not")),
            _ => header.entry_size()?,
        };
        let describes = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if describes && size > RECORD_BOUND {
            return Err(io::Error::other(format!("a record has {size} bytes; {RECORD_BOUND} are the most")));
        }
        self.pax = kind.is_pax_local_extensions().then(Vec::new);
        let size = if describes { size } else { self.size.take().unwrap_or(size) };
        self.content = size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
        Ok(true)
    }
}

/// The `size` of a PAX record.
fn size_in(record: &[u8]) -> Option<u64> {
    let sizes = tar::PaxExtensions::new(record).flatten().filter(|it| it.key() == Ok("size"));
    sizes.last().and_then(|it| it.value().ok()?.parse().ok())
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.passed == BLOCK && self.content == 0 && !self.next_header()? {
            return Ok(0);
        }
        if self.passed < BLOCK {
            let count = buffer.len().min(BLOCK - self.passed);
            buffer[..count].copy_from_slice(&self.header[self.passed..self.passed + count]);
            self.passed += count;
            return Ok(count);
        }
        let most = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        // Cut off: nothing of the entry comes any more.
        self.content = if count == 0 { 0 } else { self.content - count as u64 };
        if let Some(record) = &mut self.pax {
            record.extend_from_slice(&buffer[..count]);
        }
        Ok(count)
    }
}
