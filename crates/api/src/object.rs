//! The kinds of object that the store holds, declared once.
//!
//! `kinds!` generates [`Kind`], [`Object`] and each kind's [`StoreObject`]. The store has a table for each of
//! [`Kind::ALL`], and conversion to the wire matches on every kind. To add a kind, add a row to the declaration at the
//! end of this file and fix what the compiler reports.

use std::fmt;
use std::sync::Arc;

use crate::id::Id;
use crate::model::{
    Audit, Cluster, Image, Network, Node, Registry, Service, Stack, StoredConfig, StoredSecret, Task, User, ValueData,
    ValueKind, Volume,
};
use crate::version::Meta;

/// An object that the store holds.
pub trait StoreObject: Clone + Send + Sync + 'static {
    /// Kind of the object, which also names its table.
    const KIND: Kind;
    /// Returns the identifier of the object.
    fn id(&self) -> Id;
    /// Returns the names of the object, each of which is unique among objects of its kind.
    fn names(&self) -> Vec<&str>;
    /// Returns its times and version.
    fn meta(&self) -> &Meta;
    /// Returns its times and version, to be set when a change is applied.
    fn meta_mut(&mut self) -> &mut Meta;
    /// Wraps the object in an [`Object`].
    fn into_object(self) -> Object;
    /// Returns the object inside an [`Object`]; `None` if that is of another kind.
    fn from_object(object: &Object) -> Option<&Arc<Self>>;
}

impl From<ValueKind> for Kind {
    fn from(kind: ValueKind) -> Self {
        match kind {
            ValueKind::Secret => Self::StoredSecret,
            ValueKind::Config => Self::StoredConfig,
        }
    }
}

/// Generates everything that exists once for each kind. A row consists of the kind, its name for people, and its
/// unique names.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $word:literal $names:expr;)*) => {
        /// The kinds of object, in the order of their tables.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $kind),* }

        impl Kind {
            /// Every kind, in order.
            pub const ALL: [Self; [$(Self::$kind),*].len()] = [$(Self::$kind),*];

            /// Returns its name for people.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $word),* }
            }
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        /// One object of any kind. It is shared, because views, events and tables hold it at the same time.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object { $($(#[$doc])* $kind(Arc<$kind>)),* }

        impl Object {
            /// Returns its kind, which also names its table.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),* }
            }

            /// Returns the identifier of the object.
            pub fn id(&self) -> Id {
                match self { $(Self::$kind(object) => object.id()),* }
            }

            /// Returns the names of the object, each of which is unique among objects of its kind.
            pub fn names(&self) -> Vec<&str> {
                match self { $(Self::$kind(object) => object.names()),* }
            }

            /// Returns its times and version.
            pub fn meta(&self) -> &Meta {
                match self { $(Self::$kind(object) => object.meta()),* }
            }

            /// Returns its times and version, to be set when a change is applied. Copies the object if it is shared.
            pub fn meta_mut(&mut self) -> &mut Meta {
                match self { $(Self::$kind(object) => Arc::make_mut(object).meta_mut()),* }
            }
        }

        $(impl StoreObject for $kind {
            const KIND: Kind = Kind::$kind;
            fn id(&self) -> Id { (&self.id).into() }
            fn names(&self) -> Vec<&str> {
                let names: fn(&Self) -> Vec<&str> = $names;
                names(self)
            }
            fn meta(&self) -> &Meta { &self.meta }
            fn meta_mut(&mut self) -> &mut Meta { &mut self.meta }
            fn into_object(self) -> Object { Object::$kind(Arc::new(self)) }
            fn from_object(object: &Object) -> Option<&Arc<Self>> {
                if let Object::$kind(object) = object { Some(object) } else { None }
            }
        })*
    };
}

kinds! {
    /// The one object that describes the cluster.
    Cluster "cluster" |_| vec!["cluster"];
    /// A machine. It has no unique name, because two machines may have the same hostname.
    Node "node" |_| Vec::new();
    /// A service.
    Service "service" |service| vec![&service.spec.name];
    /// A task.
    Task "task" |_| Vec::new();
    /// An image; one whose names other images have taken has no name.
    Image "image" |image| image.references.iter().map(String::as_str).collect();
    /// A stack.
    Stack "stack" |stack| vec![&stack.spec.name];
    /// Credentials for one registry.
    Registry "registry" |registry| vec![&registry.host];
    /// A network.
    Network "network" |network| vec![&network.spec.name];
    /// A volume; one that a user has removed has no name.
    Volume "volume" |volume| if volume.is_removed { Vec::new() } else { vec![&volume.spec.name] };
    /// A secret, without its bytes.
    StoredSecret "secret" |secret| vec![&secret.spec.name];
    /// A config, without its bytes.
    StoredConfig "config" |config| vec![&config.spec.name];
    /// The bytes of one version of a secret or config.
    ValueData "value" |_| Vec::new();
    /// A user.
    User "user" |user| vec![&user.name];
    /// The record of a change, and of who asked for it.
    Audit "audit" |_| Vec::new();
}
