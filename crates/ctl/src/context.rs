//! Contexts: what a user needs for talking to a cluster from outside, each in a file of its own that only the user can read.
//! `ctl swarm user add` writes such a file, and `ctl context create` takes it.
//!
//! They are in `$XDG_CONFIG_HOME/flota`, or `~/.config/flota`: `contexts/NAME.json`, and `current` with the name of the one in
//! use. A file is replaced in one step, so after a crash there is the old one or the new one.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use flota_api::naming;
use flota_api::proto::control::UserGrant;
use flota_identity::UserIdentity;

use crate::error::Usage;

/// Version of the format of a file.
const FORMAT: u32 = 1;
/// Largest file in bytes: a few certificates and addresses.
const FILE_BOUND: u64 = 1 << 20;
/// The name that stands for the local socket.
pub(crate) const DEFAULT: &str = "default";

/// What is in a file. Certificates and key are DER in base64.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Credentials {
    format: u32,
    /// Name of the user.
    pub(crate) user: String,
    /// Id of the cluster.
    pub(crate) cluster_id: String,
    /// `host:port` of each manager.
    pub(crate) managers: Vec<String>,
    /// The CAs to trust.
    ca: Vec<String>,
    certificate: String,
    /// Certificates between this one and other CAs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    chain: Vec<String>,
    key: String,
}

impl Credentials {
    /// Takes what a manager has granted, for this key (PKCS#8, DER).
    pub(crate) fn granted(grant: &UserGrant, key: &[u8]) -> anyhow::Result<Self> {
        let all = |list: &[bytes::Bytes]| list.iter().map(|der| STANDARD.encode(der)).collect();
        let user = grant.user.as_ref().context("the manager's answer names no user")?;
        let it = Self {
            format: FORMAT,
            user: user.name.clone(),
            cluster_id: grant.cluster_id.clone(),
            managers: grant.managers.clone(),
            ca: all(&grant.ca_der),
            certificate: STANDARD.encode(&grant.certificate_der),
            chain: all(&grant.chain_der),
            key: STANDARD.encode(key),
        };
        it.identity()?;
        Ok(it)
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let size = fs_err::metadata(path)?.len();
        if size > FILE_BOUND {
            bail!("`{}` has {size} bytes, and {FILE_BOUND} is the most for a context", path.display());
        }
        let text = fs_err::read(path)?;
        let read = serde_json::from_slice(&text).map_err(anyhow::Error::from).and_then(|it: Self| {
            it.identity()?;
            Ok(it)
        });
        read.with_context(|| format!("`{}` is not a context", path.display()))
    }

    /// Writes a file that only its owner can read, in one step.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        replace(path, self.to_text()?.as_bytes())
    }

    /// Returns what is in a file.
    pub(crate) fn to_text(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Returns the identity with which to connect.
    pub(crate) fn identity(&self) -> anyhow::Result<UserIdentity> {
        if self.format != FORMAT {
            bail!("it has the format {}, and this ctl knows {FORMAT}", self.format);
        }
        if self.managers.is_empty() {
            bail!("it names no manager");
        }
        let all = |list: &[String]| list.iter().map(|it| STANDARD.decode(it)).collect::<Result<Vec<_>, _>>();
        let (certificate, key) = (STANDARD.decode(&self.certificate)?, STANDARD.decode(&self.key)?);
        Ok(UserIdentity::new(certificate, key, all(&self.chain)?, all(&self.ca)?)?)
    }
}

/// The folder with all contexts of this machine's user.
#[derive(Clone, Debug)]
pub(crate) struct Contexts {
    folder: PathBuf,
}

