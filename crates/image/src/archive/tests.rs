//! Tests of importing archives as common tools write them. The images have one small layer.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar_core::HEADER_SIZE;
use tar_core::builder::EntryBuilder;

use super::*;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn put(&mut self, kind: EntryType, name: &str, link: &str, bytes: &[u8]) {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(name).link_name(link).entry_type(kind).size(bytes.len() as u64).expect("small");
        self.0.extend(entry.mode(0o644).expect("small").finish_bytes());
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(HEADER_SIZE), 0);
    }

    fn file(&mut self, name: &str, bytes: &[u8]) {
        self.put(EntryType::Regular, name, "", bytes);
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.file(name, value.to_string().as_bytes());
    }

    /// Adds a blob of an OCI layout and returns its descriptor.
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        self.file(&format!("blobs/sha256/{hex}"), bytes);
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    /// Adds an image of this architecture and returns the descriptor of its manifest.
    fn image(&mut self, architecture: &str) -> Value {
        let config = self.blob("application/vnd.oci.image.config.v1+json", config(architecture).to_string().as_bytes());
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", &layer());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer], "annotations": null });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn import(&self) -> Result<Vec<String>, String> {
        import_bytes(&self.0)
    }
}

fn import_bytes(bytes: &[u8]) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = ImageStore::open(dir.path(), true).expect("a store");
    let imported = import(&store, bytes);
    let (image, names) = imported.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })?;
    assert_eq!(image.config.cmd().as_deref(), Some(&["run".to_owned()][..]), "the image that was meant");
    Ok(names)
}

fn own() -> String {
    oci_spec::image::Arch::default().to_string()
}

fn config(architecture: &str) -> Value {
    let run = if architecture == own() { "run" } else { "not this one" };
    json!({ "architecture": architecture, "os": "linux", "config": { "Cmd": [run], "Env": null }, "history": null,
        "rootfs": { "type": "layers", "diff_ids": null } })
}

fn layer() -> Vec<u8> {
    let mut layer = Archive::default();
    layer.file("file", b"text");
    layer.0
}

fn named(mut descriptor: Value, annotations: &[(&str, &str)]) -> Value {
    for (key, value) in annotations {
        descriptor["annotations"][*key] = (*value).into();
    }
    descriptor
}

fn on(mut descriptor: Value, architecture: &str, variant: Option<&str>) -> Value {
    descriptor["platform"] = json!({ "os": "linux", "architecture": architecture, "variant": variant });
    descriptor
}

/// An archive as `docker save` wrote it up to version 24, with these layers.
fn docker(layers: &[&str]) -> Archive {
    let mut archive = Archive::default();
    archive.json("c.json", &config(&own()));
    archive.file("0/layer.tar", &layer());
    let image = json!([{ "Config": "c.json", "RepoTags": ["saved:1", "saved:2"], "Layers": layers }]);
    archive.json("manifest.json", &image);
    archive
}

#[test]
fn layer_may_be_a_link_to_another_one() {
    for (kind, target) in [(EntryType::Symlink, "../0/layer.tar"), (EntryType::Link, "0/layer.tar")] {
        let mut archive = docker(&["0/layer.tar", "1/layer.tar"]);
        archive.put(kind, "1/layer.tar", target, b"");
        assert_eq!(archive.import(), Ok(vec!["saved:1".to_owned(), "saved:2".to_owned()]), "{kind:?}");
    }
    let mut circle = docker(&["1/layer.tar"]);
    circle.put(EntryType::Symlink, "1/layer.tar", "../2/layer.tar", b"");
    circle.put(EntryType::Symlink, "2/layer.tar", "../1/layer.tar", b"");
    assert_eq!(circle.import(), Err("the archive is refused: `1/layer.tar` is missing".to_owned()));
}

#[test]
fn compressed_archive_is_imported() {
    let archive = docker(&["0/layer.tar"]);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&archive.0).expect("in memory");
    assert_eq!(import_bytes(&gzip.finish().expect("in memory")).map(|names| names.len()), Ok(2));
    let zstd = zstd::stream::encode_all(archive.0.as_slice(), 1).expect("in memory");
    assert_eq!(import_bytes(&zstd).map(|names| names.len()), Ok(2));
    let xz = import_bytes(b"\xfd7zXZ\0 and so on");
    assert_eq!(xz, Err("the archive is refused: failed to decompress it".to_owned()));
}

