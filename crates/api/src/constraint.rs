//! Placement constraints: `node.labels.zone==a`, `node.hostname not in (n1,n2)`, `engine.labels.disk>=100`. One is parsed
//! where it enters (in the conversion from the wire, in `ctl`, in stack files) and is passed on in parsed form.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The operator is missing.
    #[error("`{0}`: a constraint is KEY OPERATOR VALUE with ==, !=, <, <=, >, >=, `in (A,B)` or `not in (A,B)`")]
    Operator(String),
    /// Nodes have no such key.
    #[error(
        "`{0}`: the key is one of node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, \
         node.labels.NAME, engine.labels.NAME"
    )]
    NodeProperty(String),
    /// The value is missing.
    #[error("`{0}`: the value is missing")]
    Value(String),
    /// The values of `in` are not a list.
    #[error("`{0}`: the values are a list such as (a,b)")]
    Set(String),
    /// One of the operators `<`, `<=`, `>` and `>=` compares a value that is not a number.
    #[error("`{0}`: <, <=, > and >= compare numbers")]
    Number(String),
    /// `node.ip` is compared with something else than addresses.
    #[error("`{0}`: the value of node.ip is an address or a prefix such as 192.0.2.0/24")]
    Address(String),
}

/// A property of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeProperty {
    /// Its id.
    Id,
    /// Its host name.
    Hostname,
    /// Its address.
    Ip,
    /// Its role.
    Role,
    /// Its operating system.
    Os,
    /// Its architecture.
    Architecture,
    /// The label of this name, which a user of the cluster has set.
    Label(String),
    /// The label of this name, which the node's owner has set.
    EngineLabel(String),
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
            "node.ip" => Self::Ip,
            "node.role" => Self::Role,
            "node.platform.os" => Self::Os,
            "node.platform.arch" => Self::Architecture,
            text => match (text.strip_prefix("node.labels."), text.strip_prefix("engine.labels.")) {
                (Some(label), _) if !label.is_empty() => Self::Label(label.to_owned()),
                (_, Some(label)) if !label.is_empty() => Self::EngineLabel(label.to_owned()),
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
            Self::Ip => f.write_str("node.ip"),
            Self::Role => f.write_str("node.role"),
            Self::Os => f.write_str("node.platform.os"),
            Self::Architecture => f.write_str("node.platform.arch"),
            Self::Label(label) => write!(f, "node.labels.{label}"),
            Self::EngineLabel(label) => write!(f, "engine.labels.{label}"),
        }
    }
}

impl Serialize for NodeProperty {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a property of a node is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Comparison {
    /// With one value; `node.ip` also with a prefix.
    Equals(String),
    /// With each of these.
    IsIn(Vec<String>),
    /// As numbers, in this order.
    Number(Ordering, String),
}

/// The numbers that satisfy a comparison, beside the one that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ordering {
    Less,
    AtMost,
    More,
    AtLeast,
}

/// A comparison that must hold for a node, or must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: NodeProperty,
    /// Whether the comparison must hold.
    holds: bool,
    comparison: Comparison,
}

/// The operators, the longer of two that begin in the same way first.
const OPERATORS: [&str; 8] = ["==", "!=", ">=", "<=", ">", "<", " not in ", " in "];

