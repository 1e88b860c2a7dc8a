//! Volumes of a stack, and what its services mount.

use std::collections::BTreeMap;

use flota_api::model::{FileSystem, Mount, MountSource, ServiceSpec, VolumeMount, VolumeSpec};

use super::labels;
use crate::fields::Fields;
use crate::mount::{self, MountFields};
use crate::tree::{Fault, Node, Value};

/// The volumes that a file declares.
pub(super) struct DeclaredVolumes<'a> {
    /// The full name of each, by its key.
    names: BTreeMap<String, String>,
    /// Those that belong to the stack, by their full names.
    specs: BTreeMap<String, VolumeSpec>,
    /// Where each volume is mounted: its full name, and whether by a global service.
    uses: Vec<(String, bool, &'a Node)>,
}

impl<'a> DeclaredVolumes<'a> {
    /// Reads the top-level key `volumes`.
    pub(super) fn read(stack: &str, node: Option<&Node>) -> Result<Self, Fault> {
        let mut declared = Self { names: BTreeMap::new(), specs: BTreeMap::new(), uses: Vec::new() };
        for (key, node) in node.map(Node::map).transpose()?.into_iter().flatten() {
            let (name, spec) = volume(key, format!("{stack}_{key}"), node)?;
            declared.names.insert(key.clone(), name);
            declared.specs.extend(spec.map(|spec| (spec.name.clone(), spec)));
        }
        Ok(declared)
    }

    /// Reads what a service mounts: its keys `volumes` and `tmpfs`. Its mode must be known.
    pub(super) fn service(&mut self, keys: &mut ServiceMounts<'a>, spec: &mut ServiceSpec) -> Result<(), Fault> {
        for node in keys.volumes.map(Node::list).transpose()?.unwrap_or_default() {
            let fields = match &node.value {
                Value::Map(_) => long(node)?,
                _ => node.parsed(mount::short)?,
            };
            spec.mounts.push(self.mount(fields, node, spec.mode.replicas().is_none())?);
        }
        let tmpfs = match keys.tmpfs {
            Some(node) if matches!(node.value, Value::List(_)) => {
                node.list()?.iter().map(|node| node.parsed(mount::tmpfs)).collect::<Result<Vec<_>, _>>()?
            }
            Some(node) => vec![node.parsed(mount::tmpfs)?],
            None => Vec::new(),
        };
        spec.mounts.extend(tmpfs);
        Ok(())
    }

    fn mount(&mut self, fields: MountFields, node: &'a Node, is_global: bool) -> Result<Mount, Fault> {
        let mut mount = fields.finish().map_err(|why| node.fault(why))?;
        if let MountSource::Volume(VolumeMount { name: Some(name), per_slot, .. }) = &mut mount.source {
            let full = self.names.get(name).ok_or_else(|| {
                node.fault(format!("the volume `{name}` is not declared under the file's key `volumes`"))
            })?;
            name.clone_from(full);
            *per_slot = self.specs.get(full).is_some_and(|spec| spec.per_slot);
            self.uses.push((full.clone(), is_global, node));
        }
        Ok(mount)
    }

    /// Returns the volumes of the stack. One that only global services use has data for each of their tasks.
    pub(super) fn finish(mut self) -> Result<Vec<VolumeSpec>, Fault> {
        let mut is_global = BTreeMap::new();
        for (name, global, node) in &self.uses {
            let Some(spec) = self.specs.get(name).filter(|spec| !spec.per_slot && spec.file_system.is_none()) else {
                continue;
            };
            if *is_global.entry(name).or_insert(*global) != *global {
                let why = "is used by global services, which have data of their own on each node, and by others: give \
                           it `x-flota-per-slot: true`, or use two volumes";
                return Err(node.fault(format!("the volume `{}` {why}", spec.name)));
            }
        }
        for (name, _) in is_global.into_iter().filter(|(_, is_global)| *is_global) {
            self.specs.entry(name.clone()).and_modify(|spec| spec.per_slot = true);
        }
        Ok(self.specs.into_values().collect())
    }
}

/// The keys of a service that are read once its mode is known.
pub(super) struct ServiceMounts<'a> {
    volumes: Option<&'a Node>,
    tmpfs: Option<&'a Node>,
}

impl<'a> ServiceMounts<'a> {
    pub(super) fn of(keys: &mut Fields<'a>) -> Self {
        Self { volumes: keys.get("volumes"), tmpfs: keys.get("tmpfs") }
    }
}

