//! How a machine reaches registries: mirrors, private certificate authorities, and registries without encryption.

use std::collections::BTreeMap;
use std::net::IpAddr;

use reqwest::{Certificate, Url};

use super::{Credentials, Endpoint, ImageName, RequestError, client};

/// The registry of Docker Hub, whose images have the name `docker.io`.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// How registries are reached, by host. Others are reached over HTTPS, and those on this machine as insecure ones, as
/// Docker does.
#[derive(Clone, Debug, Default)]
pub struct Registries(BTreeMap<String, RegistryOptions>);

/// How one registry is reached.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Addresses that are tried before the registry, in this order.
    pub(super) mirrors: Vec<String>,
    /// Whether the certificate is not verified, and plain HTTP is tried if there is no TLS.
    pub(super) insecure: bool,
    /// Authorities that are trusted besides those of the machine.
    pub(super) authorities: Vec<Certificate>,
}

/// Why the settings of a registry are refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A mirror is not an address.
    #[error("the mirror `{0}` is not http://HOST or https://HOST")]
    Mirror(String),
    /// The file of authorities has no certificates in PEM.
    #[error("the file of certificate authorities has no certificates in PEM")]
    Authorities,
}

impl RegistryOptions {
    /// `mirrors` are addresses like `https://mirror.local:5000`; `authorities` is a file of certificates in PEM.
    ///
    /// # Errors
    /// A mirror or the file is malformed.
    pub fn new(mirrors: &[String], insecure: bool, authorities: Option<&[u8]>) -> Result<Self, SettingsError> {
        let mirrors = mirrors.iter().map(|text| {
            let legal = Url::parse(text)
                .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none());
            let address = text.trim_end_matches('/').to_owned();
            if legal { Ok(address) } else { Err(SettingsError::Mirror(text.clone())) }
        });
        let authorities = match authorities {
            Some(pem) => Certificate::from_pem_bundle(pem).ok().filter(|found| !found.is_empty()),
            None => Some(Vec::new()),
        };
        let authorities = authorities.ok_or(SettingsError::Authorities)?;
        Ok(Self { mirrors: mirrors.collect::<Result<_, _>>()?, insecure, authorities })
    }
}

impl FromIterator<(String, RegistryOptions)> for Registries {
    fn from_iter<T: IntoIterator<Item = (String, RegistryOptions)>>(options: T) -> Self {
        Self(options.into_iter().collect())
    }
}

impl Registries {
    /// Returns the endpoints that may have the image, in the order in which they are tried: mirrors, and the registry
    /// itself. Only the registry gets the credentials.
    pub(crate) fn endpoints(
        &self,
        name: &ImageName,
        credentials: Option<&Credentials>,
    ) -> Result<Vec<Endpoint>, RequestError> {
        let none = RegistryOptions::default();
        let options = |host: &str| self.0.get(host).unwrap_or(&none);
        let client = |base: &str, options: &RegistryOptions, verify: bool| {
            client(options, verify).map_err(|error| RequestError::from_reqwest(base, error))
        };
        let mut endpoints = Vec::new();
        let own = options(&name.registry);
        for base in &own.mirrors {
            // After the scheme and two slashes, and before a path.
            let options = options(base.split('/').nth(2).unwrap_or_default());
            endpoints.push(Endpoint::mirror(base, &name.repository, client(base, options, !options.insecure)?));
        }
        let host = if name.registry == HUB.0 { HUB.1 } else { &name.registry };
        for (scheme, verify) in schemes(host, own) {
            let base = format!("{scheme}://{host}");
            let client = client(&base, own, verify)?;
            endpoints.push(Endpoint::registry(&base, &name.repository, client, credentials.cloned()));
        }
        Ok(endpoints)
    }
}

/// Returns how a registry is tried, and whether its certificate is verified. HTTPS comes first: a server that expects it
/// refuses HTTP with an answer, which counts, and one that does not fails to connect.
fn schemes(host: &str, options: &RegistryOptions) -> Vec<(&'static str, bool)> {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_local = name == "localhost" || address.is_ok_and(|it| it.is_loopback());
    let is_insecure = options.insecure || is_local && options.authorities.is_empty();
    if is_insecure { vec![("https", false), ("http", false)] } else { vec![("https", true)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registries_of_this_machine_and_insecure_ones_are_tried_without_encryption() {
        let insecure = RegistryOptions { insecure: true, ..RegistryOptions::default() };
        let tried = |host: &str, options: &RegistryOptions| -> Vec<_> {
            schemes(host, options).into_iter().map(|(scheme, verify)| format!("{scheme} {verify}")).collect()
        };
        for host in ["localhost", "localhost:5000", "127.0.0.1:80", "[::1]:5000"] {
            assert_eq!(tried(host, &RegistryOptions::default()), ["https false", "http false"], "{host}");
        }
        for host in ["docker.io", "localhost.example", "10.0.0.1:5000", "[2001:db8::1]", "127.example"] {
            assert_eq!(tried(host, &RegistryOptions::default()), ["https true"], "{host}");
        }
        assert_eq!(tried("10.0.0.1:5000", &insecure), ["https false", "http false"]);
    }

    #[test]
    fn malformed_settings_are_refused() {
        for mirror in ["mirror.local", "ftp://mirror", "https://", "https://mirror?x"] {
            assert!(matches!(RegistryOptions::new(&[mirror.into()], false, None), Err(SettingsError::Mirror(_))));
        }
        assert!(RegistryOptions::new(&["http://mirror:5000/".into()], false, None).is_ok());
        let junk = b"-----BEGIN CERTIFICATE-----\nAA\n";
        assert!(RegistryOptions::new(&[], false, Some(junk)).is_err());
    }
}
