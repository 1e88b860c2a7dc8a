//! Ways to a registry: mirrors, private authorities, and registries without encryption.

use std::sync::Arc;

use flota_image::{ImageName, Registries, RegistryOptions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use crate::server::{Answer, Server, Store};

fn registries(host: &str, options: RegistryOptions) -> Registries {
    [(host.to_owned(), options)].into_iter().collect()
}

fn mirrored(host: &str, mirrors: &[String]) -> Registries {
    registries(host, RegistryOptions::new(mirrors, false, None).unwrap())
}

#[tokio::test]
async fn mirror_is_asked_first_and_without_credentials() {
    let mirror = Server::start(|fixture, asked, _| fixture.answer(asked)).await;
    let registry = Server::start(|_, _, _| Answer::new(500, "")).await;
    let mirrors = mirrored(&registry.address, &[format!("http://{}/", mirror.address)]);
    Store::new().pull(&registry.image(), &mirrors, Some(("user", "pass"))).await.unwrap();
    assert!(registry.asked().is_empty());
    assert!(mirror.asked().iter().all(|it| it.header("authorization").is_none()));
}

#[tokio::test]
async fn registry_is_asked_for_what_no_mirror_has() {
    // The first mirror does not exist, the second has the manifest alone.
    let partial = Server::start(|fixture, asked, _| match asked.is_manifest() {
        true => fixture.answer(asked),
        false => Answer::new(404, ""),
    })
    .await;
    let registry = Server::start(|fixture, asked, _| fixture.answer(asked)).await;
    let mirrors =
        mirrored(&registry.address, &["http://127.0.0.1:1".to_owned(), format!("http://{}", partial.address)]);
    Store::new().pull(&registry.image(), &mirrors, None).await.unwrap();
    assert!(registry.asked().iter().all(|it| !it.is_manifest()));
    let absent = Server::start(|_, _, _| Answer::new(404, "")).await;
    let mirrors = mirrored(&absent.address, &["http://127.0.0.1:1".into()]);
    let error = Store::new().pull(&absent.image(), &mirrors, None).await.unwrap_err();
    let named = ["failed to connect to http://127.0.0.1:1/", &absent.address, "404"];
    assert!(named.iter().all(|it| error.contains(it)), "what each has answered: {error}");
}

/// A server with a certificate of a private authority; also that authority in PEM.
async fn with_tls() -> (Server, String) {
    let key = || KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, key()).unwrap();
    let server_key = key();
    let names = vec!["127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&server_key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let private = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], private).unwrap();
    let server =
        Server::start_with(Some(TlsAcceptor::from(Arc::new(config))), |fixture, asked, _| fixture.answer(asked));
    (server.await, authority.pem())
}

#[tokio::test]
async fn certificate_of_a_private_authority_is_taken_where_the_settings_say_so() {
    let (server, pem) = with_tls().await;
    let pull =
        async |options| Store::new().pull(&server.image(), &registries(&server.address, options), None).await.map(drop);
    pull(RegistryOptions::new(&[], false, Some(pem.as_bytes())).unwrap()).await.unwrap();
    pull(RegistryOptions::new(&[], true, None).unwrap()).await.unwrap();
    let (_, other) = with_tls().await;
    let error = pull(RegistryOptions::new(&[], false, Some(other.as_bytes())).unwrap()).await.unwrap_err();
    assert!(error.contains("failed to connect to https://127.0.0.1"), "{error}");
}

#[tokio::test]
async fn registry_of_this_machine_may_have_a_certificate_that_nobody_knows() {
    let (server, _) = with_tls().await;
    Store::new().pull(&server.image(), &Registries::default(), None).await.unwrap();
}

#[tokio::test]
async fn settings_of_a_mirror_are_those_of_its_host_whatever_its_path() {
    let (mirror, pem) = with_tls().await;
    let registry = Server::start(|_, _, _| Answer::new(500, "")).await;
    let own = RegistryOptions::new(&[format!("https://{}/cache", mirror.address)], false, None).unwrap();
    let of_mirror = RegistryOptions::new(&[], false, Some(pem.as_bytes())).unwrap();
    let both: Registries = [(registry.address.clone(), own), (mirror.address.clone(), of_mirror)].into_iter().collect();
    Store::new().pull(&registry.image(), &both, None).await.unwrap();
    assert!(mirror.asked().iter().all(|it| it.path.starts_with("/cache/v2/")));
}

#[tokio::test]
async fn insecure_registry_is_also_asked_without_encryption() {
    let server = Server::start(|fixture, asked, _| fixture.answer(asked)).await;
    let port = server.address.rsplit_once(':').unwrap().1;
    // Not 127.0.0.1, where HTTP is tried anyway: this is one of the machine's own addresses, as another's would be.
    let name = ImageName { registry: format!("0.0.0.0:{port}"), ..server.image() };
    let insecure = registries(&name.registry, RegistryOptions::new(&[], true, None).unwrap());
    Store::new().pull(&name, &insecure, None).await.unwrap();
    let error = Store::new().pull(&name, &Registries::default(), None).await.unwrap_err();
    assert!(error.contains("failed to connect to https://0.0.0.0"), "{error}");
}
