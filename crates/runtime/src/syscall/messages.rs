//! Messages with descriptors over a unix socket (SCM_RIGHTS, unix(7)). All descriptors that this crate passes go
//! through this module.
//!
//! A received descriptor is closed at exec, and it is owned before anything can fail, so that an error leaks none.
#![expect(unsafe_code, reason = "control data that was cut off has to be read too, and nix refuses to")]

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::files::own;

/// Largest number of descriptors in one message.
pub(crate) const DESCRIPTORS: usize = 8;

/// Bytes of control data for that many descriptors: a header of 16 bytes, and 4 bytes for each (cmsg(3)).
const ROOM: usize = 16 + 4 * DESCRIPTORS;

/// A received message.
#[derive(Debug)]
pub(crate) struct Received {
    /// Number of bytes written to the buffer.
    pub(crate) bytes: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Sends the bytes and copies of the descriptors. Returns the number of sent bytes, which is less than all only on a
/// stream. A peer that has closed its end causes the error EPIPE and no signal.
///
/// # Errors
/// EINVAL for more than [`DESCRIPTORS`] descriptors, and those of sendmsg(2).
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> Result<usize, Errno> {
    if descriptors.len() > DESCRIPTORS {
        return Err(Errno::EINVAL);
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[] } else { &rights[..] };
    loop {
        let sent =
            sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags | MsgFlags::MSG_NOSIGNAL, None);
        if sent != Err(Errno::EINTR) {
            return sent;
        }
    }
}

/// Receives into the buffer.
///
/// # Errors
/// EMSGSIZE if the packet is longer than the buffer, or has more descriptors than [`DESCRIPTORS`] or than this process
/// may still open; the packet is then lost. The errors of recvmsg(2).
pub(crate) fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: MsgFlags) -> Result<Received, Errno> {
    // The alignment is that of `cmsghdr`.
    let mut room = [0_u64; ROOM.div_ceil(8)];
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `msghdr` is plain data for which zero is a legal value of every field.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = room.as_mut_ptr().cast();
    header.msg_controllen = ROOM;
    let flags = flags.bits() | libc::MSG_CMSG_CLOEXEC;
    let bytes = loop {
        // SAFETY: the header points to buffers that live through the call, with their lengths.
        match Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) }) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    // SAFETY: recvmsg(2) has just filled the header and the room.
    let descriptors = unsafe { take_descriptors(&header) };
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(Errno::EMSGSIZE);
    }
    Ok(Received { bytes: usize::try_from(bytes).expect("not negative"), descriptors })
}

/// Takes ownership of the descriptors in the control data.
///
/// # Safety
/// recvmsg(2) has filled the header, and nothing owns its descriptors yet.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the header and its control data are as recvmsg(2) left them, and the macros of cmsg(3) stay within them.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while let Some(control) = next.as_ref() {
            if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = control.cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(next).cast::<RawFd>();
                found.extend((0..bytes / size_of::<RawFd>()).map(|index| own(first.add(index).read_unaligned())));
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::{Read, pipe};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (one, other) = UnixStream::pair().expect("a pair of sockets");
        (one.into(), other.into())
    }

    #[test]
    fn several_descriptors_arrive_in_order_and_closed_at_exec() {
        let (one, other) = pair();
        let pipes: Vec<_> = (0..DESCRIPTORS).map(|_| pipe().expect("a pipe")).collect();
        let writers: Vec<BorrowedFd<'_>> = pipes.iter().map(|(_, writer)| writer.as_fd()).collect();
        send(one.as_fd(), b"some", &writers, MsgFlags::empty()).expect("sent");
        let mut buffer = [0; 64];
        let received = recv(other.as_fd(), &mut buffer, MsgFlags::empty()).expect("received");
        assert_eq!((&buffer[..received.bytes], received.descriptors.len()), (&b"some"[..], DESCRIPTORS));
        for (index, ((mut reader, writer), copy)) in pipes.into_iter().zip(received.descriptors).enumerate() {
            let flags = fcntl(&copy, FcntlArg::F_GETFD).expect("flags");
            assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
            drop(writer);
            nix::unistd::write(&copy, &[index.to_le_bytes()[0]]).expect("the copy writes");
            drop(copy);
            let mut read = Vec::new();
            reader.read_to_end(&mut read).expect("the pipe has ended");
            assert_eq!(read, [index.to_le_bytes()[0]]);
        }
    }

    #[test]
    fn message_with_too_many_descriptors_is_an_error_and_leaks_none() {
        let (one, other) = pair();
        let (mut reader, writer) = pipe().expect("a pipe");
        let many = vec![writer.as_fd(); DESCRIPTORS + 1];
        assert_eq!(send(one.as_fd(), b"x", &many, MsgFlags::empty()), Err(Errno::EINVAL));
        let raw: Vec<RawFd> = many.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(one.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).expect("sent");
        let error = recv(other.as_fd(), &mut [0; 8], MsgFlags::empty()).map(|it| it.bytes);
        assert_eq!(error, Err(Errno::EMSGSIZE));
        drop(writer);
        assert_eq!(reader.read(&mut [0; 8]).expect("no copy is open"), 0);
    }
}
