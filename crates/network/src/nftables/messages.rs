//! The messages that change tables, and how a transaction is built from a difference (linux/netfilter/nf_tables.h).

use netlink_packet_core::NLM_F_CREATE;

use super::attributes::Attributes;
use super::expression::ListReference;
use super::ruleset::{Chain, ChainHook, Change, Data, Family, HookKind, Kind, Point, Rule, Ruleset, Set, Table};
use super::socket::{Message, NFTABLES};
use crate::mac::fnv_1a;

pub(crate) const NEW_TABLE: u16 = 0;
pub(crate) const DELETE_TABLE: u16 = 2;
pub(crate) const NEW_CHAIN: u16 = 3;
pub(crate) const GET_CHAIN: u16 = 4;
pub(crate) const DELETE_CHAIN: u16 = 5;
pub(crate) const NEW_RULE: u16 = 6;
pub(crate) const GET_RULE: u16 = 7;
pub(crate) const DELETE_RULE: u16 = 8;
pub(crate) const NEW_SET: u16 = 9;
pub(crate) const GET_SET: u16 = 10;
pub(crate) const NEW_ELEMENT: u16 = 12;
pub(crate) const GET_ELEMENT: u16 = 13;
pub(crate) const DELETE_ELEMENT: u16 = 14;
pub(crate) const GET_GENERATION: u16 = 16;

const APPEND: u16 = 0x800;
/// The numbered names that the kernel gives to sets which belong to a rule.
const LIST_NAME: &str = "__map%d";
const ANONYMOUS: u32 = 1;
const CONSTANT: u32 = 1 << 1;
const MAP: u32 = 1 << 3;
/// An attribute has at most 64 KiB, an element less than 200 bytes.
const ELEMENTS_AT_ONCE: usize = 300;

/// Collects the messages of a transaction.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// The name of the tables that it changes.
    table: &'static str,
    messages: Vec<Message>,
    lists: u32,
}

impl Transaction {
    pub(crate) fn messages(&self) -> &[Message] {
        &self.messages
    }

    fn of(table: &'static str) -> Self {
        Self { table, messages: Vec::new(), lists: 0 }
    }

    /// Puts a ruleset in the place of all tables of this name.
    pub(crate) fn rewrite(table: &'static str, ruleset: &Ruleset) -> Self {
        let mut transaction = Self::removal(table);
        for (family, content) in ruleset {
            transaction.push(NEW_TABLE, NLM_F_CREATE, *family, transaction.of_table());
            transaction.add_table(*family, content);
        }
        transaction
    }

    /// Removes all tables of this name.
    pub(crate) fn removal(table: &'static str) -> Self {
        let mut transaction = Self::of(table);
        for family in [Family::Inet, Family::Netdev] {
            // A table that does not exist can't be removed.
            transaction.push(NEW_TABLE, NLM_F_CREATE, family, transaction.of_table());
            transaction.push(DELETE_TABLE, 0, family, transaction.of_table());
        }
        transaction
    }

    /// Removes chains that nothing leads to.
    pub(crate) fn chain_removal(table: &'static str, chains: &[(Family, String)]) -> Self {
        let mut transaction = Self::of(table);
        for (family, name) in chains {
            transaction.push(DELETE_CHAIN, 0, *family, transaction.of_table().text(3, name));
        }
        transaction
    }

    /// Puts a chain in the place of one of this name, if there is one.
    pub(crate) fn chain(table: &'static str, family: Family, name: &str, chain: &Chain) -> Self {
        let mut transaction = Self::of(table);
        transaction.push(NEW_TABLE, NLM_F_CREATE, family, transaction.of_table());
        transaction.add_chain(family, name, chain);
        transaction.push(DELETE_RULE, 0, family, transaction.of_table().text(2, name));
        transaction.add_rules(family, name, chain);
        transaction
    }

