//! The flags of `ctl service create` and `update` for what the tasks mount.

use clap::Args;

use flota_api::model::{Mount, ServiceSpec};
use flota_stack::mount;

use crate::error::Usage;

/// The flags that `create` and `update` share.
#[derive(Debug, Default, Args)]
pub(crate) struct MountFlags {
    /// Mount to add, type=volume|bind|tmpfs|image,source=SOURCE,target=PATH[,readonly]…; may be repeated
    #[arg(long, visible_alias = "mount-add", value_name = "MOUNT", value_parser = parse_mount)]
    mount: Vec<Mount>,
    /// Memory to mount, PATH[:size=SIZE,mode=MODE,ro]; may be repeated
    #[arg(long, value_name = "PATH", value_parser = parse_tmpfs)]
    tmpfs: Vec<Mount>,
}

/// The flags that only `update` has.
#[derive(Debug, Default, Args)]
pub(crate) struct MountRemovals {
    /// Mount to remove, by its path in the container
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
}

fn parse_mount(text: &str) -> Result<Mount, Usage> {
    mount::mount(text).map_err(Usage)
}

fn parse_tmpfs(text: &str) -> Result<Mount, Usage> {
    mount::tmpfs(text).map_err(Usage)
}

impl MountFlags {
    /// Sets the given flags in the spec and leaves the rest as it is.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) {
        let given = || self.mount.iter().chain(&self.tmpfs);
        // Two flags with one target are both kept, so that the manager refuses them.
        spec.mounts.retain(|old| !given().any(|new| new.target == old.target));
        spec.mounts.extend(given().cloned());
    }
}

impl MountRemovals {
    /// Removes the named items from the spec.
    pub(super) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Usage> {
        for target in &self.mount_rm {
            if !spec.mounts.iter().any(|it| it.target == *target) {
                return Err(Usage(format!("--mount-rm {target}: the service has no mount there")));
            }
        }
        spec.mounts.retain(|it| !self.mount_rm.contains(&it.target));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Update {
        #[command(flatten)]
        flags: MountFlags,
        #[command(flatten)]
        removals: MountRemovals,
    }

    fn updated(spec: &ServiceSpec, flags: &str) -> Result<ServiceSpec, String> {
        let words = ["ctl"].into_iter().chain(flags.split_whitespace());
        let update = Update::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut spec = spec.clone();
        update.removals.apply(&mut spec).map_err(|error| error.to_string())?;
        update.flags.apply(&mut spec);
        Ok(spec)
    }

    fn targets(spec: &ServiceSpec) -> String {
        spec.mounts.iter().map(|it| format!("{}{}", it.target, if it.read_only { "*" } else { "" })).collect()
    }

    #[test]
    fn a_newer_mount_takes_the_place_of_one_with_the_same_target() {
        let created =
            updated(&ServiceSpec::default(), "--mount src=db,dst=/a --tmpfs /b:ro --mount dst=/c").expect("good");
        assert_eq!(targets(&created), "/a/c/b*");
        let changed = updated(&created, "--mount-rm /c --mount-add type=bind,src=/srv,dst=/a,ro").expect("good");
        assert_eq!(targets(&changed), "/b*/a*");
        let image = updated(&created, "--mount type=image,src=data:2,dst=/a,image-subpath=models").expect("good");
        assert_eq!((targets(&image).as_str(), image.mounted_images().len()), ("/c/b*/a*", 1));
        let twice = updated(&created, "--mount src=x1,dst=/a --tmpfs /a").expect("the manager refuses it");
        assert_eq!(targets(&twice), "/c/b*/a/a");
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        for (flags, expected) in [
            ("--mount src=db", "a mount needs a target"),
            ("--mount type=image,dst=/x", "a mount of an image needs a source, the reference of the image"),
            ("--mount type=image,src=a,dst=/x,ro=0", "an image is always mounted read-only"),
            ("--tmpfs x", "target: `x` is not an absolute path"),
            ("--mount-rm /x", "--mount-rm /x: the service has no mount there"),
        ] {
            let error = updated(&ServiceSpec::default(), flags).expect_err(flags);
            assert!(error.contains(expected), "{flags}: {error}");
        }
    }
}