impl Contexts {
    /// Returns those of the present user, by its environment.
    pub(crate) fn of_user() -> anyhow::Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
        let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let config = config.context("neither XDG_CONFIG_HOME nor HOME is set, so there is no place for contexts")?;
        Ok(Self::at(config.join("flota")))
    }

    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        // The name is that of a file.
        naming::check(name).map_err(|error| Usage(format!("context: {error}")))?;
        Ok(self.folder.join("contexts").join(format!("{name}.json")))
    }

    /// Returns a context, with the path of its file.
    pub(crate) fn get(&self, name: &str) -> anyhow::Result<(PathBuf, Credentials)> {
        let path = self.path(name)?;
        if !path.exists() {
            return Err(
                Usage(format!("there is no context `{name}`; `ctl context ls` names those that there are")).into()
            );
        }
        Ok((path.clone(), Credentials::read(&path)?))
    }

    /// Adds a context.
    pub(crate) fn create(&self, name: &str, credentials: &Credentials) -> anyhow::Result<()> {
        let path = self.path(name)?;
        if name == DEFAULT {
            return Err(Usage(format!("context: `{DEFAULT}` stands for the local socket")).into());
        }
        if path.exists() {
            return Err(Usage(format!("context `{name}` exists already; `ctl context rm {name}` removes it")).into());
        }
        credentials.write(&path)
    }

    /// Returns the names of all contexts, in order.
    pub(crate) fn names(&self) -> anyhow::Result<Vec<String>> {
        let folder = match fs_err::read_dir(self.folder.join("contexts")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in folder {
            let name = entry?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Returns the name of the context in use; `None` for the local socket.
    pub(crate) fn current(&self) -> anyhow::Result<Option<String>> {
        match fs_err::read_to_string(self.folder.join("current")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            name => Ok(Some(name?.trim().to_owned()).filter(|name| !name.is_empty())),
        }
    }

    /// Makes a context the one in use.
    pub(crate) fn make_current(&self, name: &str) -> anyhow::Result<()> {
        let current = self.folder.join("current");
        if name == DEFAULT {
            return match fs_err::remove_file(current) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            };
        }
        self.get(name)?;
        replace(&current, name.as_bytes())
    }

    /// Removes a context, with its key.
    pub(crate) fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name)?;
        if !path.exists() {
            return Err(Usage(format!("there is no context `{name}`")).into());
        }
        if self.current()?.as_deref() == Some(name) {
            self.make_current(DEFAULT)?;
        }
        Ok(fs_err::remove_file(path)?)
    }

    /// Returns the context to use, with the path of its file: the one that is asked for, or else the one in use; `None` for the
    /// local socket.
    pub(crate) fn choose(&self, asked: Option<&str>) -> anyhow::Result<Option<(PathBuf, Credentials)>> {
        let name = match asked.filter(|name| !name.is_empty()) {
            Some(name) => Some(name.to_owned()),
            None => self.current()?,
        };
        name.filter(|name| name != DEFAULT).map(|name| self.get(&name)).transpose()
    }
}

/// Replaces a file in one step. Only the present user can read it, and the folders that are made for it.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let name = path.file_name().context("the path names no file")?.to_string_lossy();
    let new = folder.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        std::fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // It may not be there.
        let _ = std::fs::remove_file(&new);
    }
    written.with_context(|| format!("failed to write `{}`", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;
    use flota_api::proto::objects::User;
    use flota_identity::{KeyPair, RootCa};

    /// Returns the credentials of a user of a new cluster.
    pub(crate) fn credentials(user: &str) -> Credentials {
        let (cluster, now) = ("c".into(), SystemTime::now());
        let ca = RootCa::generate(&cluster, now).expect("made");
        let key = KeyPair::generate().expect("made");
        let request = key.signing_request().expect("made");
        let certificate =
            ca.sign_user(&request, user, &cluster, now, now + Duration::from_secs(3_600)).expect("signed");
        let grant = UserGrant {
            user: Some(User { name: user.into(), ..User::default() }),
            certificate_der: certificate.into(),
            ca_der: vec![ca.certificate().to_vec().into()],
            managers: vec!["127.0.0.1:2377".into()],
            cluster_id: "c".into(),
            ..UserGrant::default()
        };
        Credentials::granted(&grant, &key.to_der()).expect("they are whole")
    }

    #[test]
    fn contexts_are_made_used_and_removed_and_nobody_else_can_read_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let contexts = Contexts::at(folder.path().join("flota"));
        assert_eq!((contexts.names().expect("none"), contexts.current().expect("none")), (vec![], None));
        contexts.create("prod", &credentials("ada")).expect("made");
        contexts.create("prod", &credentials("ada")).expect_err("it exists");
        contexts.create("test", &credentials("bob")).expect("made");
        assert_eq!(contexts.names().expect("read"), ["prod", "test"]);
        let (path, read) = contexts.get("prod").expect("it is there");
        assert_eq!((read.user.as_str(), read.identity().expect("whole").name.as_str()), ("ada", "ada"));
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (0o600, 0o700));
        contexts.make_current("prod").expect("it is there");
        contexts.make_current("none").expect_err("there is none");
        assert_eq!(contexts.current().expect("read").as_deref(), Some("prod"));
        contexts.remove("prod").expect("removed");
        assert_eq!((contexts.current().expect("none"), contexts.names().expect("read")), (None, vec!["test".into()]));
        contexts.remove("prod").expect_err("it is gone");
    }

    #[test]
    fn names_that_lead_elsewhere_and_files_that_are_no_contexts_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let contexts = Contexts::at(folder.path().to_owned());
        for name in ["", "../x", "a/b", ".", DEFAULT] {
            contexts.create(name, &credentials("ada")).expect_err(name);
        }
        let path = folder.path().join("file");
        let whole = serde_json::to_string(&credentials("ada")).expect("it is text");
        let newer = whole.replace("\"format\":1", "\"format\":2");
        let unknown = whole.replace("\"format\":1", "\"format\":1,\"colour\":1");
        let broken = whole.replace("\"certificate\":\"", "\"certificate\":\"AAAA");
        for text in ["", "{}", "junk", &newer, &unknown, &broken] {
            std::fs::write(&path, text).expect("written");
            assert!(Credentials::read(&path).is_err(), "{text}");
        }
        std::fs::write(&path, " ".repeat(1 << 21)).expect("written");
        assert!(Credentials::read(&path).err().expect("it is large").to_string().contains("is the most"));
    }
}
