//! Keeps the tables of this crate in a namespace as they should be: sends differences, and mends what someone else has
//! changed.
//!
//! The kernel counts the transactions in a namespace. As long as the count rises only by what is sent here, nobody else
//! has changed anything, and nothing needs to be read. Otherwise the tables are read and compared with what they should
//! contain; if they differ, all of them are written anew in one transaction, which interrupts no connection.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::attributes::{self, Attributes};
use super::expression::{Verdict, counted};
use super::messages::{GET_CHAIN, GET_ELEMENT, GET_GENERATION, GET_RULE, GET_SET, Transaction, comment};
use super::ruleset::{Chain, Change, Data, Family, Ruleset, Table};
use super::socket::{Message, NFTABLES, Socket};
use crate::error::NetworkError;
use crate::namespace::Namespace;

/// The name of this crate's tables, but for those of [`PORTS`]. Tables of other names are never touched.
const TABLE: &str = "flota";
/// The name of the tables that guard the ports of bridges, beside other tables of this crate in the same namespace.
pub(crate) const PORTS: &str = "flota-ports";
/// How the kernel names the sets that belong to a rule.
const LIST_PREFIX: &str = "__";
const GOTO: i32 = -4;

/// The tables of this crate in a namespace.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Their name.
    table: &'static str,
    socket: Socket,
    ruleset: Ruleset,
    /// The kernel's count of transactions when its tables were last known to be right.
    generation: Option<u32>,
}

impl Tables {
    /// Opens the tables of a namespace, which should contain `ruleset`. What is there already stays untouched if it is
    /// right, and is otherwise replaced.
    ///
    /// # Errors
    /// There is no such namespace, or the kernel refuses.
    pub(crate) fn open(namespace: &Namespace, ruleset: Ruleset) -> Result<Self, NetworkError> {
        let mut tables = Self::unread(namespace, TABLE, ruleset)?;
        tables.mend()?;
        Ok(tables)
    }

    /// Opens the tables of this name in a namespace, without looking at what is there: `ruleset` is not complete yet.
    ///
    /// # Errors
    /// There is no such namespace.
    pub(crate) fn unread(namespace: &Namespace, table: &'static str, ruleset: Ruleset) -> Result<Self, NetworkError> {
        Ok(Self { table, socket: Socket::open(namespace)?, ruleset, generation: None })
    }

    /// Puts a chain in the place of whatever the kernel has of this name.
    ///
    /// # Errors
    /// The kernel refuses. Then nothing has changed.
    pub(crate) fn put_chain(&mut self, family: Family, name: String, chain: Chain) -> Result<(), NetworkError> {
        let transaction = Transaction::chain(self.table, family, &name, &chain);
        self.socket.transact("change the packet filter", transaction.messages())?;
        self.ruleset.entry(family).or_default().chains.insert(name, chain);
        self.count_transaction()
    }

    /// Removes a chain that nothing leads to, if it is there.
    ///
    /// # Errors
    /// The kernel refuses. Then nothing has changed.
    pub(crate) fn remove_chain(&mut self, family: Family, name: &str) -> Result<(), NetworkError> {
        let transaction = Transaction::chain_removal(self.table, &[(family, name.to_owned())]);
        match self.socket.transact("change the packet filter", transaction.messages()) {
            Err(error) if error.refusal() == Some(Errno::ENOENT) => {}
            removed => removed?,
        }
        self.ruleset.entry(family).or_default().chains.remove(name);
        self.count_transaction()
    }

    /// Removes the tables of a namespace. Does nothing if there are none.
    ///
    /// # Errors
    /// There is no such namespace, or the kernel refuses.
    pub(crate) fn remove(namespace: &Namespace) -> Result<(), NetworkError> {
        Socket::open(namespace)?.transact("remove the packet filter's tables", Transaction::removal(TABLE).messages())
    }

