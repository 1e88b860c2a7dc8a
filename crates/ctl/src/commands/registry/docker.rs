//! The logins of `docker login` on this machine: in docker's config.json, or with the credential helpers that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use serde_json::Value;

use flota_api::image_ref::registry_host;

/// Under this address docker keeps the login to Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";
/// User name that marks the password as an identity token.
const TOKEN_USER: &str = "<token>";

/// A login to a registry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) host: String,
    pub(super) username: String,
    pub(super) password: String,
}

/// Returns the path of docker's config.json.
pub(super) fn config_path() -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    Ok(folder.or_else(home).context("neither DOCKER_CONFIG nor HOME is set")?.join("config.json"))
}

/// Returns the login to this registry, or to all registries that the file names.
pub(super) fn logins(path: &Path, host: Option<&str>) -> anyhow::Result<Vec<Login>> {
    let text = fs_err::read(path)?;
    let config: Value =
        serde_json::from_slice(&text).with_context(|| format!("failed to parse `{}`", path.display()))?;
    let named = ["auths", "credHelpers"].iter().filter_map(|key| config[key].as_object()).flat_map(|it| it.keys());
    let mut addresses: BTreeMap<&str, &str> = BTreeMap::new();
    for address in named.map(String::as_str) {
        let of = registry_host(address);
        // Docker also keeps tokens of the account there, under addresses below that of Docker Hub.
        let is_token = address.starts_with(HUB) && address != HUB;
        if !is_token && host.is_none_or(|host| registry_host(host) == of) {
            let usual = addresses.entry(of).or_insert(address);
            if address == usual_address(of) {
                *usual = address;
            }
        }
    }
    if let Some(host) = host.map(registry_host) {
        // A credential store knows more than the file names.
        addresses.entry(host).or_insert(usual_address(host));
    }
    let mut logins = Vec::new();
    for (of, address) in addresses {
        let login = match get_credential_from_reader(text.as_slice(), address) {
            Ok(DockerCredential::UsernamePassword(username, password)) => (username, password),
            Ok(DockerCredential::IdentityToken(token)) => (TOKEN_USER.to_owned(), token),
            // After a logout, docker leaves an entry without a login.
            Err(error) if host.is_none() && is_none(&error) => continue,
            Err(error) => return Err(error).with_context(|| format!("failed to get the login to {address}")),
        };
        logins.push(Login { host: of.to_owned(), username: login.0, password: login.1 });
    }
    if logins.is_empty() {
        bail!("`{}` has no login to a registry", path.display());
    }
    Ok(logins)
}

/// Returns the address under which docker keeps the login to a registry.
fn usual_address(host: &str) -> &str {
    if host == "docker.io" { HUB } else { host }
}

/// Returns whether there is no login, in the file or in the words of a helper (docker-credential-helpers, `errors.go`).
fn is_none(error: &CredentialRetrievalError) -> bool {
    match error {
        CredentialRetrievalError::NoCredentialConfigured => true,
        CredentialRetrievalError::HelperFailure { stdout, .. } => {
            stdout.trim() == "credentials not found in native keychain"
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `auth` is base64 of `user:pass`.
    const CONFIG: &str = r#"{
        "auths": {
            "https://index.docker.io/v1/": { "auth": "dXNlcjpwYXNz" },
            "https://index.docker.io/v1/access-token": { "auth": "dXNlcjphY2Nlc3M=" },
            "https://index.docker.io/v1/refresh-token": { "auth": "dXNlcjpyZWZyZXNo" },
            "index.docker.io": { "auth": "dXNlcjpvbGQ=" },
            "registry.local:5000": { "auth": "dXNlcjpwYXNz" },
            "azure.example": { "auth": "", "identitytoken": "abc" },
            "left.example": {}
        }
    }"#;

    fn found(config: &str, host: Option<&str>) -> Result<Vec<(String, String)>, String> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).expect("written");
        let logins = logins(&path, host).map_err(|error| format!("{error:#}"))?;
        Ok(logins.into_iter().map(|it| (it.host, format!("{}:{}", it.username, it.password))).collect())
    }

    #[test]
    fn logins_of_docker_are_found() {
        let login = |host: &str, login: &str| (host.to_owned(), login.to_owned());
        let hub = login("docker.io", "user:pass");
        let all = [login("azure.example", "<token>:abc"), hub.clone(), login("registry.local:5000", "user:pass")];
        assert_eq!(found(CONFIG, None), Ok(all.to_vec()));
        for name in ["docker.io", "index.docker.io", HUB] {
            assert_eq!(found(CONFIG, Some(name)), Ok(vec![hub.clone()]), "{name}");
        }
    }

    /// Helpers are found on PATH, which only a new process can change safely: this test runs itself again.
    #[test]
    fn a_credential_helper_gives_the_login() {
        const NAME: &str = "commands::registry::docker::tests::a_credential_helper_gives_the_login";
        const INSIDE: &str = "FLOTA_TEST_CREDENTIAL_HELPER";
        if std::env::var_os(INSIDE).is_some() {
            let config = r#"{ "credHelpers": { "ecr.example": "flota-test", "left.example": "flota-test" } }"#;
            assert!(found(config, Some("left.example")).expect_err("it has none").contains("credentials not found"));
            let login = ("ecr.example".to_owned(), "AWS:the secret of ecr.example".to_owned());
            assert_eq!(found(config, None), Ok(vec![login]));
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let helper = dir.path().join("docker-credential-flota-test");
        let script = r#"#!/bin/sh
[ "$1" = get ] && read -r address
[ "$address" = left.example ] && echo credentials not found in native keychain && exit 1
printf '{"ServerURL":"%s","Username":"AWS","Secret":"the secret of %s"}' "$address" "$address"
"#;
        std::fs::write(&helper, script).expect("written");
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("made executable");
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
        let test = std::env::current_exe().expect("this program");
        let run = std::process::Command::new(test).args([NAME, "--exact"]).env("PATH", path).env(INSIDE, "1").output();
        let run = run.expect("it runs");
        let output = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success() && output.contains("1 passed"), "{output}");
    }

    #[test]
    fn missing_login_is_an_error() {
        assert!(found(CONFIG, Some("other.example")).expect_err("none").contains("the login to other.example"));
        assert!(found(CONFIG, Some("left.example")).is_err());
        assert!(found("{}", None).expect_err("none").contains("has no login to a registry"));
        assert!(found("{", None).expect_err("no JSON").contains("failed to parse"));
        let helper = r#"{ "credHelpers": { "ecr.example": "flota-no-such-helper" } }"#;
        assert!(found(helper, None).expect_err("no helper").contains("the login to ecr.example"));
    }
}
