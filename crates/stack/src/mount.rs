//! Mounts of a service as people write them: Docker's `--mount` and `--tmpfs`, and the short form of Compose. Also used by
//! `ctl` for its flags.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use flota_api::model::{BindMount, FileSystem, Mount, MountSource, Propagation, TmpfsMount, VolumeMount};

use crate::parse;

/// The keys of `--mount`, for errors.
const KEYS: &str = "type, source (src), target (dst, destination), readonly (ro), consistency, bind-propagation, \
                    bind-recursive, bind-nonrecursive, bind-create-src, volume-nocopy, volume-per-slot, volume-label, \
                    volume-subpath, volume-driver, volume-opt, tmpfs-size, tmpfs-mode, image-subpath";

/// The fields of a mount, before it is known which of them belong to its type.
#[derive(Debug, Default)]
pub(crate) struct MountFields {
    pub(crate) kind: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) target: Option<String>,
    pub(crate) read_only: Option<bool>,
    pub(crate) propagation: Option<String>,
    pub(crate) non_recursive: Option<bool>,
    pub(crate) create_source: Option<bool>,
    pub(crate) no_copy: Option<bool>,
    pub(crate) per_slot: Option<bool>,
    pub(crate) size: Option<String>,
    pub(crate) mode: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) gid: Option<String>,
    pub(crate) exec: bool,
    /// `KEY=VALUE` each.
    pub(crate) labels: Vec<String>,
    /// `KEY=VALUE` each.
    pub(crate) options: Vec<String>,
    pub(crate) subpath: Option<String>,
    pub(crate) image_subpath: Option<String>,
}

impl MountFields {
    /// Returns the mount, whose rules are checked.
    pub(crate) fn finish(self) -> Result<Mount, String> {
        let kind = self.kind.as_deref().unwrap_or("volume");
        let belongs = |given: bool, field: &str, of: &str| {
            if given && kind != of { Err(format!("`{field}` belongs to the type {of}, not {kind}")) } else { Ok(()) }
        };
        belongs(self.propagation.is_some(), "bind-propagation", "bind")?;
        belongs(self.non_recursive.is_some(), "bind-nonrecursive", "bind")?;
        belongs(self.create_source.is_some(), "bind-create-src", "bind")?;
        belongs(self.no_copy.is_some(), "volume-nocopy", "volume")?;
        belongs(self.per_slot.is_some(), "volume-per-slot", "volume")?;
        belongs(self.size.is_some(), "tmpfs-size", "tmpfs")?;
        belongs(self.mode.is_some(), "tmpfs-mode", "tmpfs")?;
        belongs(!self.labels.is_empty(), "volume-label", "volume")?;
        belongs(!self.options.is_empty(), "volume-opt", "volume")?;
        belongs(self.subpath.is_some(), "volume-subpath", "volume")?;
        belongs(self.image_subpath.is_some(), "image-subpath", "image")?;
        let read_only = match (kind, self.read_only) {
            ("image", Some(false)) => return Err("an image is always mounted read-only".into()),
            ("image", _) => true,
            (_, given) => given.unwrap_or_default(),
        };
        let source = match kind {
            "bind" => MountSource::Bind(BindMount {
                source: self.source.ok_or("a bind mount needs a source")?,
                propagation: self.propagation.as_deref().map_or(Ok(Propagation::Rprivate), propagation)?,
                non_recursive: self.non_recursive.unwrap_or_default(),
                create_source: self.create_source.unwrap_or_default(),
            }),
            "volume" => MountSource::Volume(VolumeMount {
                name: self.source.filter(|name| !name.is_empty()),
                no_copy: self.no_copy.unwrap_or_default(),
                per_slot: self.per_slot.unwrap_or_default(),
                labels: labels(&self.labels)?,
                file_system: options(&self.options)?,
                subpath: self.subpath,
            }),
            "tmpfs" if self.source.is_some() => return Err("a tmpfs has no source".into()),
            "tmpfs" => MountSource::Tmpfs(TmpfsMount {
                size: self.size.as_deref().map(parse::bytes).transpose()?.and_then(NonZeroU64::new),
                mode: self.mode.as_deref().map(mode).transpose()?,
                uid: self.uid.as_deref().map(id).transpose()?,
                gid: self.gid.as_deref().map(id).transpose()?,
                exec: self.exec,
            }),
            "image" => MountSource::Image {
                reference: self.source.ok_or("a mount of an image needs a source, the reference of the image")?,
                subpath: self.image_subpath,
            },
            _ => return Err(format!("`{kind}` is not a type of mount; a type is bind, volume, tmpfs or image")),
        };
        let target = self.target.ok_or("a mount needs a target")?;
        let mount = Mount { target, read_only, source };
        let violations: Vec<String> =
            mount.violations().into_iter().map(|(field, why)| format!("{field}: {why}")).collect();
        if violations.is_empty() { Ok(mount) } else { Err(violations.join("; ")) }
    }
}

