//! `tmpcopyup`: a tmpfs begins with a copy of the image's folder that it covers.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

/// Largest depth of folders; an image with deeper folders is likely malicious.
const DEPTH: usize = 128;

/// Copies the content of one folder into another.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    folder(from.as_fd(), to.as_fd(), 0)
}

/// Does fchmod(2) for an O_PATH descriptor.
pub(super) fn set_mode(file: &OwnedFd, mode: Mode) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, path.as_str(), mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
}

fn folder(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    if depth > DEPTH {
        return Err(Errno::ELOOP);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut dir = Dir::openat(from, ".", flags, Mode::empty())?;
    let names = dir.iter().map(|entry| entry.map(|it| it.file_name().to_owned())).collect::<Result<Vec<_>, _>>()?;
    for name in names.iter().filter(|it| !matches!(it.to_bytes(), b"." | b"..")) {
        let about = fstatat(from, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        entry(from, to, name, &about, depth)?;
    }
    Ok(())
}

fn entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    about: &FileStat,
    depth: usize,
) -> Result<(), Errno> {
    let mode = Mode::from_bits_truncate(about.st_mode);
    let kind = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT;
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match kind {
        SFlag::S_IFDIR => {
            mkdirat(to, name, Mode::S_IRWXU)?;
            let (inner, outer) = (
                openat(from, name, read | OFlag::O_DIRECTORY, Mode::empty())?,
                openat(to, name, read | OFlag::O_DIRECTORY, Mode::empty())?,
            );
            folder(inner.as_fd(), outer.as_fd(), depth + 1)?;
        }
        SFlag::S_IFREG => {
            let mut source = std::fs::File::from(openat(from, name, read, Mode::empty())?);
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let mut target = std::fs::File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            let copied = std::io::copy(&mut source, &mut target);
            copied.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        }
        SFlag::S_IFLNK => {
            let target = readlinkat(from, name)?;
            symlinkat(target.as_os_str(), to, name)?;
        }
        _ => mknodat(to, name, kind, mode, about.st_rdev)?,
    }
    let (uid, gid) = (Uid::from_raw(about.st_uid), Gid::from_raw(about.st_gid));
    match fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW) {
        // The container does not have this id.
        Ok(()) | Err(Errno::EPERM | Errno::EINVAL) => {}
        Err(error) => return Err(error),
    }
    if kind == SFlag::S_IFLNK {
        return Ok(());
    }
    // The mode is set after the owner, whose change clears set-user-id bits.
    let file =
        openat(to, std::ffi::OsStr::from_bytes(name.to_bytes()), OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty());
    file.and_then(|file| fchmod(file, mode))
}
