//! The node's identity on disk. Each identity has a folder of its own with `node.crt`, `node.key` and `ca.crt`, and
//! while the CA is replaced `chain.crt`, all DER with mode 0600, and the link `current` names the folder in use. It is replaced in one step, so after a crash there is the old
//! identity or the new one, and never a key without its certificate. Links of the same names beside the folders lead there,
//! for builds that know only these.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::certificate::{CertificateError, Identity, split};
use crate::vault::KeyVault;

const CERTIFICATE: &str = "node.crt";
const KEY: &str = "node.key";
const CA: &str = "ca.crt";
/// Only while the CA is replaced. Builds that replace no CA do not know it.
const CHAIN: &str = "chain.crt";
/// In the order in which a build without `current` needs them: it takes the certificate as the sign that there is an
/// identity.
const FILES: [&str; 3] = [CA, KEY, CERTIFICATE];
const CURRENT: &str = "current";
/// Names of the folders, which take turns.
const FOLDERS: [&str; 2] = ["a", "b"];

/// Why an identity can't be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// An I/O error.
    #[error("failed to {act} the node's identity at `{path}`", path = path.display())]
    Io {
        /// `read`, `write` or `remove`.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The files hold no valid identity.
    #[error("the node's identity in `{path}` is damaged", path = path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CertificateError,
    },
}

/// Returns whether there is an identity in `dir`, which the vault may keep locked.
pub fn is_present(dir: &Path) -> bool {
    dir.join(CURRENT).is_symlink() || dir.join(CERTIFICATE).exists()
}

/// Reads the identity in `dir`, whose key is in the vault. Returns `None` if there is none, because the node belongs to no
/// cluster.
///
/// # Errors
/// A file can't be read or is damaged, or the vault is locked.
pub fn load(dir: &Path, vault: &KeyVault) -> Result<Option<Identity>, FileError> {
    let current = dir.join(CURRENT);
    // Without the link, the files are those of a build that has no folders.
    let from = if current.is_symlink() { current } else { dir.to_owned() };
    let read = |name: &str| {
        let path = from.join(name);
        fs_err::read(&path).map_err(|source| FileError::Io { act: "read", path, source })
    };
    let certificate = match read(CERTIFICATE) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && from == dir => {
            return Ok(None);
        }
        other => other?,
    };
    let key = vault.unseal(KEY, read(KEY)?);
    let key = key.map_err(|source| FileError::Io { act: "read", path: from.join(KEY), source })?;
    let ca = read(CA)?;
    let chain = match read(CHAIN) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let identity = split(&ca).and_then(|trusted| Identity::new(certificate, key, trusted));
    let identity = identity.and_then(|it| Ok(it.with_intermediates(split(&chain)?)));
    identity.map(Some).map_err(|source| FileError::Damaged { path: from, source })
}

/// Writes the identity to `dir`, durably, and its key as the vault has keys now. After a crash, [`load`] finds the whole new
/// one, or what was there before.
///
/// # Errors
/// A file can't be written.
pub fn save(dir: &Path, identity: &Identity, vault: &KeyVault) -> Result<(), FileError> {
    for step in steps(dir, identity, vault) {
        step.run().map_err(|source| FileError::Io { act: "write", path: step.path().to_owned(), source })?;
    }
    Ok(())
}

/// One change of the disk. It is durable when it returns, except for the names in a folder, which [`Step::Sync`] makes so.
#[derive(Debug)]
enum Step {
    /// Removes a folder with everything in it, if it exists.
    Clear(PathBuf),
    /// Makes an empty folder.
    Folder(PathBuf),
    /// Writes a new file.
    File(PathBuf, Vec<u8>),
    /// Makes this name a link to the path, in one step, whatever it was before.
    Link { at: PathBuf, to: PathBuf },
    /// Makes the names in a folder durable.
    Sync(PathBuf),
}

impl Step {
    fn path(&self) -> &Path {
        match self {
            Self::Clear(path)
            | Self::Folder(path)
            | Self::File(path, _)
            | Self::Link { at: path, .. }
            | Self::Sync(path) => path,
        }
    }

