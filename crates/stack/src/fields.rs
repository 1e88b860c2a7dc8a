//! Reads typed values out of a document's tree. Each function returns an error that names the value's line and key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::tree::{Fault, Node, Value};

impl Node {
    /// Returns a text, a number or a boolean, with the values of its variables.
    pub(crate) fn text(&self) -> Result<String, Fault> {
        let Value::Scalar(text) = &self.value else { return Err(self.unexpected("a text")) };
        text.clone().map_err(|why| self.fault(why))
    }

    /// Returns whether this is nothing, or a list or map of nothing.
    pub(crate) fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Scalar(_) => false,
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        }
    }

    /// Returns what `parse` makes of the text.
    pub(crate) fn parsed<T, E: Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Fault> {
        parse(&self.text()?).map_err(|error| self.fault(error.to_string()))
    }

    pub(crate) fn number(&self) -> Result<u64, Fault> {
        self.parsed(|text| text.parse().map_err(|_| format!("`{text}` is not a whole number from 0")))
    }

    pub(crate) fn flag(&self) -> Result<bool, Fault> {
        self.parsed(|text| text.parse().map_err(|_| format!("`{text}` is neither true nor false")))
    }

    pub(crate) fn list(&self) -> Result<&[Self], Fault> {
        if let Value::List(items) = &self.value { Ok(items) } else { Err(self.unexpected("a list")) }
    }

    pub(crate) fn texts(&self) -> Result<Vec<String>, Fault> {
        self.list()?.iter().map(Self::text).collect()
    }

    pub(crate) fn map(&self) -> Result<&BTreeMap<String, Self>, Fault> {
        if let Value::Map(entries) = &self.value { Ok(entries) } else { Err(self.unexpected("a map")) }
    }

    /// Returns the fields of a map whose keys are known in advance.
    pub(crate) fn fields(&self) -> Result<Fields<'_>, Fault> {
        Ok(Fields { of: self, map: self.map()?, known: BTreeSet::new() })
    }

    /// Returns an error for a value of the wrong kind.
    pub(crate) fn unexpected(&self, wanted: &str) -> Fault {
        let found = match self.value {
            Value::Null => "nothing",
            Value::Scalar(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        };
        self.fault(format!("{wanted} is needed, not {found}"))
    }
}

/// The fields of a map. Each is read by its key; [`Fields::finish`] refuses those that were not read.
pub(crate) struct Fields<'a> {
    of: &'a Node,
    map: &'a BTreeMap<String, Node>,
    known: BTreeSet<&'static str>,
}

impl<'a> Fields<'a> {
    /// Returns the value of a key; `None` if it is absent or null.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<&'a Node> {
        self.known.insert(key);
        self.map.get(key).filter(|node| !matches!(node.value, Value::Null))
    }

    /// Reads the value of a key with a function; `None` if it is absent or null.
    pub(crate) fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'a Node) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        self.get(key).map(read).transpose()
    }

    /// Returns a text that is not empty.
    pub(crate) fn text(&mut self, key: &'static str) -> Result<Option<String>, Fault> {
        Ok(self.read(key, Node::text)?.filter(|text| !text.is_empty()))
    }

    /// Returns the value of a key that must be there.
    pub(crate) fn required(&mut self, key: &'static str) -> Result<&'a Node, Fault> {
        self.get(key).ok_or_else(|| self.of.fault(format!("the key `{key}` is missing")))
    }

    /// Returns an error for the whole map.
    pub(crate) fn fault(&self, why: &str) -> Fault {
        self.of.fault(why)
    }

    /// Refuses keys that were not read, except extensions (Compose specification, "Extension").
    pub(crate) fn finish(self) -> Result<(), Fault> {
        // Extensions of others are ignored, but one of ours that is misspelt must not be.
        let is_foreign = |key: &str| key.starts_with("x-") && !key.starts_with("x-flota-");
        let is_unknown = |(key, _): &(&String, &Node)| !self.known.contains(key.as_str()) && !is_foreign(key);
        let unknown = self.map.iter().filter(is_unknown).min_by_key(|(_, node)| node.line());
        let known = || self.known.iter().copied().collect::<Vec<_>>().join(", ");
        unknown.map_or(Ok(()), |(_, node)| {
            Err(node.unknown_key(format!("this key is not supported; the keys that are supported here: {}", known())))
        })
    }
}
