//! The resolvers of the machine, from its resolv.conf (resolv.conf(5)), which is read again when it changes.

use std::fs::Metadata;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use tokio::time::Instant;

/// The port of resolvers (RFC 1035 §4.2).
const PORT: u16 = 53;
/// How often the file is looked at, at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The file of a machine is a few lines.
const LARGEST_FILE: u64 = 64 * 1024;

/// The settings in a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Resolvers, in the order in which they are asked.
    pub servers: Vec<SocketAddr>,
    /// Domains that are appended to short names.
    pub search: Vec<String>,
    /// Options, such as `ndots:2`.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a resolv.conf. Lines that have no meaning are skipped, as the C library does.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next();
            let words = words.take_while(|word| !word.starts_with(['#', ';'])).map(str::to_owned);
            match keyword {
                Some("nameserver") => conf.servers.extend(words.take(1).filter_map(|word| server(&word))),
                Some("domain") => conf.search = words.take(1).collect(),
                Some("search") => conf.search = words.collect(),
                Some("options") => conf.options.extend(words),
                _ => {}
            }
        }
        conf
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file can't be read, or is larger than any resolv.conf.
    pub fn read(path: &Path) -> io::Result<Self> {
        if std::fs::metadata(path)?.len() > LARGEST_FILE {
            return Err(io::Error::other("the file is too large for a resolv.conf"));
        }
        Ok(Self::parse(&String::from_utf8_lossy(&std::fs::read(path)?)))
    }
}

/// Reads the address of a resolver, which may name an interface: `fe80::1%eth0`.
fn server(word: &str) -> Option<SocketAddr> {
    if let Some((address, interface)) = word.split_once('%') {
        let scope = interface.parse().ok().or_else(|| if_nametoindex(interface).ok())?;
        return Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into());
    }
    Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, PORT))
}

/// The state of a file, which changes with its contents: inode, time of the last change, size.
type Stamp = (u64, i64, i64, u64);

fn stamp(file: &Metadata) -> Stamp {
    (file.ino(), file.mtime(), file.mtime_nsec(), file.size())
}

/// The resolvers that a file names.
#[derive(Debug)]
pub(super) struct Resolvers {
    path: PathBuf,
    servers: Arc<[SocketAddr]>,
    read: Option<Stamp>,
    checked: Option<Instant>,
}

impl Resolvers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, servers: Arc::new([]), read: None, checked: None }
    }

    /// Returns the resolvers that the file names now. If it can't be read, the previous ones stay: the file may be about
    /// to be replaced.
    pub(super) fn current(&mut self, now: Instant) -> Arc<[SocketAddr]> {
        if self.checked.is_none_or(|checked| now - checked >= CHECK_INTERVAL) {
            self.checked = Some(now);
            self.check();
        }
        self.servers.clone()
    }

    fn check(&mut self) {
        let found = std::fs::metadata(&self.path).ok().map(|file| stamp(&file));
        if found.is_none() || found == self.read {
            return;
        }
        self.read = found;
        match ResolvConf::read(&self.path) {
            Ok(conf) => self.servers = conf.servers.into(),
            Err(error) => tracing::warn!(file = %self.path.display(), error = %error, "failed to read the resolvers"),
        }
    }
}