    /// Makes changes, as one transaction.
    ///
    /// # Errors
    /// The kernel refuses. Then nothing has changed.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Result<(), NetworkError> {
        let transaction = Transaction::difference(self.table, &self.ruleset, &changes);
        match self.socket.transact("change the packet filter", transaction.messages()) {
            Ok(()) => {
                changes.into_iter().for_each(|change| change.apply(&mut self.ruleset));
                if !transaction.messages().is_empty() {
                    self.count_transaction()?;
                }
                Ok(())
            }
            // Someone else has removed what the changes build on.
            Err(error) if error.refusal() == Some(Errno::ENOENT) => {
                let mut ruleset = self.ruleset.clone();
                changes.into_iter().for_each(|change| change.apply(&mut ruleset));
                self.replace(ruleset)
            }
            Err(error) => Err(error),
        }
    }

    /// Puts another ruleset in the place of this one, as one transaction.
    ///
    /// # Errors
    /// The kernel refuses. Then nothing has changed.
    pub(crate) fn replace(&mut self, ruleset: Ruleset) -> Result<(), NetworkError> {
        let transaction = Transaction::rewrite(self.table, &ruleset);
        self.generation = Some(self.kernel_generation()?);
        self.socket.transact("write the packet filter's tables", transaction.messages())?;
        self.ruleset = ruleset;
        self.count_transaction()
    }

    /// Compares the kernel's tables with what they should contain, and writes them anew if they differ. Returns whether
    /// they did.
    ///
    /// # Errors
    /// The kernel refuses to list a table or to write it anew.
    pub(crate) fn mend(&mut self) -> Result<bool, NetworkError> {
        let generation = self.kernel_generation()?;
        if self.generation == Some(generation) {
            return Ok(false);
        }
        let (mut differs, mut left) = (false, Vec::new());
        for family in [Family::Inet, Family::Netdev] {
            let wanted = self.ruleset.get(&family).map(Contents::of).unwrap_or_default();
            let mut found = self.read(family)?;
            // An earlier process may have left chains that nothing leads to. They are removed without writing anything anew.
            let unknown = |name: &String, (hook, _): &mut (bool, _)| !*hook && !wanted.chains.contains_key(name);
            left.extend(found.chains.extract_if(.., unknown).map(|(name, _)| (family, name)));
            differs |= found != wanted;
        }
        if differs {
            self.replace(self.ruleset.clone())?;
        } else if left.is_empty() {
            self.generation = Some(generation);
        } else {
            let removal = Transaction::chain_removal(self.table, &left);
            self.socket.transact("remove chains that nothing leads to", removal.messages())?;
        }
        Ok(differs)
    }

    /// Returns how many packets the rules of a chain have counted.
    ///
    /// # Errors
    /// The kernel refuses to list the rules.
    pub(crate) fn counted(&mut self, family: Family, chain: &str) -> Result<u64, NetworkError> {
        let rules = self.list(GET_RULE, family, Attributes::new().text(1, self.table).text(2, chain))?;
        // Older kernels list the rules of all chains.
        let of_chain = rules.iter().filter(|rule| self.has(rule) && text_of(rule, 2) == chain);
        Ok(of_chain.filter_map(|rule| counted(attributes::find(rule, 4)?)).sum())
    }

    /// Notes that a transaction has been made. If it was not the only one since the last time, the next comparison reads
    /// the tables.
    fn count_transaction(&mut self) -> Result<(), NetworkError> {
        let now = self.kernel_generation()?;
        self.generation = self.generation.map(|before| before.wrapping_add(1)).filter(|expected| *expected == now);
        Ok(())
    }

    fn kernel_generation(&mut self) -> Result<u32, NetworkError> {
        let request = request(GET_GENERATION, 0, Attributes::new());
        let answer = self.socket.get("count the packet filter's transactions", &request)?;
        Ok(attributes::find(&answer, 1).and_then(number).unwrap_or_default())
    }

    fn read(&mut self, family: Family) -> Result<Contents, NetworkError> {
        let mut contents = Contents::default();
        let name = self.table;
        let table = || Attributes::new().text(1, name);
        for chain in self.list(GET_CHAIN, family, table())? {
            if self.has(&chain) {
                let hook = attributes::find(&chain, 4).is_some();
                contents.chains.insert(text_of(&chain, 3), (hook, Vec::new()));
            }
        }
        for rule in self.list(GET_RULE, family, table())? {
            if let Some((_, rules)) = contents.chains.get_mut(&text_of(&rule, 2)).filter(|_| self.has(&rule)) {
                rules.push(attributes::find(&rule, 7).unwrap_or_default().to_vec());
            }
        }
        for set in self.list(GET_SET, family, table())? {
            let name = text_of(&set, 2);
            if self.has(&set) && !name.starts_with(LIST_PREFIX) {
                contents.sets.insert(name, BTreeMap::new());
            }
        }
        for (name, elements) in &mut contents.sets {
            for answer in self.socket.list(READ, &request(GET_ELEMENT, family as u8, table().text(2, name)))? {
                let listed = attributes::find(&answer, 3).unwrap_or_default();
                elements.extend(attributes::read(listed).filter_map(|(_, element)| read_element(element)));
            }
        }
        Ok(contents)
    }

    /// Whether an object is in the table. Older kernels list the objects of all tables, whatever is asked for.
    fn has(&self, object: &[u8]) -> bool {
        text_of(object, 1) == self.table
    }

    /// Lists objects of the table. Returns none if there is no such table.
    fn list(&mut self, kind: u16, family: Family, attributes: Attributes) -> Result<Vec<Vec<u8>>, NetworkError> {
        match self.socket.list(READ, &request(kind, family as u8, attributes)) {
            Err(error) if error.refusal() == Some(Errno::ENOENT) => Ok(Vec::new()),
            result => result,
        }
    }
}

const READ: &str = "read the packet filter's tables";

fn request(kind: u16, family: u8, attributes: Attributes) -> Message {
    Message { kind: NFTABLES | kind, flags: 0, family, attributes }
}

fn text_of(object: &[u8], kind: u16) -> String {
    attributes::find(object, kind).map(attributes::text).unwrap_or_default()
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// The parts of a table that are compared with the kernel's.
#[derive(Debug, Default, Eq, PartialEq)]
struct Contents {
    /// Whether each chain has a hook, and the comments of its rules, which identify them.
    chains: BTreeMap<String, (bool, Vec<Vec<u8>>)>,
    sets: BTreeMap<String, BTreeMap<Vec<u8>, Data>>,
}

impl Contents {
    fn of(table: &Table) -> Self {
        let chains = table
            .chains
            .iter()
            .map(|(name, chain)| (name.clone(), (chain.hook.is_some(), chain.rules.iter().map(comment).collect())));
        let sets = table.sets.iter().map(|(name, set)| (name.clone(), set.elements.clone()));
        Self { chains: chains.collect(), sets: sets.collect() }
    }
}

fn read_element(element: &[u8]) -> Option<(Vec<u8>, Data)> {
    let key = attributes::find(attributes::find(element, 1)?, 1)?.to_vec();
    let Some(data) = attributes::find(element, 2) else { return Some((key, Data::Absent)) };
    if let Some(value) = attributes::find(data, 1) {
        return Some((key, Data::Value(value.to_vec())));
    }
    let verdict = attributes::find(data, 2)?;
    let code = number(attributes::find(verdict, 1)?)?.cast_signed();
    let verdict = match code {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        GOTO => Verdict::Goto(text_of(verdict, 2)),
        _ => return None,
    };
    Some((key, Data::Verdict(verdict)))
}
