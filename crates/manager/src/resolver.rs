//! Finds out for which digest an image reference stands, and for which platforms the image is made, by asking its registry
//! with the cluster's credentials. The Control API does so once for a service, and all its tasks run that image.
//!
//! A manager implements no registry's protocol: its node gives it the means ([`DigestLookup`]). A lookup continues when
//! the request that led to it has ended, because `ctl` repeats a request that takes long, and the repeated one then
//! waits for the same answer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use flota_api::image_ref::ImageRef;
use flota_api::model::{Platform, RegistryCredentials};
use flota_raft_store::Tables;

use crate::pin::Pin;

/// How long a registry has to answer, so that a user waits little for one that does not.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Largest number of questions at once; a stack may have many images.
const AT_ONCE: usize = 16;

/// The digest for which a reference stands, or why it is not known, as a whole sentence.
pub type Resolved = Result<String, String>;

/// What a reference stands for, or why that is not known, as a whole sentence.
type Answer = Result<Pin, String>;

/// Looks up digests and platforms at registries.
pub trait DigestLookup: fmt::Debug + Send + Sync {
    /// Returns the digest of the manifest or index for which the reference stands at its registry.
    fn digest(&self, reference: ImageRef, login: Option<RegistryCredentials>) -> BoxFuture<'static, Resolved>;

    /// Returns the platforms of the image with this digest, which the repository of the reference has; none if it does not
    /// say. An error is a whole sentence.
    fn platforms(
        &self,
        reference: ImageRef,
        digest: String,
        login: Option<RegistryCredentials>,
    ) -> BoxFuture<'static, Result<Vec<Platform>, String>>;
}

/// Resolves references. Clones share the questions that are open.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    registries: Arc<dyn DigestLookup>,
    open: Arc<Mutex<BTreeMap<String, Shared<BoxFuture<'static, Answer>>>>>,
    turns: Arc<Semaphore>,
}

