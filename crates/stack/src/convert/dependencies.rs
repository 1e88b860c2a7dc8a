//! `depends_on` of a service: a list of services, or a map of them with conditions. The names are those of the file.

use std::collections::BTreeMap;

use flota_api::model::{Dependency, DependencyCondition};

use crate::tree::{Fault, Node, Value};

/// The services of a file, on which each of them may depend.
pub(super) struct Dependencies<'a> {
    pub(super) stack: &'a str,
    pub(super) services: &'a BTreeMap<String, Node>,
}

impl Dependencies<'_> {
    /// Reads what a service depends on.
    pub(super) fn of(&self, service: &Node) -> Result<Vec<Dependency>, Fault> {
        let Some(node) = service.map()?.get("depends_on") else { return Ok(Vec::new()) };
        match &node.value {
            Value::Null => Ok(Vec::new()),
            Value::List(names) => names.iter().map(|name| self.named(name)).collect(),
            Value::Map(map) => map.iter().map(|(name, node)| self.described(name, node)).collect(),
            Value::Scalar(_) => Err(node.unexpected("a list or a map")),
        }
    }

    fn named(&self, node: &Node) -> Result<Dependency, Fault> {
        let service = self.full(&node.text()?, true, node)?;
        Ok(Dependency { service, condition: DependencyCondition::Started, required: true })
    }

    fn described(&self, name: &str, node: &Node) -> Result<Dependency, Fault> {
        let mut keys = node.fields()?;
        let condition = keys.read("condition", |it| it.parsed(condition))?.unwrap_or(DependencyCondition::Started);
        let required = keys.read("required", Node::flag)?.unwrap_or(true);
        if let Some(restart) = keys.get("restart").filter(|it| !it.flag().is_ok_and(|it| !it)) {
            restart.flag()?;
            let why = "a service is not restarted when one on which it depends is: that is not built yet";
            return Err(restart.fault(why));
        }
        keys.finish()?;
        Ok(Dependency { service: self.full(name, required, node)?, condition, required })
    }

    /// Returns the name that the service has in the cluster.
    fn full(&self, name: &str, required: bool, node: &Node) -> Result<String, Fault> {
        if required && !self.services.contains_key(name) {
            return Err(node.fault(format!("the file has no service `{name}`")));
        }
        Ok(format!("{}_{name}", self.stack))
    }
}

fn condition(text: &str) -> Result<DependencyCondition, String> {
    match text {
        "service_started" => Ok(DependencyCondition::Started),
        "service_healthy" => Ok(DependencyCondition::Healthy),
        "service_completed_successfully" => Ok(DependencyCondition::Completed),
        other => {
            Err(format!("`{other}` is not one of service_started, service_healthy and service_completed_successfully"))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::load::parse;

    /// What the service `web` of the file depends on.
    fn parsed(depends_on: &str) -> Result<String, String> {
        let file = format!("services:\n  db: {{ image: a }}\n  web: {{ image: a, depends_on: {depends_on} }}\n");
        let stack = parse(&file, "shop", &|_| None).map_err(|fault| format!("{}: {}", fault.key, fault.why))?;
        let shown = stack.services[1]
            .depends_on
            .iter()
            .map(|it| format!("{} {}{}", it.service, it.condition, if it.required { "" } else { "?" }));
        Ok(shown.collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn a_list_and_a_map_name_services_of_the_file() {
        for (depends_on, expected) in [
            ("", ""),
            ("[db]", "shop_db started"),
            ("{ db: {} }", "shop_db started"),
            ("{ db: { condition: service_started, restart: false } }", "shop_db started"),
            ("{ db: { condition: service_healthy } }", "shop_db healthy"),
            ("{ db: { condition: service_completed_successfully, required: true } }", "shop_db completed"),
            ("{ db: { required: false }, none: { required: false } }", "shop_db started?, shop_none started?"),
        ] {
            assert_eq!(parsed(depends_on), Ok(expected.to_owned()), "{depends_on}");
        }
    }

    #[test]
    fn faults_name_the_key_and_what_is_allowed() {
        let key = "services.web.depends_on";
        for (depends_on, expected) in [
            ("db", format!("{key}: a list or a map is needed, not a text")),
            ("[db, none]", format!("{key}[1]: the file has no service `none`")),
            ("{ none: {} }", format!("{key}.none: the file has no service `none`")),
            ("{ db: { condition: healthy } }", format!("{key}.db.condition: `healthy` is not one of service_started")),
            ("{ db: { restart: true } }", format!("{key}.db.restart: a service is not restarted when one on which")),
            ("{ db: { restart: maybe } }", format!("{key}.db.restart: `maybe` is neither true nor false")),
            ("{ db: { when: now } }", format!("{key}.db.when: this key is not supported")),
            ("{ db: }", format!("{key}.db: a map is needed, not nothing")),
        ] {
            let error = parsed(depends_on).expect_err(depends_on);
            assert!(error.starts_with(&expected), "{depends_on}: {error}");
        }
    }
}
