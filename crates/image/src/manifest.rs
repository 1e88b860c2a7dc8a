//! Manifests, indexes and image configs: the types of `oci-spec`, and the choice of the manifest for this machine.
//!
//! Docker's schema 2 has the same fields with other media types, so the same types read it. What common tools leave out
//! may be absent or `null`: optional fields, an empty list of layers, `rootfs`. A descriptor without a media type or with
//! a malformed digest is refused. Unknown fields are ignored.

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os, Platform, Sha256Digest,
    ToDockerV2S2,
};
use serde_json::{Value, json};

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
        /// The defect.
        why: String,
    },
    /// The image, or every image of the index, is for other machines.
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
    /// The descriptors of the manifests that run on this machine, chosen from an index, the best first. There is at
    /// least one.
    Index(Vec<Descriptor>),
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
    remove_nulls(&mut value);
    if value.get("manifests").is_some() {
        let index: ImageIndex = serde_json::from_value(value).map_err(malformed("index"))?;
        return choose(index.manifests(), &Machine::this()).map(Document::Index);
    }
    default(&mut value, "layers", json!([]));
    let manifest: Box<ImageManifest> = serde_json::from_value(value).map_err(malformed("manifest"))?;
    let count = manifest.layers().len();
    if count > LAYERS {
        let why = format!("it has {count} layers, and {LAYERS} is the most");
        return Err(ManifestError::Malformed { what: "manifest", why });
    }
    Ok(Document::Manifest(manifest))
}

/// Parses an index without choosing from it.
pub(crate) fn parse_index(bytes: &[u8]) -> Result<Vec<Descriptor>, ManifestError> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(malformed("index"))?;
    remove_nulls(&mut value);
    default(&mut value, "manifests", json!([]));
    let index: ImageIndex = serde_json::from_value(value).map_err(malformed("index"))?;
    Ok(index.manifests().clone())
}

/// A platform as a document of an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlatform {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Variant of the architecture, if there is one.
    pub variant: Option<String>,
}

/// What a manifest or index says of the platforms of its image.
#[derive(Debug)]
pub(crate) enum NamedPlatforms {
    /// An index names them. There are none if an image in it may have any.
    Index(Vec<ImagePlatform>),
    /// A manifest leaves it to its config, which has this digest.
    Config(String),
}

/// Finds out what a document says of platforms.
pub(crate) fn platforms(bytes: &[u8]) -> Result<NamedPlatforms, ManifestError> {
    let value: Value = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
    if value.get("manifests").is_none_or(Value::is_null) {
        let config: Descriptor = serde_json::from_value(value["config"].clone()).map_err(malformed("manifest"))?;
        return Ok(NamedPlatforms::Config(config.digest().to_string()));
    }
    let images = parse_index(bytes)?.into_iter().filter(is_image);
    // Those of tools that write no annotation.
    let is_attestation = |it: &Platform| it.os().to_string() == "unknown";
    let named: Option<Vec<_>> = images.map(|it| it.platform().clone().filter(names_os)).collect();
    let named = named.unwrap_or_default().into_iter().filter(|it| !is_attestation(it));
    let named = named.map(|it| ImagePlatform {
        os: it.os().to_string(),
        architecture: it.architecture().to_string(),
        variant: it.variant().clone(),
    });
    Ok(NamedPlatforms::Index(named.collect()))
}

/// Returns the platform that a config names; `None` if it names none, because it is that of another artifact.
pub(crate) fn config_platform(bytes: &[u8]) -> Result<Option<ImagePlatform>, ManifestError> {
    let value: Value = serde_json::from_slice(bytes).map_err(malformed("config"))?;
    let text = |field| value.get(field).and_then(Value::as_str).filter(|it| !it.is_empty()).map(str::to_owned);
    let named = text("os").zip(text("architecture"));
    // Nor does a node look at the variant when it starts the image: many builders write one without need.
    Ok(named.map(|(os, architecture)| ImagePlatform { os, architecture, variant: None }))
}

/// Parses a config. Refuses that of an image for other machines.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(malformed("config"))?;
    remove_nulls(&mut value);
    default(&mut value, "rootfs", json!({ "type": "layers" }));
    default(&mut value["rootfs"], "diff_ids", json!([]));
    let file: ImageConfiguration = serde_json::from_value(value).map_err(malformed("config"))?;
    let machine = Machine::this();
    if *file.os() != Os::Linux || !machine.runs(&usual(file.architecture())) {
        let found = format!("{}/{}", file.os(), file.architecture());
        return Err(ManifestError::Platform(machine.architecture.to_string(), found));
    }
    Ok(file.config().clone().unwrap_or_default())
}

/// Removes the fields that are `null`, because all tools take them for absent.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// Sets a field that is absent.
fn default(value: &mut Value, field: &str, to: Value) {
    if let Value::Object(fields) = value {
        fields.entry(field).or_insert(to);
    }
}