#[test]
fn layers_and_tags_may_be_null() {
    let mut archive = Archive::default();
    archive.json("c.json", &config(&own()));
    archive.json("manifest.json", &json!([{ "Config": "c.json", "RepoTags": null, "Layers": null }]));
    assert_eq!(archive.import(), Ok(Vec::new()));
}

#[test]
fn one_manifest_may_have_several_names() {
    let mut archive = Archive::default();
    let image = archive.image(&own());
    let entry = |name: &str, tag: &str| named(image.clone(), &[(NAME, name), (REF_NAME, tag)]);
    let entries = [entry("docker.io/library/box:1", "1"), entry("docker.io/library/box:2", "2")];
    archive.json("index.json", &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }));
    let names = ["docker.io/library/box:1", "docker.io/library/box:2"].map(str::to_owned);
    assert_eq!(archive.import(), Ok(names.to_vec()));
}

#[test]
fn mere_tag_is_no_name() {
    for (ref_name, names) in [("latest", vec![]), ("localhost/box:latest", vec!["localhost/box:latest".to_owned()])] {
        let mut archive = Archive::default();
        let image = named(archive.image(&own()), &[(REF_NAME, ref_name)]);
        archive.json("index.json", &json!({ "schemaVersion": 2, "manifests": [image] }));
        assert_eq!(archive.import(), Ok(names), "{ref_name}");
    }
}

#[test]
fn attestations_and_artifacts_are_passed_over() {
    let mut archive = Archive::default();
    let image = on(archive.image(&own()), &own(), None);
    let mut attestation = archive.blob(MANIFEST, b"{\"attestation\":true}");
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let attestation = named(attestation, &[("vnd.docker.reference.type", "attestation-manifest")]);
    let mut artifact = archive.blob(MANIFEST, b"{\"artifact\":true}");
    artifact["artifactType"] = "application/x".into();
    let nested = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [attestation, artifact, image] });
    let nested = archive.blob(INDEX, nested.to_string().as_bytes());
    let nested = named(nested, &[(NAME, "docker.io/library/box:1")]);
    archive.json("index.json", &json!({ "schemaVersion": 2, "manifests": [artifact, nested] }));
    assert_eq!(archive.import(), Ok(vec!["docker.io/library/box:1".to_owned()]));
}

#[test]
fn image_for_this_machine_is_taken_if_the_archive_holds_it() {
    let mut archive = Archive::default();
    let (own_image, other) = (archive.image(&own()), archive.image("s390x"));
    // The index names the best variant, too, but the archive does not hold it.
    let mut missing = on(own_image.clone(), &own(), None);
    missing["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    let entries = [on(other.clone(), "s390x", None), missing, on(own_image, &own(), None)];
    archive.json("index.json", &json!({ "schemaVersion": 2, "manifests": entries }));
    assert_eq!(archive.import(), Ok(Vec::new()));

    let mut foreign = Archive::default();
    let other = foreign.image("s390x");
    foreign.json("index.json", &json!({ "schemaVersion": 2, "manifests": [other] }));
    let error = foreign.import().expect_err("it does not run here");
    assert_eq!(error, format!("the image is not for linux/{}: it is for linux/s390x", own()), "its config says so");
}

#[test]
fn several_images_are_refused_with_their_names() {
    let mut archive = Archive::default();
    let first = named(archive.image(&own()), &[(NAME, "docker.io/library/a:1")]);
    let second = named(archive.image("s390x"), &[(NAME, "docker.io/library/b:1")]);
    archive.json("index.json", &json!({ "schemaVersion": 2, "manifests": [first, second] }));
    let why = "it holds 2 images (docker.io/library/a:1, docker.io/library/b:1), and one is taken at a time";
    assert_eq!(archive.import(), Err(format!("the archive is refused: {why}")));
    assert_eq!(
        Archive::default().import().map(drop),
        Err("the archive is refused: it has neither index.json (OCI layout) nor manifest.json (docker-archive)"
            .to_owned())
    );
}
