//! Reads YAML as the format of a serde type. The type decides what a plain scalar is, as in Go's reader of these files: the
//! name `0` is a text, and the minor number `0` is a number.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};
use serde::de::value::{Error, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

/// Largest number of values in a document, with all aliases replaced.
const VALUES_BOUND: usize = 100_000;
/// Deepest nesting of a document.
const DEPTH_BOUND: usize = 32;

/// A value of a document.
#[derive(Clone, Debug)]
pub(super) enum Yaml {
    /// A scalar without quotes.
    Plain(String),
    /// A scalar that is a text, whatever it looks like.
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

/// Parses a file of one document.
pub(super) fn parse(text: &str) -> Result<Yaml, String> {
    let mut builder = Builder { events: Parser::new_from_str(text), anchors: HashMap::new(), values: 0 };
    let mut root = None;
    while let Some(event) = builder.next()? {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
            event if root.is_none() => root = Some(builder.value(event, 0)?),
            _ => return Err("it has more than one document".to_owned()),
        }
    }
    root.ok_or_else(|| "it is empty".to_owned())
}

struct Builder<'a> {
    events: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Yaml>,
    /// Number of values so far.
    values: usize,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<Option<Event<'a>>, String> {
        let next = self.events.next().transpose();
        let next = next.map_err(|error| format!("line {}: {}", error.marker().line(), error.info()))?;
        Ok(next.map(|(event, _)| event))
    }

    fn value(&mut self, event: Event<'_>, depth: usize) -> Result<Yaml, String> {
        if depth > DEPTH_BOUND {
            return Err(format!("it is nested in more than {DEPTH_BOUND} levels"));
        }
        self.count(1)?;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = is_text(tag.as_deref())? || style != ScalarStyle::Plain;
                let text = text.into_owned();
                (anchor, if is_text { Yaml::Text(text) } else { Yaml::Plain(text) })
            }
            Event::SequenceStart(anchor, _) => (anchor, Yaml::List(self.items(depth)?)),
            Event::MappingStart(anchor, _) => (anchor, Yaml::Map(self.entries(depth)?)),
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned().ok_or("an alias stands for what contains it")?;
                self.count(value.size())?;
                return Ok(value);
            }
            _ => return Err("a value is missing".to_owned()),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn items(&mut self, depth: usize) -> Result<Vec<Yaml>, String> {
        let mut items = Vec::new();
        loop {
            match self.next()?.ok_or("a list has no end")? {
                Event::SequenceEnd => return Ok(items),
                event => items.push(self.value(event, depth + 1)?),
            }
        }
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<(String, Yaml)>, String> {
        let mut entries: Vec<(String, Yaml)> = Vec::new();
        loop {
            let key = match self.next()?.ok_or("a map has no end")? {
                Event::MappingEnd => return Ok(entries),
                event => self.value(event, depth + 1)?,
            };
            let (Yaml::Plain(key) | Yaml::Text(key)) = key else { return Err("a key is no text".to_owned()) };
            if entries.iter().any(|(other, _)| *other == key) {
                return Err(format!("the key `{}` is there twice", key.escape_debug()));
            }
            let value = self.next()?.ok_or("a map has no end")?;
            entries.push((key, self.value(value, depth + 1)?));
        }
    }

    fn count(&mut self, more: usize) -> Result<(), String> {
        self.values = self.values.saturating_add(more);
        if self.values > VALUES_BOUND { Err(format!("it has more than {VALUES_BOUND} values")) } else { Ok(()) }
    }
}

/// Returns whether a tag makes a text of a plain scalar.
fn is_text(tag: Option<&Tag>) -> Result<bool, String> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(tag) => Err(format!("the tag `{tag}` is not supported")),
    }
}

impl Yaml {
    /// Returns the number of values in it, including itself.
    fn size(&self) -> usize {
        1 + match self {
            Self::Plain(_) | Self::Text(_) => 0,
            Self::List(items) => items.iter().map(Self::size).sum(),
            Self::Map(entries) => entries.iter().map(|(_, value)| value.size() + 1).sum(),
        }
    }

    fn is_null(&self) -> bool {
        matches!(self, Self::Plain(text) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

/// Returns the integer that a plain scalar is. As in YAML 1.1, which Go's reader follows, one that begins with 0 is octal.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (digits, radix) = match digits.get(..2) {
        Some("0x") => (&digits[2..], 16),
        Some("0o") => (&digits[2..], 8),
        Some("0b") => (&digits[2..], 2),
        Some(two) if two.starts_with('0') => (&digits[1..], 8),
        _ => (digits, 10),
    };
    let is_number = digits.starts_with(|it: char| it.is_ascii_hexdigit());
    is_number.then(|| i64::from_str_radix(digits, radix).ok()).flatten().map(|number| sign * number)
}

impl<'de> IntoDeserializer<'de, Error> for Yaml {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Yaml {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() {
            return visitor.visit_unit();
        }
        match self {
            Self::Plain(text) => match text.as_str() {
                "true" | "True" | "TRUE" => visitor.visit_bool(true),
                "false" | "False" | "FALSE" => visitor.visit_bool(false),
                text => match integer(text) {
                    Some(number) => visitor.visit_i64(number),
                    None => visitor.visit_str(text),
                },
            },
            Self::Text(text) => visitor.visit_string(text),
            Self::List(items) => {
                let mut items = SeqDeserializer::new(items.into_iter());
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Self::Map(entries) => {
                let mut entries = MapDeserializer::new(entries.into_iter());
                let value = visitor.visit_map(&mut entries)?;
                entries.end().map(|()| value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            _ if self.is_null() => visitor.visit_unit(),
            Self::Plain(text) | Self::Text(text) => visitor.visit_string(text),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
        T::deserialize(parse(text)?).map_err(|error| error.to_string())
    }

    #[test]
    fn the_type_decides_what_a_scalar_is() {
        assert_eq!(
            read::<Vec<String>>("[0, true, 1.10, \"null\", !!str ~]"),
            Ok(["0", "true", "1.10", "null", "~"].map(str::to_owned).into())
        );
        assert_eq!(read::<Vec<i64>>("- 12\n- -3\n- 0x1f\n- 0o17\n- 0666\n- 0"), Ok(vec![12, -3, 31, 15, 438, 0]));
        assert_eq!(read::<Vec<Option<u32>>>("[~, null, 7, ]"), Ok(vec![None, None, Some(7)]));
        assert_eq!(read::<Vec<bool>>("[true, False]"), Ok(vec![true, false]));
        for (text, expected) in [
            ("[1x]", "invalid type: string"),
            ("[-1]", "invalid value"),
            ("[\"1\"]", "invalid type: string"),
            ("[0x]", "invalid type"),
        ] {
            let error = read::<Vec<u32>>(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn aliases_are_replaced_and_documents_are_bounded() {
        let map = read::<BTreeMap<String, Vec<String>>>("---\na: &x [b, c]\nd: *x\n").expect("a good document");
        assert_eq!(map["d"], ["b", "c"]);
        let bomb = format!(
            "a0: &a0 [x, x]\n{}",
            (1..40).map(|it| format!("a{it}: &a{it} [*a{0}, *a{0}]\n", it - 1)).collect::<String>()
        );
        for (text, expected) in [
            ("", "it is empty"),
            ("a: b\n---\nc: d\n", "more than one document"),
            ("a: b\na: c\n", "the key `a` is there twice"),
            ("a: !own b", "the tag"),
            ("a: [b", "line "),
            ("[a]: b", "a key is no text"),
            (&bomb, "more than 100000 values"),
            (&"[".repeat(100), "nested in more than"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