fn propagation(text: &str) -> Result<Propagation, String> {
    let known = || Propagation::ALL.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(", ");
    let found = Propagation::ALL.iter().copied().find(|it| it.as_str() == text);
    found.ok_or_else(|| format!("`{text}` is not a propagation; it is one of {}", known()))
}

/// Parses labels, `KEY=VALUE` or `KEY` each. The last with a key counts, as in Docker.
fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, String> {
    let label = |text: &String| match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(format!("volume-label: `{text}` has no key")),
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    };
    texts.iter().map(label).collect()
}

/// Parses options of a volume, `KEY=VALUE` each, as those of `--mount`.
fn options(texts: &[String]) -> Result<Option<FileSystem>, String> {
    let option = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(format!("volume-opt: `{text}` does not have the form KEY=VALUE")),
    };
    let options = texts.iter().map(option).collect::<Result<Vec<_>, _>>()?;
    file_system(&options).map_err(|why| format!("volume-opt: {why}"))
}

/// Returns the file system that options of a volume stand for, those of Docker's driver `local`; `None` if there are none. The
/// last with a key counts. Its rules are checked.
///
/// # Errors
/// A message that names the option that can't be used.
pub fn file_system(options: &[(String, String)]) -> Result<Option<FileSystem>, String> {
    let (mut kind, mut device, mut o) = ("", "", "");
    for (key, value) in options {
        match key.as_str() {
            "type" => kind = value,
            "device" => device = value,
            "o" => o = value,
            _ => return Err(format!("`{key}` is not an option of a volume; they are type, device and o")),
        }
    }
    if options.is_empty() {
        return Ok(None);
    }
    let made = FileSystem::of(kind, device, o)?;
    made.check().map(|()| Some(made))
}

/// Returns whether file systems that are mounted in the source of a bind mount stay out.
pub(crate) fn non_recursive(text: &str) -> Result<bool, String> {
    match text {
        "enabled" => Ok(false),
        "disabled" => Ok(true),
        "writable" | "readonly" => Err(format!(
            "`{text}` is not supported: what is mounted in the source is read-only exactly if the mount is"
        )),
        _ => Err(format!("`{text}` is neither enabled nor disabled")),
    }
}

/// Accepts what Docker knows as the consistency of a mount. It has no effect, as in Docker on Linux.
pub(crate) fn consistency(text: &str) -> Result<(), String> {
    match text {
        "default" | "consistent" | "cached" | "delegated" => Ok(()),
        _ => Err(format!("`{text}` is not a consistency; it is one of default, consistent, cached, delegated")),
    }
}

/// Parses a mode in octal digits, such as `1777` or `0o700`.
fn mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8).map_err(|_| format!("`{text}` is not a mode such as 1777"))
}

fn id(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("`{text}` is not the number of a user or group"))
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("{key}: `{other}` is neither true nor false")),
    }
}

