//! The feature level in use. It rises with the first change that needs it, and only if every manager knows that level: one
//! of an older build would apply the change without what it does not know. [`crate::control`] and the registration of nodes call
//! it.

use flota_api::LEVEL_OF_USER_NAMESPACES;
use flota_api::model::Cluster;
use flota_raft_store::{Tables, WriteTx};

/// A manager is of a build that does not support the level which a change needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the build of manager `{manager}` is too old for this: upgrade it first (it has feature level {known}, and {needed} is needed)"
)]
pub(crate) struct OldBuild {
    manager: String,
    known: u32,
    needed: u32,
}

/// Returns the level that the cluster has with a change that needs `needed`.
///
/// # Errors
/// A manager is of an older build, which does not support this level.
pub(crate) fn raised(view: &Tables, needed: u32) -> Result<u32, OldBuild> {
    let used = view.cluster().map_or(0, |cluster| cluster.feature_level);
    if used >= needed {
        return Ok(used);
    }
    match view.managers().find(|node| node.description.feature_level < needed) {
        None => Ok(needed),
        Some(node) => {
            let description = &node.description;
            Err(OldBuild { manager: description.hostname.clone(), known: description.feature_level, needed })
        }
    }
}

/// Returns the cluster at the level that [`raised`] has returned; `None` if it is there already.
pub(crate) fn risen(cluster: &Cluster, level: u32) -> Option<Cluster> {
    (cluster.feature_level < level).then(|| Cluster { feature_level: level, ..cluster.clone() })
}

/// Raises the level in use to `needed`, with the transaction that sets a spec which needs it. A transaction does this once.
///
/// # Errors
/// A manager is of an older build, which does not support this level.
pub(crate) fn claim(tx: &mut WriteTx, needed: u32) -> Result<(), OldBuild> {
    // Managers store what a spec of a lower level has, whatever level is in use.
    if needed < LEVEL_OF_USER_NAMESPACES {
        return Ok(());
    }
    let level = raised(tx.view(), needed)?;
    let risen = tx.view().cluster().and_then(|cluster| risen(cluster, level));
    risen.into_iter().for_each(|cluster| tx.update(cluster));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Node, NodeDescription, Role};
    use flota_api::object::StoreObject;

    #[test]
    fn the_level_rises_once_every_manager_knows_it_and_never_falls() {
        let mut view = Tables::default();
        view.put(Cluster { id: "c".into(), feature_level: 4, ..Cluster::default() }.into_object());
        let mut with = |id: &str, role: Role, feature_level: u32| {
            let description = NodeDescription { hostname: id.into(), feature_level, ..NodeDescription::default() };
            view.put(Node { id: id.into(), role, description, ..Node::default() }.into_object());
            raised(&view, 5).map_err(|error| error.to_string())
        };
        assert_eq!(with("m1", Role::Manager, 5), Ok(5));
        let refused = with("m2", Role::Manager, 4).expect_err("it is too old");
        assert!(refused.starts_with("the build of manager `m2` is too old for this: upgrade it first"), "{refused}");
        assert_eq!(with("m2", Role::Manager, 6), Ok(5));
        assert_eq!(with("w1", Role::Worker, 1), Ok(5), "workers apply no entries");
        view.put(Cluster { id: "c".into(), feature_level: 6, ..Cluster::default() }.into_object());
        assert_eq!(raised(&view, 5).ok(), Some(6));
        let cluster = Cluster { feature_level: 4, ..Cluster::default() };
        assert_eq!([4, 5].map(|level| risen(&cluster, level).map(|it| it.feature_level)), [None, Some(5)]);
    }
}