    fn run(&self) -> io::Result<()> {
        match self {
            Self::Clear(path) => absent(std::fs::remove_dir_all(path)),
            Self::Folder(path) => std::fs::DirBuilder::new().mode(0o700).create(path),
            Self::File(path, bytes) => {
                let mut options = std::fs::OpenOptions::new();
                let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
                file.write_all(bytes)?;
                file.sync_all()
            }
            Self::Link { at, to } => {
                let new = at.with_extension("new");
                absent(std::fs::remove_file(&new))?;
                symlink(to, &new)?;
                std::fs::rename(&new, at)
            }
            Self::Sync(path) => std::fs::File::open(path)?.sync_all(),
        }
    }
}

/// Takes the absence of what is to be removed for success.
fn absent(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Returns the steps that write the identity.
fn steps(dir: &Path, identity: &Identity, vault: &KeyVault) -> Vec<Step> {
    let used = std::fs::read_link(dir.join(CURRENT)).ok();
    let is_used = |name: &&&str| used.as_deref() == Some(Path::new(name));
    let name = FOLDERS.iter().find(|name| !is_used(name)).expect("one of two names is free");
    let folder = dir.join(name);
    let bytes = [identity.trusted.concat(), vault.seal(KEY, &identity.key), identity.certificate.clone()];
    let mut steps = vec![Step::Clear(folder.clone()), Step::Folder(folder.clone())];
    steps.extend(FILES.iter().zip(bytes).map(|(file, bytes)| Step::File(folder.join(file), bytes)));
    if !identity.intermediates.is_empty() {
        steps.push(Step::File(folder.join(CHAIN), identity.intermediates.concat()));
    }
    // The folder and its name are durable before anything leads there.
    steps.extend([Step::Sync(folder), Step::Sync(dir.to_owned())]);
    steps.extend([Step::Link { at: dir.join(CURRENT), to: name.into() }, Step::Sync(dir.to_owned())]);
    let outer = FILES.iter().map(|file| Step::Link { at: dir.join(file), to: Path::new(CURRENT).join(file) });
    steps.extend(outer);
    steps.push(Step::Sync(dir.to_owned()));
    // The old key is of no further use.
    steps.extend(used.map(|old| Step::Clear(dir.join(old))));
    steps
}

/// Removes the identity from `dir`. Does nothing if there is none.
///
/// # Errors
/// A file can't be removed.
pub fn remove(dir: &Path) -> Result<(), FileError> {
    let failed = |path: PathBuf| move |source| FileError::Io { act: "remove", path, source };
    // In this order, so that after a crash there is the whole identity or none.
    for name in [CERTIFICATE, CURRENT, KEY, CA] {
        let path = dir.join(name);
        absent(std::fs::remove_file(&path)).map_err(failed(path))?;
    }
    for name in FOLDERS {
        let path = dir.join(name);
        absent(std::fs::remove_dir_all(&path)).map_err(failed(path))?;
    }
    match std::fs::File::open(dir).and_then(|dir| dir.sync_all()) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(dir.to_owned())(source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;
    use crate::{KeyPair, RootCa};
    use flota_api::defaults::CERTIFICATE_LIFE;
    use flota_api::model::Role;

    /// A vault without autolock.
    fn open() -> KeyVault {
        KeyVault::open(Path::new("/nowhere/locked")).expect("there is none")
    }

    /// Returns a new identity of a node with this id.
    fn identity(node: &str) -> Identity {
        let (cluster, now) = ("c".into(), SystemTime::now());
        let ca = RootCa::generate(&cluster, now).expect("made");
        let key = KeyPair::generate().expect("made");
        let request = key.signing_request().expect("made");
        let signed = ca.sign(&request, &node.into(), Role::Worker, &cluster, now, CERTIFICATE_LIFE).expect("signed");
        Identity::new(signed, key.to_der(), vec![ca.certificate().to_vec()]).expect("a node's")
    }

    /// Loads the identity, and returns the name of its node if its key belongs to its certificate.
    fn loaded(dir: &Path) -> Option<String> {
        let found = load(dir, &open()).expect("it is whole")?;
        crate::Credentials::new(found.clone(), flota_api::clock::Clock::system()).expect("they belong together");
        Some(found.node_id.to_string())
    }

    /// Writes the identity as builds without folders do.
    fn save_flat(dir: &Path, it: &Identity) {
        for (name, bytes) in [(CA, &it.trusted[0]), (KEY, &it.key), (CERTIFICATE, &it.certificate)] {
            std::fs::write(dir.join(name), bytes).expect("written");
        }
    }

    /// Checks that a crash after each step of a write leaves the identity before it or the new one, and that the next write
    /// succeeds.
    fn survives_a_crash_at_each_step(begin: impl Fn(&Path), before: Option<&str>) {
        let (new, later) = (identity("new"), identity("later"));
        let count = {
            let dir = tempfile::tempdir().expect("a folder");
            begin(dir.path());
            steps(dir.path(), &new, &open()).len()
        };
        let mut seen = Vec::new();
        for done in 0..=count {
            let dir = tempfile::tempdir().expect("a folder");
            begin(dir.path());
            for step in &steps(dir.path(), &new, &open())[..done] {
                step.run().expect("there is room");
            }
            seen.push(loaded(dir.path()));
            save(dir.path(), &later, &open()).expect("there is room");
            assert_eq!(loaded(dir.path()).as_deref(), Some("later"), "after {done} steps");
        }
        let turn = seen.iter().position(|it| it.as_deref() == Some("new")).expect("it is written in the end");
        assert!(seen[..turn].iter().all(|it| it.as_deref() == before), "{seen:?}");
        assert!(seen[turn..].iter().all(|it| it.as_deref() == Some("new")), "{seen:?}");
    }

    #[test]
    fn a_crash_at_any_step_leaves_a_key_with_its_certificate() {
        let old = identity("old");
        survives_a_crash_at_each_step(|_| {}, None);
        survives_a_crash_at_each_step(|dir| save(dir, &old, &open()).expect("there is room"), Some("old"));
        survives_a_crash_at_each_step(|dir| save_flat(dir, &old), Some("old"));
    }

    #[test]
    fn a_build_without_folders_finds_the_same_files_and_no_other_user_reads_them() {
        let dir = tempfile::tempdir().expect("a folder");
        save(dir.path(), &identity("old"), &open()).expect("there is room");
        let it = identity("new");
        save(dir.path(), &it, &open()).expect("there is room");
        for (name, bytes) in [(CA, &it.trusted[0]), (KEY, &it.key), (CERTIFICATE, &it.certificate)] {
            let path = dir.path().join(name);
            assert_eq!(std::fs::read(&path).expect("it is there"), *bytes, "{name}");
            assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        }
        let folders = FOLDERS.iter().filter(|name| dir.path().join(name).exists()).count();
        assert_eq!(folders, 1, "the old key is gone");
    }

    #[test]
    fn several_cas_and_the_certificates_between_them_are_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut it, others) = (identity("n"), [identity("other"), identity("another")]);
        it.trusted.extend(others[0].trusted.clone());
        it.intermediates = others.iter().flat_map(|it| it.trusted.clone()).collect();
        save(dir.path(), &it, &open()).expect("there is room");
        let found = load(dir.path(), &open()).expect("it is whole").expect("it is there");
        assert_eq!((found.trusted, found.intermediates), (it.trusted, it.intermediates));
        // The next identity has none.
        save(dir.path(), &others[0], &open()).expect("there is room");
        assert!(load(dir.path(), &open()).expect("it is whole").expect("it is there").intermediates.is_empty());
    }

    #[test]
    fn a_removed_identity_is_gone_and_a_damaged_one_is_no_absent_one() {
        let dir = tempfile::tempdir().expect("a folder");
        save(dir.path(), &identity("n"), &open()).expect("there is room");
        remove(dir.path()).expect("it is removed");
        assert!(load(dir.path(), &open()).expect("no error").is_none());
        assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
        remove(dir.path()).expect("twice is as good as once");
        save(dir.path(), &identity("n"), &open()).expect("there is room");
        std::fs::remove_file(dir.path().join(CURRENT).join(CERTIFICATE)).expect("it is there");
        load(dir.path(), &open()).expect_err("the folder is there, and its certificate is not");
    }
}
