//! Tags are resolved without pulling the image, and images are pulled by the digest of an index.

use flota_image::{Credentials, ImageName, Registries, RegistryOptions, platforms, resolve};
use serde_json::json;

use crate::server::{Answer, Server, Store, sha256};

async fn resolved(server: &Server, registries: &Registries) -> Result<String, String> {
    let _installs_the_tls_provider = Store::new();
    let login = Credentials { username: "user".into(), password: "pass".into() };
    let resolved = resolve(registries, &server.image(), Some(&login)).await;
    resolved.map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

/// The methods of the requests for a manifest.
fn methods(server: &Server) -> Vec<String> {
    server.asked().iter().filter(|it| it.is_manifest()).map(|it| it.method.clone()).collect()
}

#[tokio::test]
async fn one_request_without_a_body_resolves_a_tag() {
    let server = Server::start(|fixture, asked, _| {
        fixture.answer(asked).with("Docker-Content-Digest", format!("sha256:{}", "7".repeat(64)))
    })
    .await;
    assert_eq!(resolved(&server, &Registries::default()).await, Ok(format!("sha256:{}", "7".repeat(64))));
    assert_eq!(methods(&server), ["HEAD"]);
}

#[tokio::test]
async fn digest_that_a_registry_does_not_send_is_that_of_the_manifest() {
    let server = Server::start(|fixture, asked, _| fixture.answer(asked)).await;
    let manifest = crate::server::Fixture::new().manifest;
    assert_eq!(resolved(&server, &Registries::default()).await, Ok(sha256(&manifest)));
    assert_eq!(methods(&server), ["HEAD", "GET"]);
}

#[tokio::test]
async fn registry_gets_its_credentials_and_a_mirror_none() {
    let mirror = Server::start(|_, _, _| Answer::new(404, "")).await;
    let registry = Server::start(|fixture, asked, _| match asked.header("authorization") {
        None => Answer::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""),
        Some(_) => fixture.answer(asked),
    })
    .await;
    let options = RegistryOptions::new(&[format!("http://{}", mirror.address)], false, None).unwrap();
    let registries = [(registry.address.clone(), options)].into_iter().collect();
    resolved(&registry, &registries).await.unwrap();
    assert!(mirror.asked().iter().all(|it| it.header("authorization").is_none()));
}

#[tokio::test]
async fn error_names_the_image_and_what_the_registry_answers() {
    let absent = Server::start(|_, _, _| Answer::new(404, "")).await;
    let error = resolved(&absent, &Registries::default()).await.unwrap_err();
    let image = absent.image();
    assert!(error.starts_with(&format!("failed to resolve {image}: ")) && error.contains("404"), "{error}");
    let huge = Server::start(|_, _, _| Answer::new(200, vec![b' '; 5 << 20])).await;
    let error = resolved(&huge, &Registries::default()).await.unwrap_err();
    assert!(error.contains("gives no manifest for it: it has more than"), "{error}");
}

#[tokio::test]
async fn what_answers_and_is_no_registry_stands_for_no_image() {
    let page = "<html>Please log in to this network</html>";
    let portal = Server::start(move |_, _, _| Answer::new(200, page).with("Docker-Content-Digest", "sha256:7")).await;
    let error = resolved(&portal, &Registries::default()).await.unwrap_err();
    assert!(error.contains("gives no manifest for it: the image's manifest is malformed"), "{error}");
    // A mirror behind such a page does not hide the registry.
    let registry = Server::start(|fixture, asked, _| fixture.answer(asked)).await;
    let options = RegistryOptions::new(&[format!("http://{}", portal.address)], false, None).unwrap();
    let registries: Registries = [(registry.address.clone(), options)].into_iter().collect();
    let digest = sha256(&crate::server::Fixture::new().manifest);
    assert_eq!(resolved(&registry, &registries).await, Ok(digest.clone()));
    assert_eq!(Store::new().pull(&registry.image(), &registries, None).await.unwrap().digest, digest);
}

