//! Templates in a spec's texts: `{{.Node.Hostname}}` stands for a value of the task. The manager checks them when a
//! service is created, and the worker fills them in.
//!
//! As in Go's text templates, which Docker uses, a quoted text stands for itself: `{{"{{"}}` gives `{{`.

/// A value that a template can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Id of the task's node.
    NodeId,
    /// Hostname of the task's node.
    NodeHostname,
    /// Id of the service.
    ServiceId,
    /// Name of the service.
    ServiceName,
    /// Id of the task.
    TaskId,
    /// Unique name of the task.
    TaskName,
    /// Slot of the task.
    TaskSlot,
}

/// Every field, as a template names it.
const FIELDS: [(&str, Field); 7] = [
    (".Node.ID", Field::NodeId),
    (".Node.Hostname", Field::NodeHostname),
    (".Service.ID", Field::ServiceId),
    (".Service.Name", Field::ServiceName),
    (".Task.ID", Field::TaskId),
    (".Task.Name", Field::TaskName),
    (".Task.Slot", Field::TaskSlot),
];

/// A text has a template that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a template; a template is one of {fields}, or a quoted text ({example} gives {{{{)",
    fields = FIELDS.map(|(name, _)| name).join(", "),
    example = r#"{{"{{"}}"#
)]
pub struct TemplateError(String);

/// Fills in the templates in `text` with the values that `value` returns.
///
/// # Errors
/// A template is not understood.
pub fn fill(text: &str, mut value: impl FnMut(Field) -> String) -> Result<String, TemplateError> {
    let (mut result, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("{{") {
        result.push_str(before);
        let whole = || TemplateError(rest[before.len()..].chars().take(64).collect());
        let inner = after.trim_start();
        rest = if inner.starts_with('"') {
            let (quoted, after) = unquote(inner).ok_or_else(whole)?;
            result.push_str(&quoted);
            after.trim_start().strip_prefix("}}").ok_or_else(whole)?
        } else {
            let (name, after) = inner.split_once("}}").ok_or_else(whole)?;
            let is_named = |(known, _): &&(&str, Field)| *known == name.trim_end();
            let (_, field) = FIELDS.iter().find(is_named).ok_or_else(|| TemplateError(format!("{{{{{name}}}}}")))?;
            result.push_str(&value(*field));
            after
        };
    }
    result.push_str(rest);
    Ok(result)
}

/// Checks the templates in `text`.
///
/// # Errors
/// A template is not understood.
pub fn check(text: &str) -> Result<(), TemplateError> {
    fill(text, |_| String::new()).map(drop)
}

/// Returns the quoted text that `text` begins with, and what follows it. A backslash makes the next character literal.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut result = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((result, &text[index + 1..])),
            '\\' => result.push(characters.next()?.1),
            other => result.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, TemplateError> {
        fill(text, |field| format!("<{field:?}>"))
    }

    #[test]
    fn fields_are_filled_in_and_quoted_texts_stand_for_themselves() {
        for (text, expected) in [
            ("plain }} text", "plain }} text"),
            ("{{.Task.Slot}}", "<TaskSlot>"),
            ("a={{ .Node.Hostname }}-{{.Node.ID}}!", "a=<NodeHostname>-<NodeId>!"),
            (r#"{{"{{"}}index .env 0}}"#, "{{index .env 0}}"),
            (r#"{{ "{{index .env 0}}" }}"#, "{{index .env 0}}"),
            (r#"{{"say \"}}\" \\"}}{{.Task.ID}}"#, r#"say "}}" \<TaskId>"#),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_templates_are_errors_that_name_them() {
        for text in [
            "{{index .env 0}}",
            "{{}}",
            "{{.Task.Slot",
            "{{{{.Task.Slot}}}}",
            r#"{{"open}}"#,
            r#"{{"a" .Task.ID}}"#,
            r#"{{"a\"#,
        ] {
            assert!(filled(text).is_err(), "{text}");
        }
        let error = filled("Q={{index .env 0}} and more").expect_err("it is unknown").to_string();
        assert!(error.starts_with("`{{index .env 0}}` is not a template; a template is one of .Node.ID, "), "{error}");
        assert!(error.ends_with(r#"({{"{{"}} gives {{)"#), "{error}");
    }
}
