//! TAP devices: links whose other end is a program, which reads and writes whole frames. `ctl sandbox` makes bad cables
//! of them.
//!
//! A device that nobody asked to stay is removed by the kernel when its file is closed, so a program that is killed leaves
//! nothing. Without offloads, which nobody turns on here, the kernel cuts what is longer than the MTU and fills in the
//! checksums before a program reads a frame (Documentation/networking/tuntap.rst, drivers/net/tun.c).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::error::{NetworkError, io};
use crate::namespace::Namespace;

/// Makes a TAP device in a namespace and returns its file, which does not block. Each read returns one Ethernet frame,
/// and each write sends one.
///
/// # Errors
/// The name is too long or taken, or the kernel has no TAP devices.
pub fn open_tap(namespace: &Namespace, name: &str) -> Result<File, NetworkError> {
    let failed = || io(format!("make the TAP device {name}"));
    namespace.enter(|| {
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).clone();
        let file = options.open("/dev/net/tun").map_err(failed())?;
        attach(&file, name).map_err(failed())?;
        Ok(file)
    })
}

#[expect(unsafe_code, reason = "the request has no safe wrapper")]
fn attach(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: a structure of plain numbers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (byte, letter) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *byte = letter as libc::c_char;
    }
    // The flags fit: 0x1002.
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`, which lives through the call.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Connection;

    #[test]
    fn a_tap_device_lives_as_long_as_its_file_and_takes_its_name_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("network");
        let namespace = Namespace::make(&path).expect("tests run as root");
        let mut links = Connection::open(&namespace).expect("a connection");
        let tap = open_tap(&namespace, "near").expect("a device");
        links.bring_up("near").expect("it is a link of the namespace");
        open_tap(&namespace, "near").expect_err("the name is taken");
        open_tap(&namespace, "a-name-of-16-let").expect_err("the name is too long");
        drop(tap);
        assert!(links.link("near").expect("an answer").is_none(), "it is gone with its file");
        Namespace::remove(&path).expect("removed");
    }
}