impl Constraint {
    /// Parses a constraint as a user types it.
    ///
    /// # Errors
    /// The operator, the key or the value is missing or unknown.
    pub fn parse(text: &str) -> Result<Self, ConstraintError> {
        let found = OPERATORS.iter().filter_map(|operator| text.find(operator).map(|at| (at, *operator)));
        // The first one, and of those at one place the longest.
        let found = found.min_by_key(|(at, operator)| (*at, std::cmp::Reverse(operator.len())));
        let (at, operator) = found.ok_or_else(|| ConstraintError::Operator(text.to_owned()))?;
        let (key, value) = (&text[..at], text[at + operator.len()..].trim());
        if value.contains("==") || value.contains("!=") {
            return Err(ConstraintError::Operator(text.to_owned()));
        }
        if value.is_empty() {
            return Err(ConstraintError::Value(text.to_owned()));
        }
        let key = NodeProperty::parse(key).map_err(|_| ConstraintError::NodeProperty(text.to_owned()))?;
        let number = |ordering| match value.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Comparison::Number(ordering, value.to_owned())),
            Ok(_) | Err(_) => Err(ConstraintError::Number(text.to_owned())),
        };
        let comparison = match operator.trim() {
            "==" | "!=" => Comparison::Equals(value.to_owned()),
            ">=" => number(Ordering::AtLeast)?,
            "<=" => number(Ordering::AtMost)?,
            ">" => number(Ordering::More)?,
            "<" => number(Ordering::Less)?,
            _ => Comparison::IsIn(set(value).ok_or_else(|| ConstraintError::Set(text.to_owned()))?),
        };
        if key == NodeProperty::Ip && !comparison.values().iter().all(|value| network(value).is_some()) {
            return Err(ConstraintError::Address(text.to_owned()));
        }
        Ok(Self { key, holds: !operator.starts_with('!') && operator != " not in ", comparison })
    }

    /// Returns whether the constraint names the one node that satisfies it.
    pub fn names_node(&self) -> bool {
        let names_one = self.comparison.values().len() == 1 && !matches!(self.comparison, Comparison::Number(..));
        self.holds && names_one && matches!(self.key, NodeProperty::Id | NodeProperty::Hostname)
    }

    /// Returns which property of a node is compared.
    pub(crate) fn key(&self) -> &NodeProperty {
        &self.key
    }

    /// Returns whether the constraint holds for a node with this value. A label that a node does not have differs from
    /// every value, and so does a value that is not a number from every number.
    pub(crate) fn accepts(&self, found: Option<&str>) -> bool {
        let is_one = |value: &String| match (found, &self.key) {
            (None, _) => false,
            // A node is reached at an address and a port.
            (Some(found), NodeProperty::Ip) => {
                let address = found.parse::<SocketAddr>().map(|it| it.ip()).or_else(|_| found.parse());
                address.is_ok_and(|address| network(value).is_some_and(|network| network.contains(&address)))
            }
            (Some(found), _) => found.eq_ignore_ascii_case(value),
        };
        let is_true = match &self.comparison {
            Comparison::Equals(value) => is_one(value),
            Comparison::IsIn(values) => values.iter().any(is_one),
            Comparison::Number(ordering, value) => match (found.map(str::parse::<f64>), value.parse::<f64>()) {
                (Some(Ok(found)), Ok(value)) => match ordering {
                    Ordering::Less => found < value,
                    Ordering::AtMost => found <= value,
                    Ordering::More => found > value,
                    Ordering::AtLeast => found >= value,
                },
                _ => false,
            },
        };
        is_true == self.holds
    }
}

impl Comparison {
    fn values(&self) -> &[String] {
        match self {
            Self::Equals(value) | Self::Number(_, value) => std::slice::from_ref(value),
            Self::IsIn(values) => values,
        }
    }
}

/// Parses `(a, b)`.
fn set(text: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix('(')?.strip_suffix(')')?;
    let values: Vec<String> = inner.split(',').map(|value| value.trim().to_owned()).collect();
    values.iter().all(|value| !value.is_empty() && !value.contains(['(', ')'])).then_some(values)
}

