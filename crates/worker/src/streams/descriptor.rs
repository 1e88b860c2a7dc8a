//! One end of a pipe or of a terminal, read and written without a thread that waits.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that does not block. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Descriptor(Arc<AsyncFd<OwnedFd>>);

impl Descriptor {
    /// Takes a descriptor whose open file belongs to this process alone, because it is made non-blocking.
    ///
    /// # Errors
    /// The kernel can't poll the descriptor.
    #[expect(deprecated, reason = "it is unsound for types that change their descriptor, and this one never does")]
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(Arc::new(AsyncFd::new(descriptor)?)))
    }

    /// Waits until there is something to read, and reads it. Returns zero at the end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |it| Ok(nix::unistd::read(it, buffer)?)).await
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// There is nothing, or the descriptor can't be read.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.0.get_ref(), buffer)?)
    }

    /// Writes all of it; waits while there is no room.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |it| Ok(nix::unistd::write(it, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Returns the descriptor itself.
    pub(super) fn as_owned(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}