/// Reads a volume. Returns its full name, and its spec unless it is an external one.
fn volume(key: &str, full: String, node: &Node) -> Result<(String, Option<VolumeSpec>), Fault> {
    if matches!(node.value, Value::Null) {
        return Ok((full.clone(), Some(VolumeSpec { name: full, ..VolumeSpec::default() })));
    }
    let mut keys = node.fields()?;
    let name = keys.text("name")?;
    if keys.read("external", Node::flag)?.unwrap_or_default() {
        keys.finish()?;
        return Ok((name.unwrap_or_else(|| key.to_owned()), None));
    }
    if let Some(driver) = keys.get("driver").filter(|it| it.text().is_ok_and(|it| it != "local")) {
        return Err(driver.fault("the driver of a volume is local; there is no other"));
    }
    let spec = VolumeSpec {
        name: name.unwrap_or(full),
        labels: keys.read("labels", labels)?.unwrap_or_default(),
        per_slot: keys.read("x-flota-per-slot", Node::flag)?.unwrap_or_default(),
        file_system: keys.read("driver_opts", options)?.flatten(),
    };
    keys.finish()?;
    Ok((spec.name.clone(), Some(spec)))
}

/// Reads the options of a volume.
fn options(node: &Node) -> Result<Option<FileSystem>, Fault> {
    let option = |(key, value): (&String, &Node)| Ok((key.clone(), value.text()?));
    let options = node.map()?.iter().map(option).collect::<Result<Vec<_>, Fault>>()?;
    mount::file_system(&options).map_err(|why| node.fault(why))
}

