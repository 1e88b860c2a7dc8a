//! Manifests, indexes and configs: OCI image specification, and Docker's schema 2, which differs in media types.

use serde::{Deserialize, Serialize};

/// Larger ones are no manifests.
pub(crate) const BOUND: u64 = 4 << 20;
const LAYERS: usize = 500;

/// Why an image is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It can't be read.
    #[error("the image's {what} is malformed: {why}")]
    Malformed {
        /// `manifest`, `index`, `config`.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It is not for this machine.
    #[error("the image is not for linux/{0}: it is for {1}")]
    Platform(String, String),
}

/// One reference from a manifest to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// In an index: for which machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// For which machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`.
    pub architecture: String,
}

/// Config and layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// Of the manifest itself.
    #[serde(default)]
    pub media_type: String,
    /// The config.
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// What an image says of how it is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// Program and first arguments.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// Arguments, or the program.
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// `user[:group]`.
    pub user: String,
    /// What asks the program to end.
    pub stop_signal: String,
}

fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: Option<ImageConfig>,
}

fn malformed(what: &'static str) -> impl Fn(serde_json::Error) -> ManifestError {
    move |error| ManifestError::Malformed { what, why: error.to_string() }
}

/// As images spell this machine's architecture.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Either a manifest, or, of an index, the descriptor of the one for this machine.
pub(crate) enum Document {
    Manifest(Manifest),
    Other(Descriptor),
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
    if value.get("manifests").is_some() {
        let index: Index = serde_json::from_value(value).map_err(malformed("index"))?;
        return choose(index).map(Document::Other);
    }
    let manifest: Manifest = serde_json::from_value(value).map_err(malformed("manifest"))?;
    if manifest.layers.len() > LAYERS {
        let why = format!("it has {} layers, and {LAYERS} is the most", manifest.layers.len());
        return Err(ManifestError::Malformed { what: "manifest", why });
    }
    Ok(Document::Manifest(manifest))
}

fn choose(index: Index) -> Result<Descriptor, ManifestError> {
    let fits = |it: &&Descriptor| {
        it.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == architecture())
    };
    let found = index.manifests.iter().find(fits).cloned();
    found.ok_or_else(|| {
        let names = index.manifests.iter().filter_map(|it| it.platform.as_ref());
        let names: Vec<String> = names.map(|it| format!("{}/{}", it.os, it.architecture)).collect();
        ManifestError::Platform(architecture().into(), names.join(", "))
    })
}

pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
    let file: ConfigFile = serde_json::from_slice(bytes).map_err(malformed("config"))?;
    Ok(file.config.unwrap_or_default())
}
