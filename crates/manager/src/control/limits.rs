//! What holds for users who are limited to prefixes of names, and how much a user may have open at once.
//!
//! Reads show them a part of the store ([`Control::seen`]), so that everything else does not exist for them. A write is
//! planned over the whole store. Therefore its reference is resolved in what the user sees first ([`Control::own`]), the
//! names that it brings are checked ([`Control::check_name`], [`Control::check_spec`]), and in the end the transaction is
//! looked at ([`Control::check_limits`]), so that a path that was forgotten here still changes nothing of others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use flota_api::Violation;
use flota_api::id::{NetworkId, UserId};
use flota_api::model::{
    Cluster, FileSystem, INGRESS, Mount, MountSource, NetworkDriver, NetworkSpec, Service, ServiceSpec, StackSpec,
    StackValue, UserRole, ValueKind, VolumeSpec,
};
use flota_api::object::{Kind, Object};
use flota_raft_store::{Action, Tables, Transaction};

use super::claims::LOOKED_UP;
use super::error::ControlError;
use super::faults::Faults;
use super::reference::{Referable, resolve};
use super::{Control, Member};

/// Largest number of streams of events and progress that one user has at a manager.
const WATCHES_BOUND: usize = 16;
/// Largest number of streams to tasks (exec, logs, forwarded connections) that one user has at a manager.
const STREAMS_BOUND: usize = 64;

/// What is counted for each user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Held {
    /// A stream of events or progress.
    Watch,
    /// A stream to tasks.
    Stream,
}

impl Held {
    fn bound(self) -> usize {
        match self {
            Self::Watch => WATCHES_BOUND,
            Self::Stream => STREAMS_BOUND,
        }
    }
}

/// The number of streams that each user has open. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenStreams(Arc<Mutex<HashMap<(UserId, Held), usize>>>);

/// The place of one stream; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct OpenStream {
    places: OpenStreams,
    of: (UserId, Held),
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.places.0.lock().expect("no holder panics");
        if let Some(count) = open.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.of);
            }
        }
    }
}

impl OpenStreams {
    fn take(&self, of: (UserId, Held)) -> Option<OpenStream> {
        let mut open = self.0.lock().expect("no holder panics");
        let count = open.entry(of.clone()).or_default();
        if *count >= of.1.bound() {
            return None;
        }
        *count += 1;
        drop(open);
        Some(OpenStream { places: self.clone(), of })
    }
}

/// Whether a name is one that the caller sees, for an object of the store.
enum Standing {
    /// The object belongs to the caller.
    Own,
    /// It has no name of its own, or changing it is part of changes to others.
    Shared,
    /// It belongs to somebody else.
    Foreign,
}

impl<M: Member> Control<M> {
    /// Takes a place for a stream, which the stream holds as long as it is open. Only users are counted.
    pub(crate) fn place(&self, held: Held) -> Result<Option<OpenStream>, ControlError> {
        let Some(user) = self.caller.user() else { return Ok(None) };
        let too_many = || ControlError::TooManyOfUser { user: user.name.clone(), most: held.bound() };
        self.places.take((user.id.clone(), held)).map(Some).ok_or_else(too_many)
    }

    /// Refuses a caller with a lower role.
    pub(crate) fn needs(&self, role: UserRole) -> Result<(), ControlError> {
        if self.caller.is(role) { Ok(()) } else { Err(ControlError::RoleNeeded(role)) }
    }

    /// Returns a reference to the object that `reference` identifies among those that the caller sees.
    ///
    /// # Errors
    /// The caller does not see it. The error is that for one that does not exist.
    pub(super) async fn own<T: Referable>(&self, reference: &str) -> Result<String, ControlError> {
        if !self.caller.is_limited() {
            return Ok(reference.to_owned());
        }
        let whole = self.proven_whole_view().await?;
        self.own_in::<T>(&whole, &self.seen(Arc::clone(&whole)), reference)
    }

    /// As [`Self::own`], for a secret or config.
    pub(super) async fn own_value(&self, kind: ValueKind, reference: &str) -> Result<String, ControlError> {
        match kind {
            ValueKind::Secret => self.own::<flota_api::model::StoredSecret>(reference).await,
            ValueKind::Config => self.own::<flota_api::model::StoredConfig>(reference).await,
        }
    }

    fn own_in<T: Referable>(&self, whole: &Tables, seen: &Tables, reference: &str) -> Result<String, ControlError> {
        match resolve::<T>(seen, reference) {
            Ok(object) => Ok(object.id().to_string()),
            // One that is nowhere may have been removed by an earlier try of this request.
            Err(ControlError::NotFound { .. })
                if matches!(resolve::<T>(whole, reference), Err(ControlError::NotFound { .. })) =>
            {
                Ok(reference.to_owned())
            }
            Err(error) => Err(error),
        }
    }

