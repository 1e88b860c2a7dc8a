//! Settings for registries: `[registries."HOST"]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use serde::Deserialize;

use flota_api::image_ref::registry_host;
use flota_image::{Registries, RegistryOptions};

/// How this node reaches one registry.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Registry {
    /// Addresses that are tried before the registry.
    mirrors: Vec<String>,
    /// Accept any certificate, and plain HTTP.
    insecure: bool,
    /// File with certificates of authorities (PEM) that are trusted besides those of the machine.
    ca: Option<PathBuf>,
}

/// Checks the settings and reads the files. Errors name the entry.
pub(super) fn resolve(registries: BTreeMap<String, Registry>) -> anyhow::Result<Registries> {
    let one = |(host, registry): (String, Registry)| {
        let ca = registry.ca.as_ref().map(fs_err::read).transpose();
        let ca = ca.with_context(|| format!("registries.{host}.ca"))?;
        let options = RegistryOptions::new(&registry.mirrors, registry.insecure, ca.as_deref());
        let options = options.with_context(|| format!("registries.{host}"))?;
        Ok((registry_host(&host).to_owned(), options))
    };
    registries.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<Registries, String> {
        let registries = toml::from_str(text).map_err(|error| error.to_string())?;
        resolve(registries).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn mistakes_name_their_place() {
        for (text, error) in [
            ("['r.local:5000']\nmirrors = ['mirror']", "registries.r.local:5000: the mirror `mirror` is not"),
            ("['r.local']\nca = '/nowhere'", "registries.r.local.ca: failed to open file `/nowhere`"),
            ("['r.local']\nca = '/dev/null'", "registries.r.local: the file of certificate authorities has no"),
            ("['r.local']\nsecure = true", "unknown field `secure`"),
        ] {
            let found = resolved(text).expect_err(text);
            assert!(found.contains(error), "{found}");
        }
        resolved("['docker.io']\nmirrors = ['https://mirror.local']\n['r']\ninsecure = true").expect("legal");
    }
}