/// Divides the line of a CSV file (RFC 4180): a field with a comma is in double quotes, and a quote in it is doubled.
fn csv(line: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = Some(line);
    while let Some(text) = rest {
        let Some(quoted) = text.strip_prefix('"') else {
            let (field, after) = text.split_once(',').map_or((text, None), |(field, after)| (field, Some(after)));
            if field.contains('"') {
                return Err(format!("`{field}`: quotes enclose the whole of KEY=VALUE"));
            }
            fields.push(field.to_owned());
            rest = after;
            continue;
        };
        let mut field = String::new();
        let mut tail = quoted;
        loop {
            let (part, after) = tail.split_once('"').ok_or_else(|| format!("`{text}`: a quote is not closed"))?;
            field.push_str(part);
            let Some(doubled) = after.strip_prefix('"') else {
                rest = match after.strip_prefix(',') {
                    None if !after.is_empty() => return Err(format!("`{after}`: a comma follows a closed quote")),
                    next => next,
                };
                break;
            };
            field.push('"');
            tail = doubled;
        }
        fields.push(field);
    }
    Ok(fields)
}

/// Parses Docker's `--mount`: fields `KEY=VALUE`, separated by commas, as a line of CSV; a flag needs no value.
///
/// # Errors
/// A message that names the field that can't be used.
pub fn mount(text: &str) -> Result<Mount, String> {
    let mut fields = MountFields::default();
    for field in csv(text)? {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
        let texts = |value: Option<&str>| value.map(str::to_owned).ok_or_else(|| format!("{key}= needs a value"));
        match key {
            "type" => fields.kind = Some(texts(value)?),
            "source" | "src" => fields.source = Some(texts(value)?),
            "target" | "dst" | "destination" => fields.target = Some(texts(value)?),
            "readonly" | "ro" => fields.read_only = Some(flag(key, value)?),
            "bind-propagation" => fields.propagation = Some(texts(value)?),
            "bind-nonrecursive" => fields.non_recursive = Some(flag(key, value)?),
            "bind-recursive" => fields.non_recursive = Some(non_recursive(&texts(value)?)?),
            "bind-create-src" => fields.create_source = Some(flag(key, value)?),
            "consistency" => consistency(&texts(value)?)?,
            "volume-nocopy" => fields.no_copy = Some(flag(key, value)?),
            "volume-per-slot" | "per-slot" => fields.per_slot = Some(flag(key, value)?),
            "volume-label" => fields.labels.push(texts(value)?),
            "volume-subpath" => fields.subpath = Some(texts(value)?),
            "volume-driver" if value == Some("local") => {}
            "volume-driver" => return Err("the driver of a volume is local; there is no other".into()),
            "volume-opt" => fields.options.push(texts(value)?),
            "tmpfs-size" => fields.size = Some(texts(value)?),
            "tmpfs-mode" => fields.mode = Some(texts(value)?),
            "image-subpath" => fields.image_subpath = Some(texts(value)?),
            _ => return Err(format!("`{field}`: there is no key `{key}`; the keys are {KEYS}")),
        }
    }
    fields.finish()
}

/// Parses Docker's `--tmpfs`: `/path[:OPTION,…]`. The last of two options that contradict each other counts.
///
/// # Errors
/// A message that names the part that can't be used.
pub fn tmpfs(text: &str) -> Result<Mount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut fields = MountFields { kind: Some("tmpfs".into()), target: Some(target.into()), ..MountFields::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => fields.size = Some(size.into()),
            Some(("mode", mode)) => fields.mode = Some(mode.into()),
            Some(("uid", uid)) => fields.uid = Some(uid.into()),
            Some(("gid", gid)) => fields.gid = Some(gid.into()),
            None if option == "ro" => fields.read_only = Some(true),
            None if option == "rw" => fields.read_only = Some(false),
            None if option == "exec" => fields.exec = true,
            None if option == "noexec" => fields.exec = false,
            None if ["nosuid", "nodev"].contains(&option) => {}
            _ => {
                let known =
                    "size=, mode=, uid=, gid=, ro, rw, exec, noexec, nosuid and nodev; every tmpfs has the last two";
                return Err(format!("`{option}` is not an option of a tmpfs; they are {known}"));
            }
        }
    }
    fields.finish()
}

