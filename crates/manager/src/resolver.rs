//! Finds out for which digest an image reference stands, by asking its registry with the cluster's credentials. The
//! Control API does so once for a service, and all its tasks run that image.
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
use flota_api::model::RegistryCredentials;
use flota_raft_store::Tables;

/// How long a registry has to answer, so that a user waits little for one that does not.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Largest number of questions at once; a stack may have many images.
const AT_ONCE: usize = 16;

/// The digest for which a reference stands, or why it is not known, as a whole sentence.
pub type Resolved = Result<String, String>;

/// Looks up digests at registries.
pub trait DigestLookup: fmt::Debug + Send + Sync {
    /// Returns the digest of the manifest or index for which the reference stands at its registry.
    fn digest(&self, reference: ImageRef, login: Option<RegistryCredentials>) -> BoxFuture<'static, Resolved>;
}

/// Resolves references. Clones share the questions that are open.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    registries: Arc<dyn DigestLookup>,
    open: Arc<Mutex<BTreeMap<String, Shared<BoxFuture<'static, Resolved>>>>>,
    turns: Arc<Semaphore>,
}

impl Resolver {
    pub(crate) fn new(registries: Arc<dyn DigestLookup>) -> Self {
        Self { registries, open: Arc::default(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Asks the reference's registry, with the credentials that the cluster has for it.
    pub(crate) async fn resolve(&self, reference: &ImageRef, view: &Tables) -> Resolved {
        let question = {
            let mut open = self.open.lock().expect("no holder panics");
            let asked = open.entry(reference.to_string());
            asked.or_insert_with(|| self.start_lookup(reference.clone(), credentials(reference, view))).clone()
        };
        question.await
    }

    fn start_lookup(
        &self,
        reference: ImageRef,
        login: Option<RegistryCredentials>,
    ) -> Shared<BoxFuture<'static, Resolved>> {
        let (resolver, name) = (self.clone(), reference.to_string());
        let asked = tokio::spawn(async move {
            let answer = async {
                let _turn = resolver.turns.acquire().await;
                resolver.registries.digest(reference, login).await
            };
            let late = |_| Err(format!("failed to resolve {name}: its registry has not answered for {ANSWER_WAIT:?}"));
            let answer = tokio::time::timeout(ANSWER_WAIT, answer).await.unwrap_or_else(late);
            resolver.open.lock().expect("no holder panics").remove(&name);
            answer
        });
        async move { asked.await.unwrap_or_else(|error| Err(error.to_string())) }.boxed().shared()
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
        asked: Mutex<Vec<String>>,
    }

    impl Default for FakeRegistry {
        fn default() -> Self {
            Self { digest: watch::Sender::new(None), asked: Mutex::default() }
        }
    }

    impl FakeRegistry {
        /// From now on, every tag stands for this digest. Open questions are answered.
        pub(crate) fn holds(&self, digest: &str) {
            self.digest.send_replace(Some(digest.to_owned()));
        }

        pub(crate) fn falls_silent(&self) {
            self.digest.send_replace(None);
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
        assert_eq!(resolver.resolve(&reference, &view).await, Ok("sha256:1".into()), "it is looked up again");
    }
}
