//! Placement constraints: `node.labels.zone==a`, `node.hostname!=n1`, `node.role==worker`. A constraint is parsed
//! where it enters (in the conversion from the wire, in `ctl`, in stack files) and is passed on in parsed form.

use std::fmt;

use serde::{Serialize, Serializer};

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The operator is missing.
    #[error("`{0}`: a constraint is KEY==VALUE or KEY!=VALUE")]
    Operator(String),
    /// Nodes have no such key.
    #[error(
        "`{0}`: the key is one of node.id, node.hostname, node.role, node.platform.os, node.platform.arch, node.labels.NAME"
    )]
    NodeProperty(String),
    /// The value is missing.
    #[error("`{0}`: the value is missing")]
    Value(String),
}

/// A property of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeProperty {
    /// Its id.
    Id,
    /// Its host name.
    Hostname,
    /// Its role.
    Role,
    /// Its operating system.
    Os,
    /// Its architecture.
    Architecture,
    /// The label of this name.
    Label(String),
}

impl NodeProperty {
    /// Parses a property as a user types it, such as `node.labels.zone`.
    ///
    /// # Errors
    /// Nodes have no such property.
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        Ok(match text.trim() {
            "node.id" => Self::Id,
            "node.hostname" => Self::Hostname,
            "node.role" => Self::Role,
            "node.platform.os" => Self::Os,
            "node.platform.arch" => Self::Architecture,
            text => match text.strip_prefix("node.labels.") {
                Some(label) if !label.is_empty() => Self::Label(label.to_owned()),
                _ => return Err(ConstraintError::NodeProperty(text.to_owned())),
            },
        })
    }
}

impl fmt::Display for NodeProperty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => f.write_str("node.id"),
            Self::Hostname => f.write_str("node.hostname"),
            Self::Role => f.write_str("node.role"),
            Self::Os => f.write_str("node.platform.os"),
            Self::Architecture => f.write_str("node.platform.arch"),
            Self::Label(label) => write!(f, "node.labels.{label}"),
        }
    }
}

impl Serialize for NodeProperty {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A comparison that must hold for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: NodeProperty,
    equal: bool,
    value: String,
}

impl Constraint {
    /// Parses a constraint as a user types it.
    ///
    /// # Errors
    /// The operator, the key or the value is missing or unknown.
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        let split = |operator: &str| text.split_once(operator).map(|(key, value)| (key.trim(), value.trim()));
        let (key, equal, value) = match (split("=="), split("!=")) {
            (Some((key, value)), None) => (key, true, value),
            (None, Some((key, value))) => (key, false, value),
            _ => return Err(ConstraintError::Operator(text.to_owned())),
        };
        if value.is_empty() {
            return Err(ConstraintError::Value(text.to_owned()));
        }
        let key = NodeProperty::parse(key).map_err(|_| ConstraintError::NodeProperty(text.to_owned()))?;
        Ok(Self { key, equal, value: value.to_owned() })
    }

    /// Returns whether the constraint names the one node that satisfies it.
    pub fn names_node(&self) -> bool {
        self.equal && matches!(self.key, NodeProperty::Id | NodeProperty::Hostname)
    }

    /// Returns which property of a node is compared.
    pub(crate) fn key(&self) -> &NodeProperty {
        &self.key
    }

    /// Returns whether the constraint holds for a node with this value. A label that a node does not have differs from
    /// every value.
    pub(crate) fn accepts(&self, found: Option<&str>) -> bool {
        found.is_some_and(|found| found.eq_ignore_ascii_case(&self.value)) == self.equal
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.key, if self.equal { "==" } else { "!=" }, self.value)
    }
}

impl Serialize for Constraint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constraint_is_written_as_it_is_read() {
        for key in ["id", "hostname", "role", "platform.os", "platform.arch", "labels.zone"] {
            for text in [format!("node.{key}==a b"), format!("node.{key}!=x")] {
                assert_eq!(Constraint::parse(&text).expect("it is good").to_string(), text);
            }
        }
        assert_eq!(Constraint::parse("node.id ==  a").expect("it is good").to_string(), "node.id==a");
    }

    #[test]
    fn a_node_is_named_by_its_id_or_hostname() {
        for (text, expected) in [
            ("node.hostname==a", true),
            ("node.id==a", true),
            ("node.hostname!=a", false),
            ("node.labels.zone==a", false),
        ] {
            assert_eq!(Constraint::parse(text).expect("it is good").names_node(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_constraint_is_refused() {
        for bad in ["node.hostname", "node.colour==red", "node.labels.==x", "node.id==", "a=b", "node.id==a!=b"] {
            assert!(Constraint::parse(bad).is_err(), "{bad}");
        }
    }
}