    /// Checks the name of what the caller creates.
    pub(super) fn check_name(&self, field: &str, name: &str) -> Result<(), ControlError> {
        if self.caller.sees(name) { Ok(()) } else { Err(ControlError::Invalid(vec![self.outside(field, name)])) }
    }

    fn outside(&self, field: &str, name: &str) -> Violation {
        let why = format!("`{name}` begins with none of your prefixes: {}", self.caller.prefixes());
        Violation { field: field.into(), why }
    }

    /// Checks what a network needs of nodes.
    pub(super) fn check_network_spec(&self, spec: &NetworkSpec) -> Result<(), ControlError> {
        self.check_name("name", &spec.name)?;
        let is_own = matches!(spec.driver, NetworkDriver::Overlay | NetworkDriver::Bridge);
        if self.caller.is_limited() && !is_own {
            return Err(ControlError::invalid("driver", "a user who is limited to prefixes has overlay and bridge"));
        }
        // Whether a subnet is free says which ones others have.
        if self.caller.is_limited() && !spec.subnets.is_empty() {
            return Err(ControlError::invalid(
                "subnets",
                "the cluster chooses them for a user who is limited to prefixes",
            ));
        }
        Ok(())
    }

    /// Returns what a spec names that the caller does not see, and what it asks for by which tasks reach what belongs to
    /// others or to their node.
    pub(super) async fn beyond_limits(&self, spec: &ServiceSpec) -> Result<Faults, ControlError> {
        let mut faults = Faults::default();
        if !self.caller.is_limited() {
            return Ok(faults);
        }
        let whole = self.proven_whole_view().await?;
        let seen = self.seen(Arc::clone(&whole));
        for (index, it) in spec.networks.iter().enumerate().take(LOOKED_UP) {
            let own = self.own_in::<flota_api::model::Network>(&whole, &seen, it.network.as_str());
            faults.note(format!("networks[{index}]"), own);
        }
        faults.extend(self.violations(spec));
        Ok(faults)
    }

    /// Returns what a spec names that the caller does not see, and what it asks for that a limited caller may not have.
    fn violations(&self, spec: &ServiceSpec) -> Vec<Violation> {
        let mut found = Vec::new();
        let values = spec.values().map(|(kind, it)| (format!("{kind}s"), it.source.as_str()));
        let volumes = spec.volumes().map(|name| ("mounts".to_owned(), name));
        let depends = spec.depends_on.iter().map(|it| ("depends_on".to_owned(), it.service.as_str()));
        let near = spec.affinity.iter().map(|name| ("affinity".to_owned(), name.as_str()));
        let far = spec.anti_affinity.iter().map(|name| ("anti_affinity".to_owned(), name.as_str()));
        let own = [("name".to_owned(), spec.name.as_str())];
        for (field, name) in own.into_iter().chain(values).chain(volumes).chain(depends).chain(near).chain(far) {
            if !self.caller.sees(name) {
                found.push(self.outside(&field, name));
            }
        }
        found.extend(powers(spec));
        found
    }

    /// As [`Self::beyond_limits`], for everything that a stack file names.
    pub(super) async fn stack_beyond_limits(
        &self,
        spec: &StackSpec,
        values: &[StackValue],
    ) -> Result<Faults, ControlError> {
        let mut faults = Faults::default();
        if !self.caller.is_limited() {
            return Ok(faults);
        }
        faults.note("name", self.check_name("name", &spec.name));
        for it in &spec.networks {
            let field = format!("networks.{}", it.name);
            faults.note(field.clone(), self.check_network_spec(it).map_err(|error| error.within(&field)));
        }
        for it in &spec.volumes {
            let field = format!("volumes.{}", it.name);
            faults.note(field.clone(), check_power(it).map_err(|error| error.within(&field)));
        }
        let volumes = spec.volumes.iter().map(|it| ("volumes", &it.name));
        for (field, name) in volumes.chain(values.iter().map(|it| ("values", &it.spec.name))) {
            faults.note(field, self.check_name(field, name));
        }
        for service in &spec.services {
            let field = format!("services.{}", service.name);
            let within = self.beyond_limits(service).await?.refuse().map_err(|error| error.within(&field));
            faults.note(field, within);
        }
        Ok(faults)
    }

