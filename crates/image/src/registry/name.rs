//! The name of an image, parsed.

use std::fmt;

/// The name of an image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// Host of the registry, such as `docker.io` or `localhost:5000`.
    pub registry: String,
    /// Path within the registry, such as `library/busybox`.
    pub repository: String,
    /// Tag or digest.
    pub version: String,
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, repository, version } = self;
        let mark = if version.starts_with("sha256:") { '@' } else { ':' };
        write!(f, "{registry}/{repository}{mark}{version}")
    }
}
