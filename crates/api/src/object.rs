//! What every stored object has in common, and the sum over all kinds.

use std::fmt;
use std::sync::Arc;

use crate::model::{Cluster, Image, Node, Registry, Service, Stack, Task};
use crate::version::Meta;

/// The kinds of object, in the order of their tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The one cluster object.
    Cluster,
    /// Machines.
    Node,
    /// Services.
    Service,
    /// Tasks.
    Task,
    /// Images.
    Image,
    /// Stacks.
    Stack,
    /// Credentials of registries.
    Registry,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Image => "image",
            Self::Stack => "stack",
            Self::Registry => "registry",
        })
    }
}

/// Anything that the store holds.
pub trait StoreObject: Clone + Send + Sync + 'static {
    /// Its table.
    const KIND: Kind;
    /// Its identifier's characters.
    fn id(&self) -> &str;
    /// The name that is unique in its table; `None` where its kind (or this one) has none.
    fn name(&self) -> Option<&str>;
    /// Its times and version.
    fn meta(&self) -> &Meta;
    /// The same, to be set when a change is applied.
    fn meta_mut(&mut self) -> &mut Meta;
    /// As one of the sum.
    fn into_object(self) -> Object;
}

/// One object of any kind. Shared, because views, events and tables hold it at once.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Object {
    Cluster(Arc<Cluster>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Task(Arc<Task>),
    Image(Arc<Image>),
    Stack(Arc<Stack>),
    Registry(Arc<Registry>),
}

macro_rules! each_kind {
    ($self:ident, $object:ident => $result:expr) => {
        match $self {
            Object::Cluster($object) => $result,
            Object::Node($object) => $result,
            Object::Service($object) => $result,
            Object::Task($object) => $result,
            Object::Image($object) => $result,
            Object::Stack($object) => $result,
            Object::Registry($object) => $result,
        }
    };
}

impl Object {
    /// Its table.
    pub fn kind(&self) -> Kind {
        fn kind<T: StoreObject>(_: &T) -> Kind {
            T::KIND
        }
        each_kind!(self, object => kind(object.as_ref()))
    }

    /// Its identifier's characters.
    pub fn id(&self) -> &str {
        each_kind!(self, object => object.id())
    }

    /// Its times and version.
    pub fn meta(&self) -> &Meta {
        each_kind!(self, object => object.meta())
    }
}

macro_rules! store_objects {
    ($($kind:ident($object:ident) name $name:expr;)*) => { $(
        impl StoreObject for $kind {
            const KIND: Kind = Kind::$kind;
            fn id(&self) -> &str { self.id.as_str() }
            fn name(&self) -> Option<&str> { let $object = self; $name }
            fn meta(&self) -> &Meta { &self.meta }
            fn meta_mut(&mut self) -> &mut Meta { &mut self.meta }
            fn into_object(self) -> Object { Object::$kind(Arc::new(self)) }
        }
    )* };
}

store_objects! {
    Cluster(_cluster) name Some("cluster");
    // Two machines may have one hostname: it is no unique name.
    Node(_node) name None;
    Service(service) name Some(&service.spec.name);
    Task(_task) name None;
    Image(image) name (!image.reference.is_empty()).then_some(image.reference.as_str());
    Stack(stack) name Some(&stack.spec.name);
    Registry(registry) name Some(&registry.host);
}