/// The properties of a machine that decide which images run on it.
struct Machine {
    architecture: Arch,
    /// Highest variant of the architecture, such as 3 for `amd64/v3`.
    variant: u8,
}

impl Machine {
    fn this() -> Self {
        Self { architecture: Arch::default(), variant: highest_variant() }
    }

    /// Whether programs of this architecture run here: those of its own, and the 32-bit ones that nearly all such machines run
    /// as well, as containerd assumes.
    fn runs(&self, architecture: &Arch) -> bool {
        let of_32_bits = match self.architecture {
            Arch::Amd64 => Some(Arch::i386),
            Arch::ARM64 => Some(Arch::ARM),
            _ => None,
        };
        *architecture == self.architecture || of_32_bits.as_ref() == Some(architecture)
    }

    /// Returns how well a platform fits this machine; `None` if it does not run here. Its own architecture fits better than
    /// one of 32 bits, and then a higher variant fits better.
    fn fitness(&self, platform: &Platform) -> Option<(bool, u8)> {
        let architecture = usual(platform.architecture());
        let (lowest, highest) = match architecture {
            Arch::ARM64 => (8, self.variant),
            Arch::ARM if self.architecture == Arch::ARM64 => (1, 8),
            _ => (1, self.variant),
        };
        let variant = match platform.variant().as_deref() {
            None | Some("") => lowest,
            Some(text) => text.strip_prefix('v').unwrap_or(text).parse().ok()?,
        };
        let fits = *platform.os() == Os::Linux && self.runs(&architecture);
        (fits && (lowest..=highest).contains(&variant)).then_some((architecture == self.architecture, variant))
    }
}

/// Returns an architecture by its usual name; some tools write the one that uname(1) prints.
fn usual(architecture: &Arch) -> Arch {
    match architecture {
        Arch::Other(name) => match name.as_str() {
            "x86_64" | "x86-64" => Arch::Amd64,
            "aarch64" => Arch::ARM64,
            "armhf" | "armel" => Arch::ARM,
            _ => architecture.clone(),
        },
        _ => architecture.clone(),
    }
}

/// Returns the newest variant of its architecture that this machine has, as images spell it (`v3`); empty if the
/// architecture has none that are known here.
pub fn machine_variant() -> String {
    match Arch::default() {
        Arch::Amd64 | Arch::ARM | Arch::ARM64 => format!("v{}", highest_variant()),
        _ => String::new(),
    }
}