    /// Checks that a transaction changes only what belongs to the caller, who may be limited.
    pub(super) fn check_limits(&self, view: &Tables, transaction: &Transaction) -> Result<(), ControlError> {
        if !self.caller.is_limited() {
            return Ok(());
        }
        let standing = |action: &Action| match action {
            Action::Create(object) | Action::Update(object) => self.standing(view, object),
            Action::Remove(kind, id) => view.object(*kind, *id).map_or(Standing::Own, |it| self.standing(view, it)),
            Action::Status(..) => Standing::Foreign,
        };
        let is_removal = |action: &Action| matches!(action, Action::Remove(kind, _) if *kind != Kind::ValueData);
        let may = |action: &Action| match standing(action) {
            Standing::Own => true,
            Standing::Shared => !is_removal(action),
            Standing::Foreign => false,
        };
        if !transaction.actions.iter().all(may) {
            return Err(ControlError::OutsideOfPrefixes);
        }
        transaction.actions.iter().try_for_each(|action| match action {
            Action::Create(Object::Service(it)) | Action::Update(Object::Service(it)) => {
                self.check_written(view, transaction, it)
            }
            // One that somebody with more rights has made under its prefix is used as it is.
            Action::Create(Object::Volume(it)) | Action::Update(Object::Volume(it))
                if view.volume(&it.id).is_none_or(|before| before.spec != it.spec) =>
            {
                check_power(&it.spec)
            }
            _ => Ok(()),
        })
    }

    /// Checks what a volume needs of nodes.
    pub(super) fn check_volume_spec(&self, spec: &VolumeSpec) -> Result<(), ControlError> {
        self.check_name("name", &spec.name)?;
        if self.caller.is_limited() { check_power(spec) } else { Ok(()) }
    }

    /// Checks the spec that a service gets, wherever it comes from: a request, or an earlier spec of the service, which
    /// somebody with more rights may have set.
    fn check_written(&self, view: &Tables, transaction: &Transaction, service: &Service) -> Result<(), ControlError> {
        if view.service(&service.id).is_some_and(|before| before.spec == service.spec) {
            return Ok(());
        }
        let found = self.violations(&service.spec);
        if !found.is_empty() {
            return Err(ControlError::Invalid(found));
        }
        let is_created = |id: &NetworkId| {
            let is = |action: &Action| matches!(action, Action::Create(Object::Network(it)) if it.id == *id);
            transaction.actions.iter().any(is)
        };
        let is_own = |id: &NetworkId| {
            let network = view.network(id.as_str());
            network.is_some_and(|it| self.caller.sees(&it.spec.name)) || is_created(id)
        };
        if service.spec.networks.iter().all(|it| is_own(&it.network)) {
            Ok(())
        } else {
            Err(ControlError::OutsideOfPrefixes)
        }
    }

    fn standing(&self, view: &Tables, object: &Object) -> Standing {
        let of = |name: &str| if self.caller.sees(name) { Standing::Own } else { Standing::Foreign };
        match object {
            Object::Service(it) => of(&it.spec.name),
            Object::Task(it) => view.spec_of(it).map_or(Standing::Foreign, |spec| of(&spec.name)),
            Object::Stack(it) => of(&it.spec.name),
            // Services that publish ports change it, so that two of them do not get the same port.
            Object::Network(it) if it.spec.name == INGRESS => Standing::Shared,
            Object::Network(it) => of(&it.spec.name),
            Object::Volume(it) => of(&it.spec.name),
            Object::StoredSecret(it) => of(&it.spec.name),
            Object::StoredConfig(it) => of(&it.spec.name),
            // The secret or config of the bytes, and the service of the image, are in the same transaction.
            Object::ValueData(_) | Object::Image(_) => Standing::Shared,
            // A user renews its own certificate, and changes nothing else of itself.
            Object::User(it) if self.caller.user().is_some_and(|own| own.may_do_the_same(it)) => Standing::Shared,
            // What the object needs of managers raises the level, whoever makes it.
            Object::Cluster(it) if view.cluster().is_some_and(|now| is_raised(now, it)) => Standing::Shared,
            Object::Cluster(_) | Object::Node(_) | Object::Registry(_) | Object::User(_) | Object::Audit(_) => {
                Standing::Foreign
            }
        }
    }

    /// Returns an error as the caller may read it: without the names of what it does not see.
    pub(super) fn shown(&self, error: ControlError) -> ControlError {
        if !self.caller.is_limited() {
            return error;
        }
        let shown = |users: Vec<String>| {
            let count = users.len();
            let mut seen: Vec<_> = users.into_iter().filter(|name| self.caller.sees(name)).collect();
            if seen.len() < count {
                seen.push("services of others".into());
            }
            seen
        };
        match error {
            ControlError::NetworkInUse { network, users } => {
                ControlError::NetworkInUse { network, users: shown(users) }
            }
            ControlError::VolumeInUse { volume, users } => ControlError::VolumeInUse { volume, users: shown(users) },
            ControlError::ValueInUse { kind, name, users } => {
                ControlError::ValueInUse { kind, name, users: shown(users) }
            }
            other => other,
        }
    }
}

/// Whether the one differs from the other by a higher feature level alone.
fn is_raised(before: &Cluster, after: &Cluster) -> bool {
    let level = after.feature_level;
    level > before.feature_level && Cluster { feature_level: level, ..before.clone() } == *after
}

