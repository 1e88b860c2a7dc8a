//! The registries of a simulation: for which digest each name stands, and what managers have asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use flota_api::image_ref::ImageRef;
use flota_api::model::{Platform, RegistryCredentials};
use flota_manager::{DigestLookup, Resolved};

/// All registries. None of them answers for a name that a test does not push. Clones are the same registries.
#[derive(Clone, Debug, Default)]
pub struct FakeRegistry(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    digests: BTreeMap<String, String>,
    /// How long an answer takes.
    delay: Duration,
    lookups: Vec<Lookup>,
}

/// A lookup that a manager has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The whole reference.
    pub reference: String,
    /// The user name of the credentials that came with it.
    pub username: Option<String>,
}

impl FakeRegistry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// From now on, the whole reference stands for this digest.
    pub fn push(&self, reference: &str, digest: &str) {
        self.state().digests.insert(reference.to_owned(), digest.to_owned());
    }

    /// From now on, an answer takes this long.
    pub fn answer_after(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Returns the lookups so far.
    pub fn lookups(&self) -> Vec<Lookup> {
        self.state().lookups.clone()
    }
}

impl DigestLookup for FakeRegistry {
    fn digest(&self, reference: ImageRef, login: Option<RegistryCredentials>) -> BoxFuture<'static, Resolved> {
        let mut state = self.state();
        let (reference, username) = (reference.to_string(), login.map(|it| it.username));
        let unknown = || format!("failed to resolve {reference}: there is no such image");
        let answer = state.digests.get(&reference).cloned().ok_or_else(unknown);
        state.lookups.push(Lookup { reference, username });
        let delay = state.delay;
        async move {
            tokio::time::sleep(delay).await;
            answer
        }
        .boxed()
    }

    /// The platforms of no image are known.
    fn platforms(
        &self,
        _: ImageRef,
        _: String,
        _: Option<RegistryCredentials>,
    ) -> BoxFuture<'static, Result<Vec<Platform>, String>> {
        async { Ok(Vec::new()) }.boxed()
    }
}