/// Returns the highest level of x86-64 (x86-64 psABI, "Micro-Architecture Levels") that this processor has.
#[cfg(target_arch = "x86_64")]
fn highest_variant() -> u8 {
    macro_rules! has {
        ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    let level_2 = has!("cmpxchg16b" "popcnt" "sse3" "sse4.1" "sse4.2" "ssse3");
    let level_3 = level_2 && has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe");
    let level_4 = level_3 && has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl");
    1 + u8::from(level_2) + u8::from(level_3) + u8::from(level_4)
}

/// Returns the version of the ARM architecture that the kernel names (`armv7l`).
#[cfg(target_arch = "arm")]
fn highest_variant() -> u8 {
    let name = nix::sys::utsname::uname().ok().and_then(|it| it.machine().to_str().map(str::to_owned));
    let name = name.unwrap_or_default();
    let digit = |it: &str| it.chars().next()?.to_digit(10)?.try_into().ok();
    if name == "aarch64" { 8 } else { name.strip_prefix("armv").and_then(digit).unwrap_or(1) }
}

/// Only the lowest variant is certain to run.
#[cfg(not(any(target_arch = "x86_64", target_arch = "arm")))]
fn highest_variant() -> u8 {
    if cfg!(target_arch = "aarch64") { 8 } else { 1 }
}

/// Returns the manifests that run on this machine, the best first. Those without a platform (some tools write none) come
/// last; their configs say whether they fit.
fn choose(manifests: &[Descriptor], machine: &Machine) -> Result<Vec<Descriptor>, ManifestError> {
    let known = |it: &Descriptor| it.platform().clone().filter(names_os);
    let fitness = |it: &&Descriptor| known(it).and_then(|platform| machine.fitness(&platform));
    let mut fitting: Vec<_> = manifests.iter().filter(|it| fitness(it).is_some()).collect();
    fitting.sort_by_key(|it| std::cmp::Reverse(fitness(it)));
    fitting.extend(manifests.iter().filter(|it| known(it).is_none() && is_image(it)));
    if fitting.is_empty() {
        let names: Vec<String> = manifests.iter().filter_map(known).map(|it| name(&it)).collect();
        let names = if names.is_empty() { "no machine".to_owned() } else { names.join(", ") };
        return Err(ManifestError::Platform(machine.architecture.to_string(), names));
    }
    Ok(fitting.into_iter().cloned().collect())
}

/// Some tools write a platform of which nothing is known.
fn names_os(platform: &Platform) -> bool {
    !platform.os().to_string().is_empty()
}

fn name(platform: &Platform) -> String {
    let variant = platform.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

/// Returns whether an index's entry can be an image: signatures, attestations and other artifacts are not.
pub(crate) fn is_image(entry: &Descriptor) -> bool {
    let is_attestation = entry.annotations().as_ref().is_some_and(|it| it.contains_key("vnd.docker.reference.type"));
    let kinds = [MediaType::ImageManifest, MediaType::ImageIndex];
    let has_kind = kinds.iter().any(|kind| {
        entry.media_type() == kind || kind.to_docker_v2s2().is_ok_and(|it| it == entry.media_type().as_ref())
    });
    has_kind && entry.artifact_type().is_none() && !is_attestation
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
        assert_eq!(chosen.iter().map(|it| it.digest().to_string()).collect::<Vec<_>>(), [fitting]);
        let error = parsed(&index(3)).expect_err("none fits");
        assert_eq!(error, ManifestError::Platform(own.clone(), format!("linux/s390, windows/{own}, unknown/unknown")));
    }

    #[test]
    fn best_variant_that_runs_here_is_first() {
        let entry = |number: u8, architecture: Option<(&str, Option<&str>)>| {
            let mut value = descriptor(&DIGEST.replace("c2b8", &format!("{number:04}")), None);
            if let Some((architecture, variant)) = architecture {
                value["platform"] = json!({ "os": "linux", "architecture": architecture, "variant": variant });
            }
            serde_json::from_value(value).expect("a descriptor")
        };
        let manifests = [
            entry(0, None),
            entry(1, Some(("amd64", None))),
            entry(2, Some(("amd64", Some("v4")))),
            entry(3, Some(("amd64", Some("v3")))),
            entry(4, Some(("amd64", Some("v2")))),
            entry(5, Some(("arm64", Some("v8")))),
            entry(6, Some(("arm", Some("v6")))),
            entry(7, Some(("arm", Some("v7")))),
            entry(8, Some(("386", None))),
        ];
        let chosen = |architecture: Arch, variant| {
            let chosen = choose(&manifests, &Machine { architecture, variant }).expect("one fits");
            chosen.iter().map(|it| it.digest().digest()[..4].parse().expect("a number")).collect::<Vec<u8>>()
        };
        assert_eq!(chosen(Arch::Amd64, 3), [3, 4, 1, 8, 0]);
        assert_eq!(chosen(Arch::Amd64, 1), [1, 8, 0]);
        assert_eq!(chosen(Arch::ARM64, 8), [5, 7, 6, 0]);
        assert_eq!(chosen(Arch::ARM, 6), [6, 0]);
        assert_eq!(chosen(Arch::i386, 1), [8, 0]);
    }

    #[test]
    fn platforms_of_an_image_are_named_by_its_index_or_its_config() {
        let index = |manifests: Value| {
            let index = json!({ "schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": manifests });
            match platforms(index.to_string().as_bytes()).expect("it is an index") {
                NamedPlatforms::Index(named) => {
                    named.iter().map(|it| format!("{}/{}", it.os, it.architecture)).collect()
                }
                NamedPlatforms::Config(_) => panic!("it has manifests"),
            }
        };
        let [amd64, arm64] = ["amd64", "arm64"].map(|it| descriptor(DIGEST, Some(("linux", it))));
        let attestation = descriptor(DIGEST, Some(("unknown", "unknown")));
        let named: Vec<String> = index(json!([arm64, attestation, amd64]));
        assert_eq!(named, ["linux/arm64", "linux/amd64"]);
        let bare = descriptor(DIGEST, None);
        assert_eq!(index(json!([arm64, bare])), Vec::<String>::new(), "one may be for any machine");
        assert_eq!(index(json!([])), Vec::<String>::new());
        let Ok(NamedPlatforms::Config(config)) = platforms(manifest(1).to_string().as_bytes()) else {
            panic!("it is a manifest")
        };
        assert_eq!(config, DIGEST);
        assert!(platforms(b"{}").is_err());
        let config = |value: Value| config_platform(value.to_string().as_bytes()).expect("it is JSON");
        let arm = config(json!({ "os": "linux", "architecture": "arm", "variant": "v7" })).expect("it names one");
        assert_eq!(
            (arm.architecture.as_str(), arm.variant),
            ("arm", None),
            "a node runs it whatever its own variant is"
        );
        assert_eq!(config(json!({ "mediaType": "application/vnd.other" })), None);
    }

    #[test]
    fn an_architecture_with_the_name_that_uname_prints_is_known() {
        let machine = Machine { architecture: Arch::ARM64, variant: 8 };
        for (name, variant, fits) in [("aarch64", "v8", true), ("arm64", "8", true), ("arm64", "v9", false)] {
            let platform = json!({ "os": "linux", "architecture": name, "variant": variant });
            let platform: Platform = serde_json::from_value(platform).expect("a platform");
            assert_eq!(machine.fitness(&platform).is_some(), fits, "{name} {variant}");
        }
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