/// Why a limited user may not ask for something.
const POWER: &str = "a user who is limited to prefixes may not ask for it: no privileges, capabilities, devices, bind mounts, \
                     file systems, other runtimes, or precedence over others";

/// Refuses a volume by which tasks reach what belongs to others.
fn check_power(spec: &VolumeSpec) -> Result<(), ControlError> {
    match spec.file_system.as_ref().is_some_and(FileSystem::needs_permission) {
        true => Err(ControlError::invalid("options", POWER)),
        false => Ok(()),
    }
}

/// Returns what a spec asks for by which its tasks reach more than their own container, or take what others have.
fn powers(spec: &ServiceSpec) -> impl Iterator<Item = Violation> {
    let is_of_node = |mount: &Mount| match &mount.source {
        MountSource::Bind(_) => true,
        MountSource::Volume(it) => it.file_system.as_ref().is_some_and(FileSystem::needs_permission),
        MountSource::Tmpfs(_) | MountSource::Image { .. } => false,
    };
    let binds = spec.mounts.iter().any(is_of_node);
    let rows = [
        ("privileged", spec.privileged),
        ("cap_add", !spec.cap_add.is_empty()),
        ("devices", !spec.devices.is_empty() || !spec.cdi_devices.is_empty()),
        ("generic_resources", !spec.generic_resources.is_empty()),
        ("runtime", spec.runtime.is_some()),
        ("no_new_privileges", spec.no_new_privileges == Some(false)),
        ("mounts", binds),
        ("priority", spec.priority > 0),
        ("oom_score_adj", spec.oom_score_adj.is_some_and(|it| it < 0)),
    ];
    rows.into_iter().filter(|(_, asked)| *asked).map(|(field, _)| Violation { field: field.into(), why: POWER.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{BindMount, GenericResource, VolumeMount};

    #[test]
    fn a_user_has_so_many_streams_and_another_user_as_many() {
        let places = OpenStreams::default();
        let take = |id: &str, held| places.take((id.into(), held));
        let mut held: Vec<_> = (0..WATCHES_BOUND).map(|_| take("a", Held::Watch).expect("there is room")).collect();
        assert!(take("a", Held::Watch).is_none());
        assert!(take("b", Held::Watch).is_some() && take("a", Held::Stream).is_some());
        held.pop();
        assert!(take("a", Held::Watch).is_some());
        drop(held);
        assert!(
            places.0.lock().expect("no holder panics").is_empty(),
            "nothing is kept of those that have nothing open"
        );
    }

    #[test]
    fn what_gives_power_over_a_node_or_over_others_is_named() {
        let bind = MountSource::Bind(BindMount { source: "/".into(), ..BindMount::default() });
        let spec = ServiceSpec {
            privileged: true,
            cap_add: vec!["SYS_ADMIN".into()],
            devices: vec![flota_api::model::DeviceMapping {
                source: "/dev/kvm".into(),
                target: "/dev/kvm".into(),
                permissions: "rwm".into(),
            }],
            mounts: vec![Mount { target: "/host".into(), read_only: true, source: bind }],
            priority: 1,
            oom_score_adj: Some(-1),
            generic_resources: vec![GenericResource { kind: "gpu".into(), count: 1 }],
            runtime: Some("runsc".into()),
            no_new_privileges: Some(false),
            ..ServiceSpec::default()
        };
        let fields: Vec<_> = powers(&spec).map(|it| it.field).collect();
        let expected = [
            "privileged",
            "cap_add",
            "devices",
            "generic_resources",
            "runtime",
            "no_new_privileges",
            "mounts",
            "priority",
            "oom_score_adj",
        ];
        assert_eq!(fields, expected);
        assert_eq!(powers(&ServiceSpec::default()).count(), 0);
        let volume = |kind: &str, device: &str| {
            let file_system = FileSystem::of(kind, device, "").ok();
            let source = VolumeMount { name: Some("a-data".into()), file_system, ..VolumeMount::default() };
            let mount = Mount { target: "/a".into(), read_only: true, source: MountSource::Volume(source) };
            powers(&ServiceSpec { mounts: vec![mount], ..ServiceSpec::default() }).count()
        };
        assert_eq!([volume("ext4", "/dev/sdb1"), volume("bind", "/srv"), volume("tmpfs", "")], [1, 1, 0]);
        let before = Cluster { feature_level: 8, ..Cluster::default() };
        let raised = |level, autolock| Cluster { feature_level: level, autolock, ..before.clone() };
        let cases = [raised(9, false), raised(9, true), raised(7, false), raised(8, false)];
        assert_eq!(cases.map(|after| is_raised(&before, &after)), [true, false, false, false]);
    }
}
