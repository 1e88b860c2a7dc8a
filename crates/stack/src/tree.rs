//! A YAML document as a tree in which every value knows its line and its key, so that each error can name them.
//!
//! Aliases are replaced by copies of what they stand for, and merge keys (`<<`, <https://yaml.org/type/merge.html>) by
//! the entries that they add. A key that a map has twice is an error.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};

/// Largest number of values in a document, with all aliases replaced.
const VALUES_BOUND: usize = 100_000;
/// Deepest nesting of a document.
const DEPTH_BOUND: usize = 64;

/// A defect of a document, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The line, from 1.
    pub(crate) line: usize,
    /// The key, such as `services.web.ports[0]`; empty for the whole document.
    pub(crate) key: String,
    pub(crate) why: String,
    /// Whether the key itself is wrong, whatever its value is.
    pub(crate) is_unknown_key: bool,
}

impl Fault {
    fn new(line: usize, key: &str, why: impl Into<String>) -> Self {
        Self { line, key: key.to_owned(), why: why.into(), is_unknown_key: false }
    }
}

impl From<ScanError> for Fault {
    fn from(error: ScanError) -> Self {
        Self::new(error.marker().line(), "", error.info())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    line: usize,
    key: String,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    /// A text, a number or a boolean, as it is written, and later with the values of its variables; or why it has none.
    Scalar(Result<String, String>),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
}

impl Node {
    pub(crate) fn fault(&self, why: impl Into<String>) -> Fault {
        Fault::new(self.line, &self.key, why)
    }

    pub(crate) fn line(&self) -> usize {
        self.line
    }

    /// Returns an error for a key that is not known.
    pub(crate) fn unknown_key(&self, why: impl Into<String>) -> Fault {
        Fault { is_unknown_key: true, ..self.fault(why) }
    }

    /// Removes the values at fault, below this node. An alias may have put copies of one into several places. Returns whether
    /// there was one.
    pub(crate) fn remove(&mut self, fault: &Fault) -> bool {
        let is_at_fault = |node: &Self| node.line == fault.line && node.key == fault.key;
        let mut removed = false;
        match &mut self.value {
            Value::Null | Value::Scalar(_) => {}
            Value::List(items) => {
                removed |= items.extract_if(.., |item| is_at_fault(item)).count() > 0;
                items.iter_mut().for_each(|item| removed |= item.remove(fault));
            }
            Value::Map(entries) => {
                removed |= entries.values().any(is_at_fault);
                entries.retain(|_, value| !is_at_fault(value));
                entries.values_mut().for_each(|value| removed |= value.remove(fault));
            }
        }
        removed
    }

    /// Returns the number of values in the tree below and including this node.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar(_) => 0,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.values().map(Self::size).sum(),
        }
    }
}

/// Parses a document, which may be empty.
pub(crate) fn parse(text: &str) -> Result<Node, Fault> {
    let mut builder = Builder { events: Parser::new_from_str(text), anchors: HashMap::new(), values: 0 };
    let mut root = None;
    while let Some((event, line)) = builder.next()? {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
            event if root.is_none() => root = Some(builder.node(event, &Place { line, key: String::new(), depth: 0 })?),
            _ => return Err(Fault::new(line, "", "a stack file is one document")),
        }
    }
    Ok(root.unwrap_or(Node { line: 1, key: String::new(), value: Value::Null }))
}

/// Where a value is.
struct Place {
    line: usize,
    key: String,
    depth: usize,
}

impl Place {
    fn fault(&self, why: impl Into<String>) -> Fault {
        Fault::new(self.line, &self.key, why)
    }

    fn item(&self, index: usize, line: usize) -> Self {
        Self { line, key: format!("{}[{index}]", self.key), depth: self.depth + 1 }
    }

    fn entry(&self, key: &str, line: usize) -> Self {
        let key = if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) };
        Self { line, key, depth: self.depth + 1 }
    }
}

struct Builder<'a> {
    events: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    /// Number of values so far.
    values: usize,
}

impl<'a> Builder<'a> {
    /// Returns the next event and its line.
    fn next(&mut self) -> Result<Option<(Event<'a>, usize)>, Fault> {
        let next = self.events.next().transpose()?;
        Ok(next.map(|(event, span)| (event, span.start.line())))
    }

