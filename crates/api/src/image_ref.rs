//! Image references such as `web`, `team/web:1.2` or `registry:5000/web@sha256:…`, completed by Docker's rules.

use std::fmt;

/// Why a reference is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {why}")]
pub struct ImageRefError {
    text: String,
    why: &'static str,
}

/// Host of Docker Hub.
const HUB: &str = "docker.io";

/// A complete reference. If it has a digest, the tag is ignored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageRef {
    /// Host of the registry, such as `docker.io` or `localhost:5000`.
    pub registry: String,
    /// Repository, such as `library/web`.
    pub repository: String,
    /// Tag, `latest` by default.
    pub tag: String,
    /// Digest as `sha256:…`; it takes precedence over the tag.
    pub digest: Option<String>,
}

impl ImageRef {
    /// Parses a reference as a user types it.
    ///
    /// # Errors
    /// A part of the reference is illegal (OCI distribution specification, "Pulling manifests"); the error names it.
    pub fn parse(text: &str) -> Result<Self, ImageRefError> {
        let fail = |why| ImageRefError { text: text.chars().take(300).collect(), why };
        if text.is_empty() || text.len() > 300 {
            return Err(fail("it must have 1 to 300 characters"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (text, None),
        };
        if digest.as_deref().is_some_and(|digest| !is_digest(digest)) {
            return Err(fail("after `@` stands `sha256:` and 64 hexadecimal digits"));
        }
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (rest, "latest"),
        };
        if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            return Err(fail("a tag has 1 to 128 letters, digits, `.`, `_` and `-`"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest.to_owned()),
            _ => (HUB, name.to_owned()),
        };
        let registry = registry_host(registry);
        // Docker Hub's own images are below `library`.
        let is_own = registry == HUB && !repository.contains('/');
        let repository = if is_own { format!("library/{repository}") } else { repository };
        let part = |part: &str| {
            let inner = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
            let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            inner && ends(part.as_bytes().first()) && ends(part.as_bytes().last())
        };
        if !repository.split('/').all(part) {
            return Err(fail("a name has lower-case letters, digits, `.`, `_` and `-` between slashes"));
        }
        let host = |b: u8| b.is_ascii_alphanumeric() || b".-:[]".contains(&b);
        let begins = registry.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[');
        if !begins || !registry.bytes().all(host) {
            return Err(fail("the registry's name has an illegal character"));
        }
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.to_owned(), digest })
    }
}

/// Returns the host by which a registry is known, for an address as users and `docker login` write it. All names of Docker
/// Hub, such as `https://index.docker.io/v1/`, become `docker.io`.
pub fn registry_host(address: &str) -> &str {
    let rest = address.strip_prefix("https://").or(address.strip_prefix("http://"));
    // Only an address with a scheme has a path that says nothing.
    let host = rest.map_or(address, |rest| rest.split('/').next().unwrap_or(rest));
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => HUB,
        other => other,
    }
}

/// Returns whether `text` is `sha256:` and 64 hexadecimal digits in lower case.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => write!(f, ":{}", self.tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ImageRef;

    #[test]
    fn references_are_made_whole_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let at = format!("web@{digest}");
        let cases = [
            ("web", "docker.io/library/web:latest"),
            ("team/web:1.2", "docker.io/team/web:1.2"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
            ("docker.io/web", "docker.io/library/web:latest"),
            ("index.docker.io/library/web", "docker.io/library/web:latest"),
            ("registry-1.docker.io/team/web:1", "docker.io/team/web:1"),
            ("registry.hub.docker.com/library/web", "docker.io/library/web:latest"),
            ("localhost/web:x", "localhost/web:x"),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
            (&at, &format!("docker.io/library/web@{digest}")),
        ];
        for (text, whole) in cases {
            let parsed = ImageRef::parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parsed.to_string(), whole);
            assert_eq!(ImageRef::parse(whole), Ok(parsed), "whole references read back");
        }
    }

    #[test]
    fn address_of_a_registry_becomes_its_host() {
        for (address, host) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("https://ghcr.io", "ghcr.io"),
            ("http://localhost:5000/v2/", "localhost:5000"),
            ("registry.local:5000", "registry.local:5000"),
            ("no/host", "no/host"),
        ] {
            assert_eq!(super::registry_host(address), host, "{address}");
        }
    }

    #[test]
    fn what_could_break_a_path_or_a_request_is_refused() {
        let long = "x".repeat(301);
        for bad in ["", "Web", "a//b", "../a", "a/../b", "a:", "a b", "web@sha256:12", "-a", "a:b:c", long.as_str()] {
            assert!(ImageRef::parse(bad).is_err(), "{bad}");
        }
    }
}