/// Reads the long form of a mount.
fn long(node: &Node) -> Result<MountFields, Fault> {
    let mut keys = node.fields()?;
    let mut fields = MountFields {
        kind: Some(keys.required("type")?.text()?),
        source: keys.text("source")?,
        target: keys.text("target")?,
        read_only: keys.read("read_only", Node::flag)?,
        ..MountFields::default()
    };
    keys.read("consistency", |it| it.parsed(mount::consistency))?;
    if let Some(node) = keys.get("bind") {
        let mut keys = node.fields()?;
        fields.propagation = keys.text("propagation")?;
        fields.non_recursive = keys.read("recursive", |it| it.parsed(mount::non_recursive))?;
        fields.create_source = keys.read("create_host_path", Node::flag)?;
        keys.finish()?;
    }
    if let Some(node) = keys.get("volume") {
        let mut keys = node.fields()?;
        fields.no_copy = keys.read("nocopy", Node::flag)?;
        fields.subpath = keys.text("subpath")?;
        let given = keys.read("labels", labels)?.unwrap_or_default();
        fields.labels = given.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        keys.finish()?;
    }
    if let Some(node) = keys.get("tmpfs") {
        let mut keys = node.fields()?;
        (fields.size, fields.mode) = (keys.text("size")?, keys.text("mode")?);
        keys.finish()?;
    }
    if let Some(node) = keys.get("image") {
        let mut keys = node.fields()?;
        fields.image_subpath = keys.text("subpath")?;
        keys.finish()?;
    }
    keys.finish()?;
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use flota_api::model::{MountSource, Propagation, StackSpec, TmpfsMount, VolumeMount};

    use crate::load;

    fn parsed(services: &str, volumes: &str) -> Result<StackSpec, String> {
        let text = format!("services:\n{services}\nvolumes:\n{volumes}\n");
        load::parse(&text, "shop", &|_| None).map_err(|fault| format!("{}: {}", fault.key, fault.why))
    }

    fn service(name: &str, keys: &str) -> String {
        format!("  {name}: {{ image: a, {keys} }}\n")
    }

    #[test]
    fn volumes_have_the_prefix_of_the_stack_unless_they_are_external_or_named() {
        let mounts = "volumes: [db:/a, ext:/b:ro, named:/c, /d, /srv:/e], tmpfs: /f:size=1k";
        let declared = "  db: { labels: { a: b } }\n  ext: { external: true }\n  named: { name: other }\n  unused:";
        let stack = parsed(&service("web", mounts), declared).expect("a good file");
        let names: Vec<_> = stack.volumes.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["other", "shop_db", "shop_unused"]);
        let web = &stack.services[0];
        assert_eq!(web.volumes().collect::<Vec<_>>(), ["shop_db", "ext", "other"]);
        assert_eq!(web.mounts.iter().map(|it| it.target.as_str()).collect::<String>(), "/a/b/c/d/e/f");
        assert!(web.mounts[1].read_only && web.mounts[4].bind_source() == Some("/srv"));
    }

    #[test]
    fn the_long_form_has_every_option() {
        let list = "volumes: [\
            { type: volume, source: db, target: /a, read_only: true, volume: { nocopy: true, subpath: a/b } }, \
            { type: bind, source: /srv, target: /b, consistency: cached, \
              bind: { propagation: rslave, create_host_path: true, recursive: disabled } }, \
            { type: tmpfs, target: /c, tmpfs: { size: 64m, mode: 0700 } }, \
            { type: image, source: 'data:1', target: /d, image: { subpath: models } }]";
        let stack = parsed(&service("web", list), "  db: { x-flota-per-slot: true }").expect("a good file");
        let sources: Vec<_> = stack.services[0].mounts.iter().map(|it| &it.source).collect();
        let (name, subpath) = (Some("shop_db".to_owned()), Some("a/b".to_owned()));
        let volume = VolumeMount { name, no_copy: true, per_slot: true, subpath, ..VolumeMount::default() };
        assert_eq!(*sources[0], MountSource::Volume(volume));
        let MountSource::Bind(bind) = sources[1] else { panic!("{:?}", sources[1]) };
        assert_eq!((bind.propagation, bind.non_recursive, bind.create_source), (Propagation::Rslave, true, true));
        assert_eq!(
            *sources[2],
            MountSource::Tmpfs(TmpfsMount {
                size: std::num::NonZeroU64::new(64 << 20),
                mode: Some(0o700),
                ..TmpfsMount::default()
            })
        );
        let (reference, subpath) = ("data:1".to_owned(), Some("models".to_owned()));
        assert_eq!(*sources[3], MountSource::Image { reference, subpath });
        assert!(stack.services[0].mounts[3].read_only);
        assert!(stack.volumes[0].per_slot);
    }

    #[test]
    fn a_volume_of_global_services_has_data_on_each_node() {
        let global = service("agent", "deploy: { mode: global }, volumes: [db:/a]");
        assert!(parsed(&global, "  db:").expect("a good file").volumes[0].per_slot);
        let mixed = global + &service("web", "volumes: [db:/a]");
        let error = parsed(&mixed, "  db:").expect_err("one set of data can't be on every node");
        assert!(error.contains("the volume `shop_db` is used by global services"), "{error}");
        parsed(&mixed, "  db: { x-flota-per-slot: true }").expect("each has its own");
    }

    #[test]
    fn faults_name_the_key_and_what_is_allowed() {
        for (mounts, volumes, expected) in [
            ("volumes: [db:/a]", "  other:", "services.web.volumes[0]: the volume `db` is not declared under the"),
            ("volumes: [./x:/a]", "  db:", "services.web.volumes[0]: `./x:/a`: the source of a bind mount is an"),
            ("volumes: [{ target: /a }]", "  db:", "services.web.volumes[0]: the key `type` is missing"),
            (
                "volumes: [{ type: image, target: /a }]",
                "  db:",
                "services.web.volumes[0]: a mount of an image needs a source",
            ),
            (
                "volumes: [{ type: image, source: a, target: /a, read_only: false }]",
                "  db:",
                "services.web.volumes[0]: an image is always mounted read-only",
            ),
            (
                "volumes: [{ type: image, source: a, target: /a, image: { subpath: ../b } }]",
                "  db:",
                "services.web.volumes[0]: image_subpath: `../b`: a path has neither",
            ),
            (
                "volumes: [{ type: image, source: a, target: /a, image: { path: b } }]",
                "  db:",
                "services.web.volumes[0].image.path: this key is not supported",
            ),
            (
                "volumes: [{ type: volume, source: db, target: /a, image: { subpath: b } }]",
                "  db:",
                "services.web.volumes[0]: `image-subpath` belongs to the type image, not volume",
            ),
            ("tmpfs: [/a, b]", "  db:", "services.web.tmpfs[1]: target: `b` is not an absolute path"),
            ("tmpfs: /a", "  db: { driver: nfs }", "volumes.db.driver: the driver of a volume is local; there is no"),
            (
                "tmpfs: /a",
                "  db: { driver_opts: { type: nfs } }",
                "volumes.db.driver_opts: device: one is needed for the type nfs",
            ),
            (
                "tmpfs: /a",
                "  db: { driver_opts: { size: 1g } }",
                "volumes.db.driver_opts: `size` is not an option of a volume; they are type, device and o",
            ),
            (
                "volumes: [{ type: volume, source: db, target: /a, volume: { subpath: ../b } }]",
                "  db:",
                "services.web.volumes[0]: volume_subpath: `../b`: a path has neither",
            ),
            (
                "volumes: [{ type: bind, source: /a, target: /b, bind: { recursive: readonly } }]",
                "  db:",
                "services.web.volumes[0].bind.recursive: `readonly` is not supported",
            ),
        ] {
            let error = parsed(&service("web", mounts), volumes).expect_err(mounts);
            assert!(error.starts_with(expected), "{mounts}: {error}");
        }
    }
}
