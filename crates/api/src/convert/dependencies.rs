//! Conversion of dependencies between services.

use super::{FromNumber, Malformed};
use crate::model::Dependency;
use crate::proto::specs as ps;

impl From<&Dependency> for ps::Dependency {
    fn from(it: &Dependency) -> Self {
        Self { service: it.service.clone(), condition: it.condition.number(), optional: !it.required }
    }
}

impl TryFrom<ps::Dependency> for Dependency {
    type Error = Malformed;
    fn try_from(it: ps::Dependency) -> Result<Self, Malformed> {
        let condition = FromNumber::from_number(it.condition)?;
        Ok(Self { service: it.service, condition, required: !it.optional })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::model::{DependencyCondition, ServiceSpec};

    #[test]
    fn dependencies_survive_the_way_to_the_wire_and_back_and_take_no_bytes_if_there_are_none() {
        let plain = ServiceSpec { name: "web".into(), ..ServiceSpec::default() };
        let dependency =
            |condition| Dependency { service: "db".into(), condition, required: condition.as_str().len() > 7 };
        let depends_on = DependencyCondition::ALL.iter().map(|it| dependency(*it)).collect();
        let spec = ServiceSpec { depends_on, ..plain.clone() };
        assert_eq!(ServiceSpec::try_from(ps::ServiceSpec::from(&spec)), Ok(spec.clone()));
        assert!(spec.same_task(&plain), "they concern no task");
        let bytes = |spec: &ServiceSpec| ps::ServiceSpec::from(spec).encoded_len();
        assert_eq!(bytes(&plain), bytes(&spec) - 3 * 3 - ps_len(&spec), "a key and a length each");
        let unknown = ps::Dependency { condition: 9, ..ps::Dependency::default() };
        let error = Dependency::try_from(unknown).expect_err("there is no such condition").to_string();
        assert_eq!(error, "the field `depends_on.condition` has an unknown value");
    }

    /// Length of the messages of all dependencies.
    fn ps_len(spec: &ServiceSpec) -> usize {
        spec.depends_on.iter().map(|it| ps::Dependency::from(it).encoded_len()).sum()
    }
}
