//! Templates in a spec's texts, and in secrets and configs: `{{.Node.Hostname}}` stands for a value of the task. The manager
//! checks them when it gets them, and the worker fills them in.
//!
//! As in Go's text templates, which Docker uses, a quoted text stands for itself: `{{"{{"}}` gives `{{`.

use std::borrow::Cow;

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

/// The templates in the text of a secret or config can't be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileTemplateError {
    /// A template is not understood.
    #[error(
        "`{0}` is not a template; a template is one of {fields}, env \"NAME\", or a quoted text ({example} gives {{{{)",
        fields = FIELDS.map(|(name, _)| name).join(", "),
        example = r#"{{"{{"}}"#
    )]
    Unknown(String),
    /// There is no variable of this name.
    #[error("the service sets no variable `{0}`")]
    NoVariable(String),
    /// The text is too large once they are filled in.
    #[error("it has more than {0} bytes once its templates are filled in")]
    TooLarge(usize),
}

/// Fills in the templates in `text` with the values that `value` returns.
///
/// # Errors
/// A template is not understood.
pub fn fill(text: &str, mut value: impl FnMut(Field) -> String) -> Result<String, TemplateError> {
    let (mut result, mut rest) = (String::new(), text);
    while !rest.is_empty() {
        let (piece, after) = next(rest).map_err(TemplateError)?;
        match piece {
            Piece::Text(text) => result.push_str(&text),
            Piece::Field(field) => result.push_str(&value(field)),
            Piece::Variable(_) => return Err(TemplateError(rest[..rest.len() - after.len()].to_owned())),
        }
        rest = after;
    }
    Ok(result)
}

/// Checks the templates in `text`.
///
/// # Errors
/// A template is not understood.
pub fn check(text: &str) -> Result<(), TemplateError> {
    fill(text, |_| String::new()).map(drop)
}

/// Fills in the templates in the text of a secret or config, in which `{{env "NAME"}}` stands for a variable of the service.
/// The result has at most `bound` bytes.
///
/// # Errors
/// A template is not understood, a variable is missing, or the result is too large.
pub fn fill_file(
    text: &str,
    bound: usize,
    mut value: impl FnMut(Field) -> String,
    mut variable: impl FnMut(&str) -> Option<String>,
) -> Result<String, FileTemplateError> {
    let (mut result, mut rest) = (String::new(), text);
    while !rest.is_empty() {
        let (piece, after) = next(rest).map_err(FileTemplateError::Unknown)?;
        let text = match piece {
            Piece::Text(text) => text,
            Piece::Field(field) => value(field).into(),
            Piece::Variable(name) => variable(&name).ok_or(FileTemplateError::NoVariable(name))?.into(),
        };
        if result.len() + text.len() > bound {
            return Err(FileTemplateError::TooLarge(bound));
        }
        result.push_str(&text);
        rest = after;
    }
    Ok(result)
}

/// Checks the templates in the text of a secret or config. What variables there are is known only for a service.
///
/// # Errors
/// A template is not understood.
pub fn check_file(text: &str) -> Result<(), FileTemplateError> {
    fill_file(text, usize::MAX, |_| String::new(), |_| Some(String::new())).map(drop)
}

/// A part of a text with templates.
enum Piece<'a> {
    Text(Cow<'a, str>),
    Field(Field),
    Variable(String),
}

/// Returns the first piece of `text`, and what follows it. The error is the template that is not understood.
fn next(text: &str) -> Result<(Piece<'_>, &str), String> {
    let Some(begin) = text.find("{{") else { return Ok((Piece::Text(text.into()), "")) };
    if begin > 0 {
        return Ok((Piece::Text(text[..begin].into()), &text[begin..]));
    }
    let whole = || text.chars().take(64).collect::<String>();
    let inner = text[2..].trim_start();
    let argument = inner.strip_prefix("env").filter(|it| it.starts_with([' ', '\t'])).map(str::trim_start);
    if let Some(quoted) = argument.or(Some(inner)).filter(|it| it.starts_with('"')) {
        let (quoted, after) = unquote(quoted).ok_or_else(whole)?;
        let after = after.trim_start().strip_prefix("}}").ok_or_else(whole)?;
        let piece = if argument.is_some() { Piece::Variable(quoted) } else { Piece::Text(quoted.into()) };
        return Ok((piece, after));
    }
    let (name, after) = inner.split_once("}}").ok_or_else(whole)?;
    let is_named = |(known, _): &&(&str, Field)| *known == name.trim_end();
    let (_, field) = FIELDS.iter().find(is_named).ok_or_else(|| format!("{{{{{name}}}}}"))?;
    Ok((Piece::Field(*field), after))
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

    #[test]
    fn a_file_also_has_the_variables_of_the_service_and_stays_within_its_bound() {
        let filled = |text: &str, bound| {
            let variable = |name: &str| (name != "NONE").then(|| format!("<{name}>"));
            fill_file(text, bound, |field| format!("<{field:?}>"), variable).map_err(|error| error.to_string())
        };
        for (text, expected) in [
            ("", ""),
            ("listen {{ env \"PORT\" }};\n# {{.Task.Slot}}", "listen <PORT>;\n# <TaskSlot>"),
            (r#"{{env "a}}b"}}{{"env"}}"#, "<a}}b>env"),
        ] {
            assert_eq!(filled(text, 100).as_deref(), Ok(expected), "{text}");
        }
        for text in ["{{env}}", "{{env PORT}}", "{{environment \"PORT\"}}", "{{env \"PORT\" }", "{{secret \"db\"}}"] {
            assert!(filled(text, 100).is_err_and(|why| why.contains("is not a template")), "{text}");
        }
        assert_eq!(filled("{{env \"NONE\"}}", 100), Err("the service sets no variable `NONE`".into()));
        assert_eq!(filled(&"{{env \"A\"}}".repeat(3), 9).as_deref(), Ok("<A><A><A>"));
        assert!(filled(&"{{env \"A\"}}".repeat(3), 8).is_err_and(|why| why.contains("more than 8 bytes")));
        // A host name or variable has no other variables.
        assert_eq!(fill("{{env \"A\"}}!", |_| String::new()), Err(TemplateError("{{env \"A\"}}".into())));
        assert_eq!(check_file("{{env \"NONE\"}}"), Ok(()));
    }
}
