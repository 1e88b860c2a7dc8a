//! Secrets and configs of a stack, and how its services use them.

use std::collections::BTreeMap;

use flota_api::model::{ServiceSpec, StackValue, VALUE_BOUND, ValueKind, ValueSpec, ValueUse};

use super::{Context, labels};
use crate::fields::Fields;
use crate::tree::{Fault, Node, Value};
use crate::value::{checked, set};

/// The secrets and configs that a file declares.
pub(super) struct DeclaredValues {
    /// The full name of each, by its key.
    names: BTreeMap<(ValueKind, String), String>,
    /// Those that belong to the stack.
    own: Vec<StackValue>,
}

impl DeclaredValues {
    /// Reads the top-level keys `secrets` and `configs`.
    pub(super) fn read(
        stack: &str,
        secrets: Option<&Node>,
        configs: Option<&Node>,
        context: &Context<'_>,
    ) -> Result<Self, Fault> {
        let mut declared = Self { names: BTreeMap::new(), own: Vec::new() };
        for (kind, node) in [(ValueKind::Secret, secrets), (ValueKind::Config, configs)] {
            for (key, node) in node.map(Node::map).transpose()?.into_iter().flatten() {
                let (name, own) = value(kind, key, format!("{stack}_{key}"), node, context)?;
                declared.names.insert((kind, key.clone()), name);
                declared.own.extend(own);
            }
        }
        Ok(declared)
    }

    /// Reads the keys `secrets` and `configs` of a service.
    pub(super) fn service(&self, keys: &mut Fields<'_>, spec: &mut ServiceSpec) -> Result<(), Fault> {
        spec.secrets = keys.read("secrets", |node| self.uses(ValueKind::Secret, node))?.unwrap_or_default();
        spec.configs = keys.read("configs", |node| self.uses(ValueKind::Config, node))?.unwrap_or_default();
        Ok(())
    }

    fn uses(&self, kind: ValueKind, node: &Node) -> Result<Vec<ValueUse>, Fault> {
        node.list()?.iter().map(|node| self.value_use(kind, node)).collect()
    }

    fn value_use(&self, kind: ValueKind, node: &Node) -> Result<ValueUse, Fault> {
        let mut it = ValueUse::of("");
        if matches!(node.value, Value::Map(_)) {
            let mut keys = node.fields()?;
            keys.required("source")?;
            for (key, name) in [
                ("source", "source"),
                ("target", "target"),
                ("uid", "uid"),
                ("gid", "gid"),
                ("mode", "mode"),
                ("x-flota-version", "version"),
                ("x-flota-env", "env"),
                ("x-flota-on-update", "on-update"),
            ] {
                keys.read(key, |node| node.parsed(|text| set(&mut it, name, text)))?;
            }
            keys.finish()?;
        } else {
            it.source = node.text()?;
        }
        let full = self.names.get(&(kind, it.source.clone())).ok_or_else(|| {
            node.fault(format!("the {kind} `{}` is not declared under the file's key `{kind}s`", it.source))
        })?;
        // As in Compose, the file has the name that the stack file knows it by.
        if it.target.is_none() && it.env.is_none() {
            it.target = Some(it.source.clone());
        }
        it.source.clone_from(full);
        checked(it, kind).map_err(|why| node.fault(why))
    }

    /// Returns those that belong to the stack.
    pub(super) fn finish(self) -> Vec<StackValue> {
        self.own
    }
}

/// Reads a secret or config. Returns its full name, and what it is unless it is an external one.
fn value(
    kind: ValueKind,
    key: &str,
    full: String,
    node: &Node,
    context: &Context<'_>,
) -> Result<(String, Option<StackValue>), Fault> {
    let mut keys = node.fields()?;
    let name = keys.text("name")?;
    if keys.read("external", Node::flag)?.unwrap_or_default() {
        keys.finish()?;
        return Ok((name.unwrap_or_else(|| key.to_owned()), None));
    }
    let file = keys.read("file", |node| read(node, context))?;
    let variable = keys.read("environment", |node| {
        let name = node.text()?;
        let unset = || node.fault(format!("the environment of ctl has no variable `{name}`"));
        (context.environment)(&name).map(String::into_bytes).ok_or_else(unset)
    })?;
    let content = match kind {
        ValueKind::Config => keys.text("content")?.map(String::into_bytes),
        ValueKind::Secret => None,
    };
    let labels = keys.read("labels", labels)?.unwrap_or_default();
    let driver = keys.read("template_driver", |node| {
        let driver = node.text()?;
        if driver == "golang" {
            Ok(())
        } else {
            Err(node.fault(format!("`{driver}` is not `golang`, the only driver")))
        }
    })?;
    let given: Vec<Vec<u8>> = [file, variable, content].into_iter().flatten().collect();
    keys.finish()?;
    let [bytes] = <[Vec<u8>; 1]>::try_from(given).map_err(|given| {
        let allowed = if kind == ValueKind::Config { "file, environment, content" } else { "file, environment" };
        node.fault(format!("it needs one of {allowed} and external, and has {} of them", given.len()))
    })?;
    let spec = ValueSpec { name: name.unwrap_or(full), labels, template: driver.is_some() };
    if bytes.is_empty() || bytes.len() > VALUE_BOUND {
        return Err(node.fault(format!("it has {} bytes; from 1 to {VALUE_BOUND} (500 KiB) are allowed", bytes.len())));
    }
    Ok((spec.name.clone(), Some(StackValue { kind, spec, bytes: bytes.into() })))
}

