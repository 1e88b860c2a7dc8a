//! Conversion of users and of the records of what was changed.

use std::time::Duration;

use super::{FromNumber, Malformed, millis};
use crate::model::{Audit, AuditedObject, User, UserRole};
use crate::proto::objects as po;

impl UserRole {
    /// Returns the role with this number on the wire.
    ///
    /// # Errors
    /// The number is unknown.
    pub fn from_wire(number: i32) -> Result<Self, Malformed> {
        Self::from_number(number)
    }

    /// Returns its number on the wire.
    pub fn to_wire(self) -> i32 {
        self.number()
    }
}

impl From<&User> for po::User {
    fn from(it: &User) -> Self {
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            name: it.name.clone(),
            role: it.role.number(),
            prefixes: it.prefixes.clone(),
            certificates: it.certificates.iter().map(Into::into).collect(),
            created_by: it.created_by.clone(),
            life_ms: millis(it.life),
        }
    }
}

impl TryFrom<po::User> for User {
    type Error = Malformed;
    fn try_from(it: po::User) -> Result<Self, Malformed> {
        Ok(Self {
            id: it.id.into(),
            meta: it.meta.into(),
            name: it.name,
            role: UserRole::from_number(it.role)?,
            prefixes: it.prefixes,
            certificates: it.certificates.into_iter().map(Into::into).collect(),
            created_by: it.created_by,
            life: Duration::from_millis(it.life_ms),
        })
    }
}

impl From<&Audit> for po::Audit {
    fn from(it: &Audit) -> Self {
        let object = |it: &AuditedObject| po::AuditedObject {
            kind: it.kind.clone(),
            id: it.id.clone(),
            name: it.name.clone(),
            change: it.change.clone(),
        };
        Self {
            id: it.id.clone().into(),
            meta: Some((&it.meta).into()),
            actor: it.actor.clone(),
            request: it.request.clone(),
            objects: it.objects.iter().map(object).collect(),
            more: it.more,
            number: it.number,
        }
    }
}

impl From<po::Audit> for Audit {
    fn from(it: po::Audit) -> Self {
        let object =
            |it: po::AuditedObject| AuditedObject { kind: it.kind, id: it.id, name: it.name, change: it.change };
        Self {
            id: it.id.into(),
            meta: it.meta.into(),
            actor: it.actor,
            request: it.request,
            objects: it.objects.into_iter().map(object).collect(),
            more: it.more,
            number: it.number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeCertificate;
    use crate::version::{Meta, Timestamp};

    #[test]
    fn users_and_records_read_back_as_they_were_written() {
        for role in UserRole::ALL {
            let user = User {
                id: "u".into(),
                meta: Meta { version: 7, ..Meta::default() },
                name: "ada".into(),
                role: *role,
                prefixes: vec!["team-a-".into()],
                certificates: vec![NodeCertificate { key: "k".into(), expires_at: Timestamp(9) }],
                created_by: "root@m1".into(),
                life: Duration::from_secs(7),
            };
            assert_eq!(User::try_from(po::User::from(&user)), Ok(user));
        }
        let object =
            AuditedObject { kind: "service".into(), id: "s".into(), name: "web".into(), change: "create".into() };
        let audit = Audit {
            id: "a".into(),
            actor: "ada".into(),
            request: "CreateService".into(),
            objects: vec![object],
            more: 3,
            number: 2,
            ..Audit::default()
        };
        assert_eq!(Audit::from(po::Audit::from(&audit)), audit);
        assert!(User::try_from(po::User { role: 9, ..po::User::default() }).is_err());
    }
}