    /// Returns the value that begins with an event. In a map, its line is that of its key.
    fn node(&mut self, event: Event<'_>, place: &Place) -> Result<Node, Fault> {
        if place.depth > DEPTH_BOUND {
            return Err(place.fault(format!("it is nested in more than {DEPTH_BOUND} levels")));
        }
        self.count(1, place)?;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                check_tag(tag, place)?;
                let is_null = plain && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                (anchor, if is_null { Value::Null } else { Value::Scalar(Ok(text.into_owned())) })
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag, place)?;
                (anchor, Value::List(self.items(place)?))
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag, place)?;
                (anchor, Value::Map(self.entries(place)?))
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| place.fault("the alias stands for a value that contains it"))?;
                self.count(node.size(), place)?;
                return Ok(node);
            }
            _ => return Err(place.fault("a value is missing")),
        };
        let node = Node { line: place.line, key: place.key.clone(), value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, values: usize, place: &Place) -> Result<(), Fault> {
        self.values += values;
        let bound = || place.fault(format!("the file has more than {VALUES_BOUND} values, with its aliases"));
        if self.values > VALUES_BOUND { Err(bound()) } else { Ok(()) }
    }

    fn items(&mut self, place: &Place) -> Result<Vec<Node>, Fault> {
        let mut items = Vec::new();
        while let Some((event, line)) = self.next()? {
            if event == Event::SequenceEnd {
                break;
            }
            items.push(self.node(event, &place.item(items.len(), line))?);
        }
        Ok(items)
    }

    fn entries(&mut self, place: &Place) -> Result<BTreeMap<String, Node>, Fault> {
        let mut entries = BTreeMap::new();
        while let Some((event, line)) = self.next()? {
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(Fault { line, ..place.fault("a key is a text") }),
            };
            let place = place.entry(&key, line);
            let Some((event, _)) = self.next()? else { break };
            let value = self.node(event, &place)?;
            if let Some(first) = entries.insert(key, value) {
                return Err(place.fault(format!("the key is there twice, first in line {}", first.line)));
            }
        }
        if let Some(merged) = entries.remove("<<") {
            merge(&mut entries, merged)?;
        }
        Ok(entries)
    }
}

/// Adds the entries of a merge key: one map, or a list of maps, of which the earlier ones count first.
fn merge(entries: &mut BTreeMap<String, Node>, merged: Node) -> Result<(), Fault> {
    match merged.value {
        Value::Map(map) => {
            for (key, value) in map {
                entries.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::List(maps) if maps.iter().all(|it| matches!(it.value, Value::Map(_))) => {
            maps.into_iter().try_for_each(|map| merge(entries, map))
        }
        _ => Err(merged.fault("`<<` takes a map or a list of maps")),
    }
}

/// Refuses tags, which would change how a value is read, except the one that makes any value a text.
fn check_tag(tag: Option<Cow<'_, Tag>>, place: &Place) -> Result<(), Fault> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == "str") => {
            Err(place.fault(format!("the tag `{tag}` is not supported")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".into(),
            Value::Scalar(text) => text.clone().expect("nothing looked for variables"),
            Value::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Value::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| format!("{key}:{}", shown(value)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn parsed(text: &str) -> String {
        parse(text).map_or_else(|fault| format!("{}: {}: {}", fault.line, fault.key, fault.why), |it| shown(&it))
    }

    #[test]
    fn aliases_and_merge_keys_are_replaced_by_what_they_stand_for() {
        for (text, expected) in [
            ("", "null"),
            ("a: 1\nb: ~\nc:\nd: '~'\ne: !!str null", "{a:1 b:null c:null d:~ e:null}"),
            ("x: &x { a: 1, b: 2 }\ny: { <<: *x, b: 3 }", "{x:{a:1 b:2} y:{a:1 b:3}}"),
            ("x: &x { a: 1 }\nz: &z { a: 2, b: 2 }\ny: { b: 3, <<: [*x, *z] }", "{x:{a:1} y:{a:1 b:3} z:{a:2 b:2}}"),
            ("a: &a [1, 2]\nb: *a", "{a:[1 2] b:[1 2]}"),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn faults_name_their_line_and_key() {
        for (text, expected) in [
            ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3", "5: b.c: the key is there twice, first in line 3"),
            ("a:\n- 1\n- !reset x", "3: a[1]: the tag `!reset` is not supported"),
            ("a: 1\n<<: 2", "2: <<: `<<` takes a map or a list of maps"),
            ("a: &a\n  b: *a", "2: a.b: the alias stands for a value that contains it"),
            ("a: 1\n? [b]\n: 2", "2: : a key is a text"),
            ("a: 1\n---\nb: 1", "3: : a stack file is one document"),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
        assert!(parsed("a: [1\nb: 2").starts_with("2: : "), "{}", parsed("a: [1\nb: 2"));
    }

    #[test]
    fn a_small_file_can_not_stand_for_a_huge_document() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert!(parsed(&bomb).ends_with("the file has more than 100000 values, with its aliases"), "{}", parsed(&bomb));
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert!(parsed(&deep).ends_with("it is nested in more than 64 levels"), "{}", parsed(&deep));
    }
}