    /// Makes those changes of `changes` that change something in `ruleset`.
    pub(crate) fn difference(table: &'static str, ruleset: &Ruleset, changes: &[Change]) -> Self {
        let mut transaction = Self::of(table);
        // Elements refer to chains: they go before their chains go, and come after their chains have come.
        transaction.remove_elements(ruleset, changes);
        transaction.change_chains(ruleset, changes);
        transaction.add_elements(ruleset, changes);
        transaction
    }

    fn of_table(&self) -> Attributes {
        Attributes::new().text(1, self.table)
    }

    fn remove_elements(&mut self, ruleset: &Ruleset, changes: &[Change]) {
        for change in changes {
            let Change::Element { family, set, key, data } = change else { continue };
            let old = ruleset.get(family).and_then(|table| table.sets.get(set)?.elements.get(key));
            if let Some(old) = old.filter(|old| Some(*old) != data.as_ref()) {
                self.elements(DELETE_ELEMENT, 0, *family, set, &[(key, old)]);
            }
        }
    }

    fn change_chains(&mut self, ruleset: &Ruleset, changes: &[Change]) {
        for change in changes {
            let Change::Chain { family, name, chain } = change else { continue };
            let old = ruleset.get(family).and_then(|table| table.chains.get(name));
            match (old, chain) {
                (Some(old), Some(new)) if old == new => {}
                (Some(_), Some(new)) => {
                    self.push(DELETE_RULE, 0, *family, self.of_table().text(2, name));
                    self.add_rules(*family, name, new);
                }
                (Some(_), None) => self.push(DELETE_CHAIN, 0, *family, self.of_table().text(3, name)),
                (None, Some(new)) => {
                    self.add_chain(*family, name, new);
                    self.add_rules(*family, name, new);
                }
                (None, None) => {}
            }
        }
    }

    fn add_elements(&mut self, ruleset: &Ruleset, changes: &[Change]) {
        for change in changes {
            let Change::Element { family, set, key, data: Some(data) } = change else { continue };
            let old = ruleset.get(family).and_then(|table| table.sets.get(set)?.elements.get(key));
            if old != Some(data) {
                self.elements(NEW_ELEMENT, NLM_F_CREATE, *family, set, &[(key, data)]);
            }
        }
    }

    fn add_table(&mut self, family: Family, table: &Table) {
        for (name, chain) in &table.chains {
            self.add_chain(family, name, chain);
        }
        for (name, set) in &table.sets {
            self.add_set(family, name, set);
            let elements: Vec<_> = set.elements.iter().collect();
            for elements in elements.chunks(ELEMENTS_AT_ONCE) {
                self.elements(NEW_ELEMENT, NLM_F_CREATE, family, name, elements);
            }
        }
        for (name, chain) in &table.chains {
            self.add_rules(family, name, chain);
        }
    }

    fn add_chain(&mut self, family: Family, name: &str, chain: &Chain) {
        let mut attributes = self.of_table().text(3, name);
        if let Some(hook) = &chain.hook {
            attributes = attributes.nested(4, &hook.encode()).text(7, hook.kind.name());
        }
        self.push(NEW_CHAIN, NLM_F_CREATE, family, attributes);
    }

    fn add_set(&mut self, family: Family, name: &str, set: &Set) {
        let flags = if set.data.is_some() { MAP } else { 0 };
        self.lists += 1;
        self.push(
            NEW_SET,
            NLM_F_CREATE,
            family,
            describe_set(self.table, name, flags, (set.key, set.data), self.lists),
        );
    }

    fn add_rules(&mut self, family: Family, chain: &str, new: &Chain) {
        for rule in &new.rules {
            self.lists += 1;
            let list = ListReference { name: LIST_NAME, number: self.lists };
            if let Some((kind, entries)) = &rule.list {
                let kinds = (Kind::NUMBER, Some(*kind));
                let set = describe_set(self.table, LIST_NAME, ANONYMOUS | CONSTANT | MAP, kinds, list.number);
                self.push(NEW_SET, NLM_F_CREATE, family, set);
                self.list_entries(family, list, entries);
            }
            let attributes = self.of_table().text(2, chain).nested(4, &rule.encode(list));
            self.push(NEW_RULE, NLM_F_CREATE | APPEND, family, attributes.bytes(7, &comment(rule)));
        }
    }

