//! Manifests, indexes and image configs: the types of `oci-spec`, and the choice of the manifest for this machine.
//!
//! Docker's schema 2 has the same fields with other media types, so the same types read it. Fields that the
//! specification requires are required here too: a descriptor without a media type or with a malformed digest is
//! refused, and so is a config without `architecture`, `os` or `rootfs`. Optional fields may be absent or `null`, and
//! unknown fields are ignored.

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os, Sha256Digest};

pub use oci_spec::image::Config as ImageConfig;

/// Largest document that is accepted, in bytes.
pub(crate) const BOUND: u64 = 4 << 20;
/// Largest number of layers in a manifest; overlayfs and Docker support no more.
const LAYERS: usize = 127;

/// Why an image is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A document does not match the specification.
    #[error("the image's {what} is malformed: {why}")]
    Malformed {
        /// The document: `manifest`, `index` or `config`.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The index has no manifest for this machine.
    #[error("the image is not for linux/{0}: it is for {1}")]
    Platform(String, String),
}

fn malformed(what: &'static str) -> impl Fn(serde_json::Error) -> ManifestError {
    move |error| ManifestError::Malformed { what, why: error.to_string() }
}

/// The document that a digest of an image names.
#[derive(Debug)]
pub(crate) enum Document {
    /// The manifest itself.
    Manifest(Box<ImageManifest>),
    /// The descriptor of the manifest for this machine, chosen from an index.
    Index(Box<Descriptor>),
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
    if value.get("manifests").is_some() {
        let index = serde_json::from_value(value).map_err(malformed("index"))?;
        return choose(&index).map(Document::Index);
    }
    let manifest: Box<ImageManifest> = serde_json::from_value(value).map_err(malformed("manifest"))?;
    let count = manifest.layers().len();
    if count > LAYERS {
        let why = format!("it has {count} layers, and {LAYERS} is the most");
        return Err(ManifestError::Malformed { what: "manifest", why });
    }
    Ok(Document::Manifest(manifest))
}

fn choose(index: &ImageIndex) -> Result<Box<Descriptor>, ManifestError> {
    let own = Arch::default();
    let fits =
        |it: &&Descriptor| it.platform().as_ref().is_none_or(|it| *it.os() == Os::Linux && *it.architecture() == own);
    let found = index.manifests().iter().find(fits).cloned();
    found.map(Box::new).ok_or_else(|| {
        let platforms = index.manifests().iter().filter_map(|it| it.platform().as_ref());
        let names: Vec<String> = platforms.map(|it| format!("{}/{}", it.os(), it.architecture())).collect();
        ManifestError::Platform(own.to_string(), names.join(", "))
    })
}

pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
    let file: ImageConfiguration = serde_json::from_slice(bytes).map_err(malformed("config"))?;
    Ok(file.config().clone().unwrap_or_default())
}

/// Returns a descriptor of a blob that the store holds under this digest.
pub(crate) fn descriptor(media_type: MediaType, digest: &str, size: u64) -> Descriptor {
    let hex = digest.trim_start_matches("sha256:");
    Descriptor::new(media_type, size, hex.parse::<Sha256Digest>().expect("the store makes well-formed digests"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DIGEST: &str = "sha256:c2b8beca588702777e5f35dafdbeae9ec16c2bab802331f81cacd2a92f1d5356";
    const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

    fn descriptor(digest: &str, platform: Option<(&str, &str)>) -> Value {
        let mut value = json!({ "mediaType": DOCKER_MANIFEST, "digest": digest, "size": 7 });
        if let Some((os, architecture)) = platform {
            value["platform"] = json!({ "os": os, "architecture": architecture });
        }
        value
    }

    fn manifest(layers: usize) -> Value {
        let part = descriptor(DIGEST, None);
        json!({ "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": part, "layers": vec![part.clone(); layers] })
    }

    fn parsed(value: &Value) -> Result<Document, ManifestError> {
        parse(value.to_string().as_bytes())
    }

    #[test]
    fn manifest_of_docker_is_read() {
        let Ok(Document::Manifest(manifest)) = parsed(&manifest(2)) else { panic!("a manifest") };
        assert_eq!((manifest.config().digest().as_ref(), manifest.layers().len()), (DIGEST, 2));
    }

    #[test]
    fn manifest_with_too_many_layers_is_refused() {
        assert!(matches!(parsed(&manifest(LAYERS)), Ok(Document::Manifest(_))));
        let error = parsed(&manifest(LAYERS + 1)).expect_err("one too many").to_string();
        assert_eq!(error, "the image's manifest is malformed: it has 128 layers, and 127 is the most");
    }

    #[test]
    fn index_leads_to_the_manifest_for_this_machine() {
        let own = Arch::default().to_string();
        let (other, fitting) = (DIGEST.replace("c2", "00"), DIGEST);
        let manifests = [
            descriptor(&other, Some(("linux", "s390"))),
            descriptor(&other, Some(("windows", &own))),
            descriptor(&other, Some(("unknown", "unknown"))),
            descriptor(fitting, Some(("linux", &own))),
        ];
        let index =
            |count: usize| json!({ "schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": manifests[..count] });
        let Ok(Document::Index(chosen)) = parsed(&index(4)) else { panic!("one fits") };
        assert_eq!(chosen.digest().as_ref(), fitting);
        let error = parsed(&index(3)).expect_err("none fits");
        assert_eq!(error, ManifestError::Platform(own.clone(), format!("linux/s390, windows/{own}, unknown/unknown")));
    }

    #[test]
    fn malformed_digest_is_refused() {
        for digest in ["", "sha256:", "sha256:C2", "../../etc/passwd", "sha256:../x"] {
            let mut value = manifest(1);
            value["layers"][0]["digest"] = digest.into();
            assert!(matches!(parsed(&value), Err(ManifestError::Malformed { what: "manifest", .. })), "{digest}");
        }
    }

    #[test]
    fn optional_field_of_a_config_may_be_absent_null_or_unknown() {
        let config = |config: Value| {
            let file = json!({
                "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
                "config": config, "container_config": {}, "history": null,
            });
            parse_config(file.to_string().as_bytes())
        };
        let null = json!({
            "Entrypoint": null, "Cmd": null, "Env": null, "User": null, "WorkingDir": null, "StopSignal": null,
            "ExposedPorts": null, "Volumes": null, "Labels": null, "OnBuild": null, "Healthcheck": null,
        });
        for value in [json!(null), json!({}), null] {
            assert_eq!(config(value), Ok(ImageConfig::default()));
        }
        let full = json!({ "Cmd": ["a"], "Volumes": { "/data": {} }, "Hostname": "", "Tty": false });
        assert_eq!(config(full).expect("legal").cmd(), &Some(vec!["a".to_owned()]));
    }
}
