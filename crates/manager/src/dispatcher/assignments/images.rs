//! The images of a node's tasks: from which nodes they can be fetched, with which grant, or from which registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use flota_api::defaults::GRANT_LIFE;
use flota_api::id::NodeId;
use flota_api::image_ref::ImageRef;
use flota_api::model::{Node, NodeState, Registry, ServiceSpec, Task};
use flota_api::object::Kind;
use flota_api::proto::dispatcher::{Grant, ImageSource, MountedImage, Peer, RegistryCredentials};
use flota_api::version::{Timestamp, Version};
use flota_identity::GrantKey;
use flota_raft_store::Tables;

/// An image that a task mounts, as the worker is told of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ToldImage {
    reference: String,
    source: Option<Arc<ImageSource>>,
    /// Version of the credentials of its registry.
    credentials: Option<Version>,
}

impl ToldImage {
    pub(super) fn to_wire(&self, view: &Tables) -> MountedImage {
        let registry = registry_for(&self.reference, self.source.as_deref(), view);
        MountedImage {
            reference: self.reference.clone(),
            source: self.source.as_deref().cloned(),
            credentials: registry.map(credentials),
        }
    }
}

/// Sources of images by digest.
pub(super) type Sources = BTreeMap<String, Arc<ImageSource>>;

/// Signs grants.
pub(in crate::dispatcher) struct Granter<'a> {
    /// The key in DER; without a valid one, there are no grants.
    pub(in crate::dispatcher) key: &'a [u8],
    pub(in crate::dispatcher) expires: Timestamp,
}

impl Granter<'_> {
    /// When grants that are made now expire. It is rounded to a quarter of their lifetime, so that sets made shortly
    /// after each other are equal.
    pub(in crate::dispatcher) fn expiry(now: Timestamp) -> Timestamp {
        let quarter = u64::try_from(GRANT_LIFE.as_millis() / 4).expect("it is an hour");
        Timestamp((now.0 / quarter + 4) * quarter)
    }

    fn sign(&self, digest: &str, node: &NodeId) -> Option<Grant> {
        Some(GrantKey::from_der(self.key)?.sign(digest, node.as_str(), self.expires))
    }
}

/// Finds the images of a node's tasks, each once.
pub(super) struct TaskImages<'a> {
    node: &'a NodeId,
    view: &'a Tables,
    granter: &'a Granter<'a>,
    /// Those that were found the last time.
    known: Sources,
    found: Sources,
}

impl<'a> TaskImages<'a> {
    /// The images of this node's tasks. A source that is as it was the last time is the same value.
    pub(super) fn new(node: &'a NodeId, view: &'a Tables, granter: &'a Granter<'a>, known: Sources) -> Self {
        Self { node, view, granter, known, found: Sources::new() }
    }

    /// Returns all that were found.
    pub(super) fn into_sources(self) -> Sources {
        self.found
    }

    /// Returns the images that the task mounts.
    pub(super) fn mounted(&mut self, task: &Task, spec: &ServiceSpec) -> Box<[ToldImage]> {
        let told = |reference: &str| {
            let pinned = task.mounted_images.iter().find(|it| it.reference == reference);
            let source = pinned.map(|it| self.source(&it.digest));
            let credentials =
                registry_for(reference, source.as_deref(), self.view).map(|registry| registry.meta.version);
            ToldImage { reference: reference.to_owned(), source, credentials }
        };
        spec.mounted_images().into_iter().map(told).collect()
    }

    /// Returns the nodes that have the image's blobs for this node's architecture, and the grant with which it may fetch
    /// them.
    pub(super) fn source(&mut self, digest: &str) -> Arc<ImageSource> {
        if let Some(source) = self.found.get(digest) {
            return Arc::clone(source);
        }
        let (view, granter) = (self.view, self.granter);
        let confirmed = view.image_by_digest(digest).into_iter().flat_map(|image| image.confirmed());
        let architecture = view.node(self.node.as_str()).map(|node| &node.description.architecture);
        let fits = |holder: &&Arc<Node>| Some(&holder.description.architecture) == architecture;
        let holders: Vec<_> = confirmed
            .filter_map(|id| view.node(id))
            .filter(|holder| holder.id != *self.node && holder.state != NodeState::Down)
            .filter(fits)
            .map(|holder| Peer { node_id: holder.id.to_string(), address: holder.address.clone() })
            .collect();
        let is_current = |grant: &Grant| grant.expires_at == granter.expires.0;
        let source = match self.known.get(digest) {
            Some(known) if known.holders == holders && known.grant.as_ref().is_none_or(is_current) => Arc::clone(known),
            _ => Arc::new(ImageSource { digest: digest.to_owned(), holders, grant: granter.sign(digest, self.node) }),
        };
        self.found.insert(digest.to_owned(), Arc::clone(&source));
        source
    }
}

/// The registry that a node asks for an image with this reference; none if it can have the image from other nodes.
pub(super) fn registry_for<'a>(
    reference: &str,
    source: Option<&ImageSource>,
    view: &'a Tables,
) -> Option<&'a Arc<Registry>> {
    let needs_registry = source.is_none_or(|source| source.holders.is_empty());
    if needs_registry { registry(reference, view) } else { None }
}

/// The credentials as a worker is told of them.
pub(super) fn credentials(registry: &Arc<Registry>) -> RegistryCredentials {
    RegistryCredentials {
        host: registry.host.clone(),
        username: registry.username.clone(),
        password: registry.password.as_text().to_owned(),
    }
}

/// The credentials of the registry that the reference names.
fn registry<'a>(reference: &str, view: &'a Tables) -> Option<&'a Arc<Registry>> {
    if view.count(Kind::Registry) == 0 {
        return None;
    }
    view.registry_by_host(&ImageRef::parse(reference).ok()?.registry)
}