fn read(node: &Node, context: &Context<'_>) -> Result<Vec<u8>, Fault> {
    use std::io::Read;
    let path = context.folder.join(node.text()?);
    let failed = |error| node.fault(format!("failed to read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&path).map_err(failed)?;
    // One byte more than the bound is enough to refuse it.
    file.take(VALUE_BOUND as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use flota_api::model::StackValue;

    use super::*;

    fn parsed(text: &str) -> Result<(ServiceSpec, Vec<StackValue>), String> {
        let environment = |name: &str| (name == "PASSWORD").then(|| "hunter2".to_owned());
        let context = Context { environment: &environment, folder: std::path::Path::new("") };
        let document = crate::tree::parse(text).map_err(|fault| fault.why)?;
        let (mut stack, values) = super::super::stack("shop", &document, &context)
            .map_err(|fault| format!("{}: {}: {}", fault.line, fault.key, fault.why))?;
        Ok((stack.services.remove(0), values))
    }

    #[test]
    fn secrets_come_from_the_environment_and_configs_from_the_file_itself() {
        let (web, values) = parsed(
            "secrets: { db: { environment: PASSWORD }, old: { external: true } }\n\
             configs: { app: { content: \"a: 1\", name: app-1, template_driver: golang } }\n\
             services: { web: { image: a, secrets: [db, { source: old, x-flota-env: OLD, x-flota-version: 2 }], \
             configs: [{ source: app, target: /run/configs/app, mode: \"0440\", uid: \"5\", x-flota-on-update: \"signal:HUP\" }] } }",
        )
        .expect("a good file");
        let names: Vec<_> = values.iter().map(|it| (it.kind, it.spec.name.as_str(), &*it.bytes.0)).collect();
        let expected: [(ValueKind, &str, &[u8]); 2] =
            [(ValueKind::Secret, "shop_db", b"hunter2"), (ValueKind::Config, "app-1", b"a: 1")];
        assert_eq!(names, expected);
        assert_eq!(values.iter().map(|it| it.spec.template).collect::<Vec<_>>(), [false, true]);
        let [db, old] = web.secrets.as_slice() else { panic!("two secrets") };
        assert_eq!((db.source.as_str(), db.path(ValueKind::Secret).as_deref()), ("shop_db", Some("/run/secrets/db")));
        assert_eq!(
            (old.source.as_str(), old.env.as_deref(), old.version.map(u64::from)),
            ("old", Some("OLD"), Some(2))
        );
        let app = &web.configs[0];
        assert_eq!((app.mode, app.uid, app.signal.as_deref()), (0o440, 5, Some("HUP")));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let file = |top: &str, keys: &str| format!("{top}\nservices:\n  web: {{ image: a, {keys} }}");
        for (top, keys, expected) in [
            ("", "secrets: [db]", "3: services.web.secrets[0]: the secret `db` is not declared under"),
            ("secrets: { db: { external: true } }", "configs: [db]", "3: services.web.configs[0]: the config `db`"),
            ("secrets: { db: {} }", "", "1: secrets.db: it needs one of file, environment and external, and has 0"),
            ("configs: { a: { content: x, environment: PASSWORD } }", "", "1: configs.a: it needs one of file, env"),
            ("secrets: { db: { environment: NONE } }", "", "1: secrets.db.environment: the environment of ctl has no"),
            ("secrets: { db: { file: ./none } }", "", "1: secrets.db.file: failed to read ./none"),
            ("secrets: { db: { content: x } }", "", "1: secrets.db.content: this key is not supported"),
            (
                "configs: { a: { content: x, template_driver: jinja } }",
                "",
                "1: configs.a.template_driver: `jinja` is not `golang`",
            ),
            (
                "secrets: { db: { external: true } }",
                "secrets: [{ source: db, target: ../x }]",
                "3: services.web.secrets[0]: target:",
            ),
        ] {
            let error = parsed(&file(top, keys)).expect_err(keys);
            assert!(error.starts_with(expected), "{top} {keys}\n{error}");
        }
    }
}