impl Resolver {
    pub(crate) fn new(registries: Arc<dyn DigestLookup>) -> Self {
        Self { registries, open: Arc::default(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Asks the reference's registry, with the credentials that the cluster has for it. A reference with a digest means that
    /// one, so only the platforms of its image may stay unknown.
    pub(crate) async fn resolve(&self, reference: &ImageRef, view: &Tables) -> Answer {
        let question = {
            let mut open = self.open.lock().expect("no holder panics");
            let asked = open.entry(reference.to_string());
            asked.or_insert_with(|| self.start_lookup(reference.clone(), view)).clone()
        };
        question.await
    }

    fn start_lookup(&self, reference: ImageRef, view: &Tables) -> Shared<BoxFuture<'static, Answer>> {
        let (resolver, name, view) = (self.clone(), reference.to_string(), view.clone());
        let asked = tokio::spawn(async move {
            let mut known = reference.digest.clone().map(Pin::of_digest);
            let answer = tokio::time::timeout(ANSWER_WAIT, resolver.look_up(reference, &view, &mut known)).await;
            let late = |_| Err(format!("failed to resolve {name}: its registry has not answered for {ANSWER_WAIT:?}"));
            let answer = answer.unwrap_or_else(late);
            // A digest that is known is of use although the platforms are not.
            let answer = match (known, answer) {
                (None, answer) => answer,
                (Some(pin), Ok(_)) => Ok(pin),
                (Some(pin), Err(why)) => {
                    tracing::info!(image = name, error = why, "the platforms of an image are not known");
                    Ok(pin)
                }
            };
            resolver.open.lock().expect("no holder panics").remove(&name);
            answer
        });
        async move { asked.await.unwrap_or_else(|error| Err(error.to_string())) }.boxed().shared()
    }

    /// Asks for the digest, unless it is known, and then for the platforms, unless the cluster knows them: registries
    /// such as Docker Hub count the second question against their limits. What is found out is in `known`, also if the
    /// wait for the rest is given up.
    async fn look_up(&self, reference: ImageRef, view: &Tables, known: &mut Option<Pin>) -> Answer {
        let (turn, login) = (self.turns.acquire().await, credentials(&reference, view));
        let digest = match known {
            Some(pin) => pin.digest.clone(),
            None => self.registries.digest(reference.clone(), login.clone()).await?,
        };
        // The turn goes to the next lookup, because a digest is needed more urgently than platforms.
        drop(turn);
        let pin = known.insert(Pin::known(&digest, view));
        if !pin.platforms.is_empty() {
            return Ok(pin.clone());
        }
        pin.platforms = Platform::of_image(self.registries.platforms(reference, digest, login).await?);
        Ok(pin.clone())
    }
}

/// Returns the cluster's credentials for the registry of a reference.
pub(crate) fn credentials(reference: &ImageRef, view: &Tables) -> Option<RegistryCredentials> {
    let registry = view.registry_by_host(&reference.registry)?;
    Some(RegistryCredentials {
        host: registry.host.clone(),
        username: registry.username.clone(),
        password: registry.password.clone(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::sync::watch;

    use super::*;

    /// A registry in which every tag stands for one digest, or which is silent.
    #[derive(Debug)]
    pub(crate) struct FakeRegistry {
        digest: watch::Sender<Option<String>>,
        /// The architectures of every image; `None` if it is silent about them.
        architectures: watch::Sender<Option<Vec<&'static str>>>,
        asked: Mutex<Vec<String>>,
        /// The digests of the images whose platforms were asked for.
        asked_platforms: Mutex<Vec<String>>,
    }

    impl Default for FakeRegistry {
        fn default() -> Self {
            let (digest, architectures) = (watch::Sender::new(None), watch::Sender::new(Some(Vec::new())));
            Self { digest, architectures, asked: Mutex::default(), asked_platforms: Mutex::default() }
        }
    }

    /// Platforms with these architectures.
    pub(crate) fn platforms(architectures: &[&str]) -> Vec<Platform> {
        architectures.iter().filter_map(|it| Platform::new("linux", it, None)).collect()
    }

    impl FakeRegistry {
        /// From now on, every tag stands for this digest. Open questions are answered.
        pub(crate) fn holds(&self, digest: &str) {
            self.digest.send_replace(Some(digest.to_owned()));
        }

        pub(crate) fn falls_silent(&self) {
            self.digest.send_replace(None);
        }

        /// From now on, every image is for these architectures. Open questions are answered.
        pub(crate) fn is_for(&self, architectures: &[&'static str]) {
            self.architectures.send_replace(Some(architectures.to_vec()));
        }

        pub(crate) fn falls_silent_about_platforms(&self) {
            self.architectures.send_replace(None);
        }

        /// The digests of the images whose platforms were asked for so far.
        pub(crate) fn asked_platforms(&self) -> Vec<String> {
            self.asked_platforms.lock().expect("no holder panics").clone()
        }

        /// The references so far, with the user names that came with them.
        pub(crate) fn asked(&self) -> Vec<String> {
            self.asked.lock().expect("no holder panics").clone()
        }
    }

    impl DigestLookup for FakeRegistry {
        fn digest(&self, reference: ImageRef, login: Option<RegistryCredentials>) -> BoxFuture<'static, Resolved> {
            let login = login.map(|it| format!(" as {}", it.username)).unwrap_or_default();
            self.asked.lock().expect("no holder panics").push(format!("{reference}{login}"));
            let mut digest = self.digest.subscribe();
            async move {
                match digest.wait_for(Option::is_some).await {
                    Ok(digest) => Ok(digest.clone().unwrap_or_default()),
                    Err(_) => Err("the registry was dropped".into()),
                }
            }
            .boxed()
        }

        fn platforms(
            &self,
            _: ImageRef,
            digest: String,
            _: Option<RegistryCredentials>,
        ) -> BoxFuture<'static, Result<Vec<Platform>, String>> {
            self.asked_platforms.lock().expect("no holder panics").push(digest);
            let mut architectures = self.architectures.subscribe();
            async move {
                let known = architectures.wait_for(Option::is_some).await.map_err(|error| error.to_string())?;
                Ok(platforms(known.as_deref().unwrap_or_default()))
            }
            .boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_for_one_image_share_a_question_that_outlives_them_and_ends_in_time() {
        let registry = Arc::new(FakeRegistry::default());
        let resolver = Resolver::new(registry.clone());
        let (reference, view) = (ImageRef::parse("app:1").expect("legal"), Tables::default());
        let short = tokio::time::timeout(ANSWER_WAIT / 2, resolver.resolve(&reference, &view)).await;
        assert!(short.is_err(), "the request has ended");
        let begun = tokio::time::Instant::now();
        let why = resolver.resolve(&reference, &view).await.expect_err("the registry is silent");
        assert_eq!(why, "failed to resolve docker.io/library/app:1: its registry has not answered for 5s");
        assert!(begun.elapsed() < ANSWER_WAIT * 2 / 3, "it counts from the first request on");
        assert_eq!(registry.asked().len(), 1);
        registry.holds("sha256:1");
        let pin = Pin::of_digest("sha256:1".into());
        assert_eq!(resolver.resolve(&reference, &view).await, Ok(pin), "it is looked up again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_digest_that_is_known_is_the_answer_although_the_platforms_are_not() {
        let registry = Arc::new(FakeRegistry::default());
        let resolver = Resolver::new(registry.clone());
        registry.holds("sha256:1");
        registry.falls_silent_about_platforms();
        let (tag, view) = (ImageRef::parse("app:1").expect("legal"), Tables::default());
        let begun = tokio::time::Instant::now();
        assert_eq!(resolver.resolve(&tag, &view).await, Ok(Pin::of_digest("sha256:1".into())));
        assert_eq!(begun.elapsed(), ANSWER_WAIT);
        let digest = format!("sha256:{}", "2".repeat(64));
        let fixed = ImageRef::parse(&format!("app@{digest}")).expect("legal");
        assert_eq!(resolver.resolve(&fixed, &view).await, Ok(Pin::of_digest(digest.clone())));
        registry.is_for(&["arm64"]);
        assert_eq!(resolver.resolve(&fixed, &view).await, Ok(Pin { digest, platforms: platforms(&["arm64"]) }));
        assert_eq!(registry.asked(), ["docker.io/library/app:1"], "the digest needs no question");
    }
    #[tokio::test(start_paused = true)]
    async fn platforms_that_are_not_told_do_not_hold_up_the_digests_of_others() {
        let registry = Arc::new(FakeRegistry::default());
        let resolver = Resolver::new(registry.clone());
        registry.holds("sha256:1");
        registry.falls_silent_about_platforms();
        let view = Tables::default();
        let names: Vec<ImageRef> =
            (0..=AT_ONCE).map(|number| ImageRef::parse(&format!("app:{number}")).expect("legal")).collect();
        let all = || futures::future::join_all(names.iter().map(|name| resolver.resolve(name, &view)));
        assert!(tokio::time::timeout(ANSWER_WAIT / 2, all()).await.is_err(), "the platforms are waited for");
        assert_eq!(registry.asked().len(), AT_ONCE + 1, "no digest waits for the platforms of others");
        assert_eq!(all().await, vec![Ok(Pin::of_digest("sha256:1".into())); AT_ONCE + 1]);
    }
}
