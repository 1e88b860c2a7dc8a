//! Platforms: for which machines an image is made, and which of them a node is.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

/// Largest number of platforms of an image that are kept.
const PLATFORMS_BOUND: usize = 32;
/// Largest size of each part of a platform, in bytes.
const PART_BOUND: usize = 32;

/// A kind of machine for which an image is made, in the spelling of the OCI image specification ("Image Index",
/// `platform`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// Operating system (`linux`).
    pub os: String,
    /// Architecture (`amd64`).
    pub architecture: String,
    /// The oldest variant of the architecture on which it runs (`v7`); `None` for all of them.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns a platform in its one spelling: `linux/x86_64` and `linux/amd64/v1` are `linux/amd64`. `None` if a part is
    /// too long, has characters that no name of a platform has, or is `unknown`, as that of an attestation is.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Option<Self> {
        let is_legal = |it: &&str| {
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !it.is_empty() && it.len() <= PART_BOUND && *it != "unknown" && it.bytes().all(is_name)
        };
        let (architecture, implied) = architecture_of(Some(architecture).filter(is_legal)?);
        let variant = match variant.filter(|it| !it.is_empty()).or(implied) {
            None => None,
            Some(text) => Some(variant_of(Some(text).filter(is_legal)?)),
        };
        // These are the lowest, which every machine has.
        let says_nothing =
            matches!((architecture.as_str(), variant.as_deref()), ("amd64", Some("v1")) | ("arm64", Some("v8")));
        let os = Some(os).filter(is_legal)?.to_ascii_lowercase();
        Some(Self { os, architecture, variant: variant.filter(|_| !says_nothing) })
    }

    /// Returns the platforms of an image in order, each once. There are none if the image has more than are kept: then
    /// nothing is known that rules a node out.
    pub fn of_image(platforms: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let platforms: BTreeSet<Self> = platforms.into_iter().collect();
        if platforms.len() > PLATFORMS_BOUND { Vec::new() } else { platforms.into_iter().collect() }
    }

    /// Returns whether a program for this platform runs on a node of this operating system, architecture and newest variant.
    /// Nodes of 64 bits count as running the programs for their 32-bit predecessors, as nearly all of them do. A node that does not say which platform it has runs none for certain; one that does not say its variant may have any.
    pub(super) fn runs_on(&self, (os, architecture, variant): (&str, &str, &str)) -> bool {
        let variant = Some(variant).filter(|it| !it.is_empty());
        let Some(node) = Self::new(os, architecture, variant) else { return false };
        if matches!((node.architecture.as_str(), self.architecture.as_str()), ("amd64", "386") | ("arm64", "arm")) {
            return self.os == node.os;
        }
        let has_variant = match (&self.variant, variant.map(variant_of).or(node.variant)) {
            (Some(needed), Some(newest)) => match (number_of(needed), number_of(&newest)) {
                (Some(needed), Some(newest)) => needed <= newest,
                _ => *needed == newest,
            },
            _ => true,
        };
        (&self.os, &self.architecture) == (&node.os, &node.architecture) && has_variant
    }
}

/// Returns the usual name of an architecture, with the variant that is in its other name.
fn architecture_of(text: &str) -> (String, Option<&'static str>) {
    let text = text.to_ascii_lowercase();
    let (name, variant) = match text.as_str() {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" => ("arm64", None),
        "powerpc64" | "powerpc64le" => ("ppc64le", None),
        "i386" | "i486" | "i586" | "i686" => ("386", None),
        "armel" | "armv6l" => ("arm", Some("v6")),
        "armhf" | "armv7l" => ("arm", Some("v7")),
        other => (other, None),
    };
    (name.to_owned(), variant)
}

/// Returns a variant with its `v`, which some tools leave out.
fn variant_of(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    if text.parse::<u8>().is_ok() { format!("v{text}") } else { text }
}

fn number_of(variant: &str) -> Option<u8> {
    variant.strip_prefix('v')?.parse().ok()
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl Serialize for Platform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeDescription;

    /// Parses `os/architecture[/variant]`, of which each part may be empty.
    fn platform(text: &str) -> Option<Platform> {
        let mut parts = text.split('/');
        let mut next = || parts.next().unwrap_or_default();
        Platform::new(next(), next(), Some(next()))
    }

    fn node(text: &str) -> NodeDescription {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        NodeDescription { os: next(), architecture: next(), variant: next(), ..NodeDescription::default() }
    }

    #[test]
    fn each_platform_has_one_spelling() {
        for (text, spelled) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/x86-64/3", "linux/amd64/v3"),
            ("linux/aarch64/v8", "linux/arm64"),
            ("linux/arm64/v9", "linux/arm64/v9"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i686", "linux/386"),
            ("linux/powerpc64", "linux/ppc64le"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(platform(text).expect(text).to_string(), spelled);
        }
        let long = "x".repeat(PART_BOUND + 1);
        for text in ["unknown/unknown", "linux/unknown", "/amd64", "linux/", "linux/am d64", "linux/arm/v\u{1b}"] {
            assert_eq!(platform(text), None, "{text}");
        }
        assert_eq!(Platform::new("linux", &long, None), None);
    }

    #[test]
    fn an_image_runs_where_the_platform_is_one_of_its_own() {
        for (image, of_node, runs) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/x86_64", true),
            ("linux/x86_64", "linux/amd64/v3", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/arm64", "linux/aarch64/v8", true),
            ("windows/amd64", "linux/amd64", false),
            ("linux/amd64/v3", "linux/amd64/v2", false),
            ("linux/amd64/v3", "linux/amd64/v4", true),
            // The node itself judges.
            ("linux/amd64/v3", "linux/amd64", true),
            ("linux/arm/v6", "linux/arm/v7", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/arm/v7", "linux/armv6l", false),
            ("linux/arm", "linux/arm/v6", true),
            ("linux/arm/v7", "linux/arm64/v8", true),
            ("linux/386", "linux/amd64", true),
            ("linux/amd64", "linux/386", false),
            ("windows/386", "linux/amd64", false),
            ("linux/mips64/r6", "linux/mips64/r6", true),
            ("linux/mips64/r6", "linux/mips64/r5", false),
            ("linux/amd64", "/", false),
            ("linux/amd64", "linux/", false),
        ] {
            let image = [platform(image).expect("legal")];
            assert_eq!(node(of_node).has_platform_of(&image), runs, "{image:?} on {of_node}");
        }
        let both = ["linux/amd64", "linux/arm64"].map(|it| platform(it).expect("legal"));
        assert!(node("linux/arm64").has_platform_of(&both) && !node("linux/s390x").has_platform_of(&both));
        assert!(node("/").has_platform_of(&[]), "nothing is known of the image");
    }

    #[test]
    fn the_platforms_of_an_image_are_in_order_and_bounded() {
        let image = ["linux/arm64", "linux/amd64", "linux/x86_64", "unknown/unknown"];
        let texts = |platforms: Vec<Platform>| platforms.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(Platform::of_image(image.into_iter().filter_map(platform))), ["linux/amd64", "linux/arm64"]);
        let many = |count: usize| (0..count).filter_map(|number| platform(&format!("linux/a{number}")));
        assert_eq!(Platform::of_image(many(PLATFORMS_BOUND)).len(), PLATFORMS_BOUND);
        assert_eq!(Platform::of_image(many(PLATFORMS_BOUND + 1)), [], "it may be for any machine");
    }
}