/// Parses an address, or a prefix.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.comparison {
            Comparison::Equals(value) => write!(f, "{key}{}{value}", if self.holds { "==" } else { "!=" }),
            Comparison::IsIn(values) => {
                write!(f, "{key}{}({})", if self.holds { " in " } else { " not in " }, values.join(","))
            }
            Comparison::Number(Ordering::Less, value) => write!(f, "{key}<{value}"),
            Comparison::Number(Ordering::AtMost, value) => write!(f, "{key}<={value}"),
            Comparison::Number(Ordering::More, value) => write!(f, "{key}>{value}"),
            Comparison::Number(Ordering::AtLeast, value) => write!(f, "{key}>={value}"),
        }
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

    fn parsed(text: &str) -> Constraint {
        Constraint::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_constraint_is_written_as_it_is_read() {
        for key in ["id", "hostname", "role", "platform.os", "platform.arch", "labels.zone"] {
            for text in [format!("node.{key}==a b"), format!("node.{key}!=x"), format!("node.{key} not in (a,b c)")] {
                assert_eq!(parsed(&text).to_string(), text);
            }
        }
        for text in ["engine.labels.disk>=100", "node.labels.a<1.5", "node.labels.a>-2", "node.labels.a<=0"] {
            assert_eq!(parsed(text).to_string(), text);
        }
        assert_eq!(parsed("node.ip==2001:db8::/32").to_string(), "node.ip==2001:db8::/32");
        assert_eq!(parsed("node.id ==  a").to_string(), "node.id==a");
        assert_eq!(parsed("node.labels.zone  in ( a , b )").to_string(), "node.labels.zone in (a,b)");
    }

    #[test]
    fn a_constraint_holds_or_not() {
        for (text, found, expected) in [
            ("node.labels.a==x", Some("X"), true),
            ("node.labels.a==x", None, false),
            ("node.labels.a!=x", None, true),
            ("node.labels.a in (x,y)", Some("y"), true),
            ("node.labels.a in (x,y)", Some("z"), false),
            ("node.labels.a in (x,y)", None, false),
            ("node.labels.a not in (x,y)", Some("z"), true),
            ("node.labels.a not in (x,y)", Some("x"), false),
            ("node.labels.a not in (x,y)", None, true),
            ("node.labels.a>9", Some("10"), true),
            ("node.labels.a>9", Some("9"), false),
            ("node.labels.a>=9", Some("9.0"), true),
            ("node.labels.a<9", Some("-1e3"), true),
            ("node.labels.a<=9", Some("9.1"), false),
            ("node.labels.a<9", Some("few"), false),
            ("node.labels.a<9", None, false),
            ("node.ip==192.0.2.7", Some("192.0.2.7:2377"), true),
            ("node.ip==192.0.2.0/24", Some("192.0.2.7:2377"), true),
            ("node.ip!=192.0.2.0/24", Some("192.0.3.7:2377"), true),
            ("node.ip in (192.0.2.1,192.0.3.0/24)", Some("192.0.3.7:2377"), true),
            ("node.ip==2001:db8::/32", Some("[2001:db8::1]:2377"), true),
            ("node.ip==192.0.2.7", Some(""), false),
        ] {
            assert_eq!(parsed(text).accepts(found), expected, "{text} {found:?}");
        }
    }

    #[test]
    fn a_node_is_named_by_its_id_or_hostname() {
        for (text, expected) in [
            ("node.hostname==a", true),
            ("node.id==a", true),
            ("node.id in (a)", true),
            ("node.id in (a,b)", false),
            ("node.hostname!=a", false),
            ("node.hostname not in (a)", false),
            ("node.hostname>1", false),
            ("node.labels.zone==a", false),
        ] {
            assert_eq!(parsed(text).names_node(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_constraint_is_refused() {
        for bad in [
            "node.hostname",
            "node.colour==red",
            "node.labels.==x",
            "engine.labels.==x",
            "node.id==",
            "a=b",
            "node.id==a!=b",
            "node.id in a,b",
            "node.id in ()",
            "node.id in (a,)",
            "node.id in (a",
            "node.labels.a>many",
            "node.labels.a<inf",
            "node.labels.a<NaN",
            "node.ip==here",
            "node.ip in (192.0.2.1,here)",
            "node.ip>1",
        ] {
            assert!(Constraint::parse(bad).is_err(), "{bad}");
        }
    }
}
