//! Conversion of how far a node is from its role.

use crate::model::RoleChange;
use crate::proto::control as pc;

impl From<Option<RoleChange>> for pc::RoleChange {
    fn from(it: Option<RoleChange>) -> Self {
        match it {
            None => Self::None,
            Some(RoleChange::Promoting) => Self::Promoting,
            Some(RoleChange::Demoting) => Self::Demoting,
        }
    }
}

impl From<pc::RoleChange> for Option<RoleChange> {
    fn from(it: pc::RoleChange) -> Self {
        match it {
            pc::RoleChange::None => None,
            pc::RoleChange::Promoting => Some(RoleChange::Promoting),
            pc::RoleChange::Demoting => Some(RoleChange::Demoting),
        }
    }
}