    fn list_entries(&mut self, family: Family, list: ListReference, entries: &[Vec<u8>]) {
        let numbered: Vec<_> = (0_u32..).zip(entries).map(|(number, entry)| (number.to_ne_bytes(), entry)).collect();
        for entries in numbered.chunks(ELEMENTS_AT_ONCE) {
            let elements = entries.iter().fold(Attributes::new(), |all, (number, entry)| {
                all.nested(1, &element(number, &Data::Value((*entry).clone())))
            });
            let attributes = self.of_table().text(2, list.name).number(4, list.number);
            self.push(NEW_ELEMENT, NLM_F_CREATE, family, attributes.nested(3, &elements));
        }
    }

    fn elements(&mut self, kind: u16, flags: u16, family: Family, set: &str, elements: &[(&Vec<u8>, &Data)]) {
        let elements = elements.iter().fold(Attributes::new(), |all, (key, data)| all.nested(1, &element(key, data)));
        let attributes = self.of_table().text(2, set).nested(3, &elements);
        self.push(kind, flags, family, attributes);
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, attributes: Attributes) {
        self.messages.push(Message { kind: NFTABLES | kind, flags, family: family as u8, attributes });
    }
}

fn describe_set(table: &str, name: &str, flags: u32, (key, data): (Kind, Option<Kind>), number: u32) -> Attributes {
    let attributes = Attributes::new().text(1, table).text(2, name).number(3, flags);
    let attributes = attributes.number(4, key.code).number(5, key.length).number(10, number);
    match data {
        Some(data) => attributes.number(6, data.code).number(7, data.length),
        None => attributes,
    }
}

fn element(key: &[u8], data: &Data) -> Attributes {
    let element = Attributes::new().nested(1, &Attributes::new().bytes(1, key));
    match data {
        Data::Absent => element,
        Data::Value(value) => element.nested(2, &Attributes::new().bytes(1, value)),
        Data::Verdict(verdict) => element.nested(2, &verdict.encode()),
    }
}

/// Returns what identifies a rule when it is read back: a comment that `nft list` shows, with a hash of the rule. The
/// kernel returns expressions in another form than it takes them.
pub(crate) fn comment(rule: &Rule) -> Vec<u8> {
    let text = format!("flota {:016x}\0", fnv_1a(&bytes_of(rule)));
    // A record of the kind "comment" (0), with its length (libnftnl, udata.h).
    [&[0, u8::try_from(text.len()).unwrap_or(u8::MAX)], text.as_bytes()].concat()
}

/// A rule as it is sent, apart from the number of its list in the transaction.
fn bytes_of(rule: &Rule) -> Vec<u8> {
    let mut bytes = rule.encode(ListReference { name: LIST_NAME, number: 0 }).as_bytes().to_vec();
    bytes.extend(rule.list.iter().flat_map(|(_, entries)| entries).flatten());
    bytes
}

impl Chain {
    /// Returns a hash of the rules, the same on every machine.
    pub(crate) fn hash(&self) -> u64 {
        fnv_1a(&self.rules.iter().flat_map(bytes_of).collect::<Vec<_>>())
    }
}

impl ChainHook {
    fn encode(&self) -> Attributes {
        let number = match self.point {
            Point::Prerouting | Point::Ingress(_) => 0,
            Point::Input | Point::Egress(_) => 1,
            Point::Forward => 2,
            Point::Output => 3,
            Point::Postrouting => 4,
        };
        let hook = Attributes::new().number(1, number).number(2, self.priority.cast_unsigned());
        match &self.point {
            Point::Ingress(interface) | Point::Egress(interface) => hook.text(3, interface),
            _ => hook,
        }
    }
}

impl HookKind {
    fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}
