//! A reader between a decompressor and the tar library. The library reads the records that describe an entry (long
//! names, PAX) into memory as a whole, so this reader ends the stream with an error before a record that is too large.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Largest size of such a record in bytes. Real names and attributes are far smaller.
const RECORD_BOUND: u64 = 1 << 20;

/// Forwards a tar stream block by block.
pub(crate) struct Guard<R> {
    inner: R,
    /// The header that is being forwarded, and how much of it was.
    header: [u8; BLOCK],
    passed: usize,
    /// Bytes of the entry's content that are left, including the padding of its last block.
    content: u64,
    /// Size that a PAX record gives to the next entry whose header has no room for it (pax(1)).
    size: Option<u64>,
    /// The PAX record that is being forwarded.
    pax: Option<Vec<u8>>,
}

impl<R: Read> Guard<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, header: [0; BLOCK], passed: BLOCK, content: 0, size: None, pax: None }
    }

    /// Reads the next header and returns whether there was one.
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
            // The stream is truncated or at its end; the library tells these apart.
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

/// Returns the `size` field of a PAX record.
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
        // The stream is truncated, so the entry has no more content.
        self.content = if count == 0 { 0 } else { self.content - count as u64 };
        if let Some(record) = &mut self.pax {
            record.extend_from_slice(&buffer[..count]);
        }
        Ok(count)
    }
}