/// Parses the short form of Compose: `[SOURCE:]TARGET[:OPTION,…]`. A source that begins with `/` is a path on the node,
/// another one the name of a volume.
pub(crate) fn short(text: &str) -> Result<MountFields, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => return Err(format!("`{text}` does not have the form [SOURCE:]TARGET[:OPTIONS]")),
    };
    let is_path = source.is_some_and(|source| source.starts_with(['/', '.', '~']));
    if is_path && !source.is_some_and(|source| source.starts_with('/')) {
        return Err(format!("`{text}`: the source of a bind mount is an absolute path on the node"));
    }
    let mut fields = MountFields {
        kind: Some(if is_path { "bind" } else { "volume" }.into()),
        source: source.map(str::to_owned),
        target: Some(target.to_owned()),
        ..MountFields::default()
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => fields.read_only = Some(true),
            "rw" => fields.read_only = Some(false),
            "nocopy" => fields.no_copy = Some(true),
            _ if is_path => fields.propagation = Some(propagation(option)?.as_str().to_owned()),
            _ => return Err(format!("`{option}` is not an option of a volume; they are ro, rw and nocopy")),
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(mount: &Mount) -> String {
        let read_only = if mount.read_only { " ro" } else { "" };
        let source = match &mount.source {
            MountSource::Bind(it) => {
                let created = if it.create_source { " created" } else { "" };
                format!("{} {} {}{created}", it.source, it.propagation, it.non_recursive)
            }
            MountSource::Volume(it) => {
                let labels: String = it.labels.iter().map(|(key, value)| format!(" {key}={value}")).collect();
                let subpath = it.subpath.iter().map(|it| format!(" at {it}")).collect::<String>();
                let name = it.name.as_deref().unwrap_or("-");
                let system = it.file_system.as_ref();
                let system = system.map(|it| format!(" = {} {} {}", it.kind, it.device, it.options.join(",")));
                let system = system.unwrap_or_default();
                format!("volume {name} {} {}{labels}{subpath}{system}", it.no_copy, it.per_slot)
            }
            MountSource::Tmpfs(it) => {
                let ids = [("uid", it.uid), ("gid", it.gid)];
                let ids = ids.iter().filter_map(|(name, id)| Some(format!(" {name} {}", (*id)?)));
                let exec = if it.exec { " exec" } else { "" };
                let (size, mode) = (it.size.map_or(0, NonZeroU64::get), it.mode.unwrap_or_default());
                format!("tmpfs {size} {mode:o}{}{exec}", ids.collect::<String>())
            }
            MountSource::Image { reference, subpath } => {
                format!("image {reference} {}", subpath.as_deref().unwrap_or("-"))
            }
        };
        format!("{}: {source}{read_only}", mount.target)
    }

    #[test]
    fn mounts_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("source=db,target=/data", "/data: volume db false false"),
            ("type=volume,src=db,dst=/data,ro", "/data: volume db false false ro"),
            ("type=volume,destination=/data", "/data: volume - false false"),
            ("src=db,dst=/data,volume-nocopy,volume-per-slot=true,readonly=false", "/data: volume db true true"),
            ("type=bind,src=/srv,dst=/x", "/x: /srv rprivate false"),
            ("type=bind,src=/,dst=/x,bind-propagation=rslave,bind-nonrecursive,readonly", "/x: / rslave true ro"),
            ("type=bind,src=/,dst=/x,bind-recursive=disabled,bind-create-src=false", "/x: / rprivate true"),
            ("type=bind,src=/,dst=/x,bind-recursive=enabled,consistency=cached", "/x: / rprivate false"),
            ("type=bind,src=/srv,dst=/x,bind-create-src", "/x: /srv rprivate false created"),
            ("src=db,dst=/x,volume-label=a=b=c,volume-label=d", "/x: volume db false false a=b=c d="),
            ("src=db,dst=/x,volume-subpath=a/b,ro", "/x: volume db false false at a/b ro"),
            (
                "src=db,dst=/x,volume-opt=type=nfs,volume-opt=device=:/srv,\"volume-opt=o=addr=nas,ro\"",
                "/x: volume db false false = nfs nas:/srv ro",
            ),
            ("src=db,dst=/x,volume-driver=local,consistency=default", "/x: volume db false false"),
            ("\"type=bind\",\"src=/a,b\",dst=/x", "/x: /a,b rprivate false"),
            ("src=db,dst=/x,\"volume-label=a=\"\"b\"\",c\"", "/x: volume db false false a=\"b\",c"),
            ("type=tmpfs,dst=/x", "/x: tmpfs 0 0"),
            ("type=tmpfs,dst=/x,tmpfs-size=64m,tmpfs-mode=0700", "/x: tmpfs 67108864 700"),
            ("type=image,src=data:1,dst=/x", "/x: image data:1 - ro"),
            ("type=image,source=r.io/a:1,target=/x,image-subpath=a/b,readonly=true", "/x: image r.io/a:1 a/b ro"),
        ] {
            assert_eq!(mount(text).as_ref().map(shown).as_deref(), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("/tmp", "/tmp: tmpfs 0 0"),
            ("/tmp:size=1k,mode=1777,ro", "/tmp: tmpfs 1024 1777 ro"),
            ("/tmp:rw", "/tmp: tmpfs 0 0"),
            ("/run:rw,noexec,nosuid,size=64k", "/run: tmpfs 65536 0"),
            ("/run:uid=1000,gid=50,mode=770,exec", "/run: tmpfs 0 770 uid 1000 gid 50 exec"),
            ("/run:exec,noexec,uid=0", "/run: tmpfs 0 0 uid 0"),
        ] {
            assert_eq!(tmpfs(text).as_ref().map(shown).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (text, expected) in [
            ("type=npipe,dst=/x", "`npipe` is not a type of mount; a type is bind, volume, tmpfs or image"),
            ("type=image,dst=/x", "a mount of an image needs a source, the reference of the image"),
            ("type=image,src=Data,dst=/x", "source: `Data` is not an image reference"),
            ("type=image,src=a,dst=/x,readonly=false", "an image is always mounted read-only"),
            ("type=image,src=a,dst=/x,image-subpath=/b", "image_subpath: `/b` begins with `/`"),
            ("type=image,src=a,dst=/x,image-subpath=b/../..", "image_subpath: `b/../..`: a path has neither"),
            ("type=image,src=a,dst=/x,image-subpath=", "image_subpath: ``: a path has neither"),
            ("type=image,src=a,dst=/x,image-subpath", "image-subpath= needs a value"),
            ("type=image,src=a,dst=/x,volume-nocopy", "`volume-nocopy` belongs to the type volume, not image"),
            ("src=db,dst=/x,image-subpath=a", "`image-subpath` belongs to the type image, not volume"),
            ("src=db", "a mount needs a target"),
            ("type=bind,dst=/x", "a bind mount needs a source"),
            ("type=bind,src=srv,dst=/x", "source: `srv` is not an absolute path"),
            ("type=bind,src=/srv,dst=/x,bind-propagation=up", "`up` is not a propagation; it is one of rprivate"),
            ("type=bind,src=/srv,dst=/x,volume-nocopy", "`volume-nocopy` belongs to the type volume, not bind"),
            ("src=db,dst=/x,tmpfs-size=1", "`tmpfs-size` belongs to the type tmpfs, not volume"),
            ("type=tmpfs,src=a,dst=/x", "a tmpfs has no source"),
            ("type=tmpfs,dst=/x,tmpfs-mode=rwx", "`rwx` is not a mode such as 1777"),
            ("src=..,dst=/x", "source: `..`: the name of a volume has"),
            ("src=db,dst=/", "target: a mount can't hide the whole root"),
            ("src=db,dst=/x,readonly=maybe", "readonly: `maybe` is neither true nor false"),
            ("src=db,dst=/x,volume-driver=nfs", "the driver of a volume is local"),
            ("src=db,dst=/x,volume-opt=type=nfs", "volume-opt: device: one is needed for the type nfs"),
            (
                "src=db,dst=/x,volume-opt=size=1",
                "volume-opt: `size` is not an option of a volume; they are type, device",
            ),
            ("src=db,dst=/x,volume-opt=type", "volume-opt: `type` does not have the form KEY=VALUE"),
            ("dst=/x,volume-opt=type=tmpfs", "volume_opt: a volume without a name belongs to one task alone"),
            ("src=db,dst=/x,volume-per-slot,volume-opt=type=tmpfs", "volume_per_slot: a volume that is a file system"),
            ("type=bind,src=/a,dst=/x,volume-opt=type=tmpfs", "`volume-opt` belongs to the type volume, not bind"),
            ("src=db,dst=/x,volume-label==a", "volume-label: `=a` has no key"),
            ("dst=/x,volume-label=a", "volume_label: a volume without a name belongs to one task alone"),
            ("dst=/x,volume-subpath=a", "volume_subpath: a volume without a name belongs to one task alone"),
            ("src=db,dst=/x,volume-subpath=../b", "volume_subpath: `../b`: a path has neither"),
            (
                "src=db,dst=/x,volume-subpath=/b",
                "volume_subpath: `/b` begins with `/`: it is relative to the root of the volume",
            ),
            ("type=tmpfs,dst=/x,volume-subpath=a", "`volume-subpath` belongs to the type volume, not tmpfs"),
            ("type=bind,src=/a,dst=/x,volume-label=a", "`volume-label` belongs to the type volume, not bind"),
            ("src=db,dst=/x,bind-create-src", "`bind-create-src` belongs to the type bind, not volume"),
            ("type=bind,src=/a,dst=/x,bind-recursive=writable", "`writable` is not supported: what is mounted in"),
            ("type=bind,src=/a,dst=/x,bind-recursive=on", "`on` is neither enabled nor disabled"),
            ("src=db,dst=/x,bind-recursive=disabled", "`bind-nonrecursive` belongs to the type bind, not volume"),
            ("src=db,dst=/x,consistency=strict", "`strict` is not a consistency; it is one of default, consistent"),
            ("src=db,dst", "dst= needs a value"),
            ("type=bind,src=\"/a,b\",dst=/x", "`src=\"/a`: quotes enclose the whole of KEY=VALUE"),
            ("\"src=/a,dst=/x", "`\"src=/a,dst=/x`: a quote is not closed"),
            ("\"src=/a\"b,dst=/x", "`b,dst=/x`: a comma follows a closed quote"),
            ("src=../b,dst=/", "target: a mount can't hide the whole root; source: "),
            ("src=db,dst=/x,colour=red", "`colour=red`: there is no key `colour`; the keys are type, source"),
        ] {
            let error = mount(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        for (text, expected) in [
            ("tmp", "target: `tmp` is not an absolute path"),
            ("/tmp:suid", "`suid` is not an option of a tmpfs; they are size="),
            ("/tmp:uid=root", "`root` is not the number of a user or group"),
            ("/tmp:size=x", "`x` is not a size"),
        ] {
            let error = tmpfs(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_short_form_tells_volumes_from_paths() {
        let read = |text: &str| short(text).and_then(MountFields::finish).map(|mount| shown(&mount));
        for (text, expected) in [
            ("/data", "/data: volume - false false"),
            ("db:/data", "/data: volume db false false"),
            ("db:/data:ro,nocopy", "/data: volume db true false ro"),
            ("/srv:/data", "/data: /srv rprivate false"),
            ("/srv:/data:ro,rslave", "/data: /srv rslave false ro"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("./data:/data", "`./data:/data`: the source of a bind mount is an absolute path on the node"),
            ("db:/data:z", "`z` is not an option of a volume; they are ro, rw and nocopy"),
            ("/srv:/data:nocopy", "`volume-nocopy` belongs to the type volume, not bind"),
            ("a:b:c:d", "`a:b:c:d` does not have the form"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