/// An index with the fixture's manifest for this machine, one for another machine, and an attestation of the latter.
fn index() -> Vec<u8> {
    let manifest = crate::server::Fixture::new().manifest;
    let entry = |digest: String, size: usize, os: &str, architecture: &str| {
        json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "platform": { "os": os, "architecture": architecture } })
    };
    let other = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        entry(other("5"), 7, "linux", "s390x"),
        entry(other("6"), 7, "unknown", "unknown"),
        entry(sha256(&manifest), manifest.len(), "linux", &oci_spec::image::Arch::default().to_string()),
    ] });
    index.to_string().into_bytes()
}

/// A registry that has this index, and the fixture's image.
async fn with_index(bytes: Vec<u8>) -> (Server, ImageName) {
    let own = sha256(&crate::server::Fixture::new().manifest);
    let version = sha256(&bytes);
    let server = Server::start(move |fixture, asked, _| match asked.is_manifest() && !asked.path.ends_with(&own) {
        true => Answer::new(200, bytes.clone()),
        false => fixture.answer(asked),
    })
    .await;
    let name = ImageName { version, ..server.image() };
    (server, name)
}

async fn platforms_of(name: &ImageName) -> Result<Vec<String>, String> {
    let _installs_the_tls_provider = Store::new();
    let named = platforms(&Registries::default(), name, None).await.map_err(|error| error.to_string())?;
    Ok(named.iter().map(|it| format!("{}/{}", it.os, it.architecture)).collect())
}

#[tokio::test]
async fn index_is_all_that_is_read_to_know_its_platforms() {
    let (server, name) = with_index(index()).await;
    let own = format!("linux/{}", oci_spec::image::Arch::default());
    assert_eq!(platforms_of(&name).await, Ok(vec!["linux/s390x".to_owned(), own]));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn platform_of_a_manifest_is_that_of_its_config() {
    let server = Server::start(|fixture, asked, _| fixture.answer(asked)).await;
    let version = sha256(&crate::server::Fixture::new().manifest);
    let name = ImageName { version, ..server.image() };
    assert_eq!(platforms_of(&name).await, Ok(vec![format!("linux/{}", oci_spec::image::Arch::default())]));
    assert_eq!(server.asked().len(), 2, "no layer is read");
}

#[tokio::test]
async fn document_with_another_digest_says_nothing_about_platforms() {
    let (_server, name) = with_index(index()).await;
    let name = ImageName { version: format!("sha256:{}", "4".repeat(64)), ..name };
    let error = platforms_of(&name).await.unwrap_err();
    assert!(error.contains("sends something else than sha256:4444"), "{error}");
}

#[tokio::test]
async fn node_pulls_the_manifest_for_its_own_platform_and_no_other() {
    let (server, name) = with_index(index()).await;
    let image = Store::new().pull(&name, &Registries::default(), None).await.unwrap();
    let (own, asked) = (sha256(&crate::server::Fixture::new().manifest), server.asked());
    assert_eq!(image.blobs()[..2], [name.version.clone(), own.clone()]);
    let manifests: Vec<_> = asked.iter().filter(|it| it.is_manifest()).map(|it| it.path.clone()).collect();
    assert!(manifests.len() == 2 && manifests[1].ends_with(&own), "{manifests:?}");
}

#[tokio::test]
async fn image_is_known_by_the_digest_of_its_index_and_whole_with_it() {
    let manifest = crate::server::Fixture::new().manifest;
    let platform = json!({ "os": "linux", "architecture": oci_spec::image::Arch::default().to_string() });
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": sha256(&manifest),
        "size": manifest.len(), "platform": platform,
    }] });
    let (bytes, digest) = (index.to_string().into_bytes(), sha256(index.to_string().as_bytes()));
    let (own, served) = (sha256(&manifest), bytes.clone());
    let server = Server::start(move |fixture, asked, _| match asked.is_manifest() && !asked.path.ends_with(&own) {
        true => Answer::new(200, served.clone()),
        false => fixture.answer(asked),
    })
    .await;
    let store = Store::new();
    let name = ImageName { version: digest.clone(), ..server.image() };
    let image = store.pull(&name, &Registries::default(), None).await.unwrap();
    assert_eq!(image.digest, digest);
    assert_eq!(image.blobs()[..2], [digest, sha256(&manifest)]);
}
