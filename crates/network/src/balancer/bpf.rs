//! Virtual addresses by programs that are attached to a control group and act on the processes below it ([`hooks`];
//! bpf(2)). Packets carry the addresses of client and backend only, so neither address translation nor connection tracking
//! is involved. The programs and what they know outlive this process: connections are made while it restarts. The caller
//! says what is so, from its own records; the balancer writes what differs.
//!
//! A change costs one entry of a map for each backend of that virtual address, however many namespaces use it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use super::attachment::{self, AttachedPrograms};
use super::error::{BalancerError, kernel};
use super::pool::{self, Pool};
use super::tables::{self, BACKEND_BYTES, BalancerMaps, NamespaceCookie, NetworkKey, State, VirtualAddress};
use super::{GRACE, Wanted};

/// The balancer of one control group.
#[derive(Debug)]
pub(super) struct BpfBalancer {
    pub(super) tables: BalancerMaps,
    attachment: AttachedPrograms,
    pools: BTreeMap<VirtualAddress, Held>,
    members: BTreeMap<NamespaceCookie, Vec<NetworkKey>>,
    /// Elements that are to be removed, the oldest first.
    retired: VecDeque<Retired>,
    next_generation: u32,
}

/// The elements of a virtual address in the maps.
#[derive(Debug, Default)]
struct Held {
    generation: u32,
    affinity: bool,
    order: Vec<IpAddr>,
}

/// Backends of an old generation.
#[derive(Debug)]
struct Retired {
    due: Instant,
    keys: Vec<[u8; BACKEND_BYTES]>,
}

impl BpfBalancer {
    /// Returns the balancer of a control group, which is a folder of cgroup2. Finds the programs and maps that an earlier
    /// process has left there, and attaches the programs if they are missing or of another version: all of them, or none.
    ///
    /// It acts on sockets that processes open while they are in the group or below it.
    ///
    /// # Errors
    /// The kernel can't do it, or this process may not (it takes CAP_BPF, CAP_NET_ADMIN and write access to the group):
    /// whether a machine can have a balancer is seen here.
    pub(super) fn open(group: &Path, now: Instant) -> Result<Self, BalancerError> {
        let group = attachment::open(group)?;
        let tables = match attachment::find_tables(group.as_fd())? {
            Some(tables) => tables,
            None => BalancerMaps::create().map_err(kernel("create the maps"))?,
        };
        let attachment = AttachedPrograms::load(group, &tables)?;
        attachment.ensure()?;
        let mut balancer = Self {
            tables,
            attachment,
            pools: BTreeMap::new(),
            members: BTreeMap::new(),
            retired: VecDeque::new(),
            next_generation: 0,
        };
        balancer.recover(now).map_err(kernel("read the maps of attached programs"))?;
        Ok(balancer)
    }

    /// Detaches all programs from a control group, of whatever version they are. Their maps go with them. Does nothing
    /// if there are none.
    ///
    /// # Errors
    /// There is no such group, or the kernel refuses.
    pub(super) fn detach(group: &Path) -> Result<(), BalancerError> {
        attachment::detach_all(attachment::open(group)?.as_fd())
    }

    /// Attaches programs again that somebody has detached, and returns how many those were.
    ///
    /// # Errors
    /// The kernel refuses to show or to attach a program.
    pub(super) fn repair(&self) -> Result<usize, BalancerError> {
        self.attachment.ensure()
    }

    /// Reads what an earlier process has written.
    fn recover(&mut self, now: Instant) -> std::io::Result<()> {
        let mut found = BTreeMap::new();
        for (key, value) in self.tables.virtuals.entries()? {
            let state = State::of_value(value);
            self.next_generation = self.next_generation.max(state.generation.wrapping_add(1));
            if let Some(place) = VirtualAddress::of_key(&key) {
                found.insert(place, (state, vec![None; state.count as usize]));
            }
        }
        let mut old = Vec::new();
        for (key, value) in self.tables.backends.entries()? {
            let Some((place, generation, index)) = VirtualAddress::of_backend_key(&key) else { continue };
            self.next_generation = self.next_generation.max(generation.wrapping_add(1));
            let current = found.get_mut(&place).filter(|(state, _)| state.generation == generation);
            match current.and_then(|(_, order)| order.get_mut(index as usize)) {
                Some(entry) => *entry = Some(tables::address(value)),
                None => old.push(key),
            }
        }
        self.retire(old, now);
        for (place, (State { generation, affinity, .. }, order)) in found {
            // Nothing writes such an entry before all its backends. Without it, the next call writes it anew.
            match order.into_iter().collect() {
                Some(order) => drop(self.pools.insert(place, Held { generation, affinity, order })),
                None => self.tables.virtuals.remove(&place.key())?,
            }
        }
        for (key, _) in self.tables.requests.entries()? {
            if VirtualAddress::of_key(&key).is_none_or(|place| !self.pools.contains_key(&place)) {
                self.tables.requests.remove(&key)?;
            }
        }
        for (key, value) in self.tables.members.entries()? {
            self.members.insert(NamespaceCookie(u64::from_ne_bytes(key)), tables::networks(&value));
        }
        Ok(())
    }

    /// Sets the backends of a virtual address. Connections that exist stay where they are; see
    /// [`Sockets::abort_to`]. An address without backends refuses connections.
    ///
    /// # Errors
    /// A backend is of the other IP version, or the kernel refuses, for example because a map is full. The address then
    /// has the backends that it had.
    pub(super) fn set(&mut self, place: VirtualAddress, pool: &Pool, now: Instant) -> Result<(), BalancerError> {
        let VirtualAddress { network, address } = place;
        let held = self.pools.get(&place);
        let last = held.map_or(&[][..], |held| &held.order);
        let order = pool::arrange(last, &pool.backends);
        if held.is_some_and(|held| held.order == order && held.affinity == pool.affinity) {
            return Ok(());
        }
        let act = || kernel(format!("set the backends of {address} in the network {}", network.0));
        self.sweep(now)?;
        let new = Held { generation: self.next_generation, affinity: pool.affinity, order };
        self.next_generation = self.next_generation.wrapping_add(1);
        if let Err(error) = self.write(place, &new) {
            // Also removes them later if the kernel refuses it now.
            self.retire(new.keys(place), now);
            return Err(act()(error));
        }
        if let Some(old) = self.pools.insert(place, new) {
            self.retire(old.keys(place), now);
        }
        Ok(())
    }

    fn write(&self, place: VirtualAddress, new: &Held) -> std::io::Result<()> {
        let values: Vec<_> = new.order.iter().map(|backend| tables::octets(*backend)).collect();
        self.tables.backends.set_all(&new.keys(place), &values)?;
        if !self.pools.contains_key(&place) {
            self.tables.requests.set(&place.key(), &[0; 8])?;
        }
        let state = State { generation: new.generation, count: values.len() as u32, affinity: new.affinity };
        self.tables.virtuals.set(&place.key(), &state.value())
    }

    /// Makes an address an ordinary one again. Does nothing if it is not virtual.
    ///
    /// # Errors
    /// The kernel refuses to remove the address or old backends from the maps.
    pub(super) fn remove(&mut self, place: VirtualAddress, now: Instant) -> Result<(), BalancerError> {
        let Some(held) = self.pools.get(&place) else { return Ok(()) };
        let keys = held.keys(place);
        let removed =
            self.tables.virtuals.remove(&place.key()).and_then(|()| self.tables.requests.remove(&place.key()));
        removed.map_err(kernel(format!("remove the virtual address {}", place.address)))?;
        self.pools.remove(&place);
        self.retire(keys, now);
        self.sweep(now).map(drop)
    }

    /// Lets a namespace use the virtual addresses of these networks and of no others. An address that is virtual in
    /// several of them is looked up in the first of those.
    ///
    /// # Errors
    /// There are more than [`MOST_NETWORKS`], or the kernel refuses.
    pub(super) fn join(&mut self, namespace: NamespaceCookie, networks: &[NetworkKey]) -> Result<(), BalancerError> {
        if self.members.get(&namespace).is_none_or(|held| held != networks) {
            let set = self.tables.members.set(&namespace.0.to_ne_bytes(), &tables::member(networks));
            set.map_err(kernel("add a namespace to its networks"))?;
            self.members.insert(namespace, networks.to_vec());
        }
        Ok(())
    }

    /// Lets a namespace use no virtual address any more.
    ///
    /// # Errors
    /// The kernel refuses to remove the namespace from the map.
    pub(super) fn leave(&mut self, namespace: NamespaceCookie) -> Result<(), BalancerError> {
        let removed = self.tables.members.remove(&namespace.0.to_ne_bytes());
        removed.map_err(kernel("remove a namespace from its networks"))?;
        self.members.remove(&namespace);
        Ok(())
    }

    /// Makes all virtual addresses and members what the caller says. Writes only what differs, so no connection that is
    /// being made is disturbed.
    ///
    /// # Errors
    /// One of the changes failed; the others are made.
    pub(super) fn reconcile(&mut self, wanted: &Wanted, now: Instant) -> Result<(), BalancerError> {
        let surplus: Vec<_> = self.pools.keys().filter(|place| !wanted.pools.contains_key(place)).copied().collect();
        let foreign: Vec<_> = self.members.keys().filter(|it| !wanted.members.contains_key(it)).copied().collect();
        let mut results = Vec::new();
        results.extend(surplus.into_iter().map(|place| self.remove(place, now)));
        results.extend(wanted.pools.iter().map(|(place, pool)| self.set(*place, pool, now)));
        results.extend(foreign.into_iter().map(|namespace| self.leave(namespace)));
        results.extend(wanted.members.iter().map(|(namespace, networks)| self.join(*namespace, networks)));
        results.into_iter().collect()
    }

    /// Returns the backends of a virtual address, as the programs find them in the maps.
    ///
    /// # Errors
    /// The kernel refuses to read the maps.
    pub(super) fn backends(&self, place: VirtualAddress) -> Result<BTreeSet<IpAddr>, BalancerError> {
        let act = || kernel("read the backends of a virtual address");
        let Some(state) = self.tables.virtuals.get(&place.key()).map_err(act())?.map(State::of_value) else {
            return Ok(BTreeSet::new());
        };
        let keys = (0..state.count).map(|index| place.backend_key(state.generation, index));
        let found = keys.map(|key| self.tables.backends.get(&key).map_err(act()));
        found.filter_map(|it| it.map(|it| it.map(tables::address)).transpose()).collect()
    }

    /// Returns how often a connection to a virtual address, or a datagram without a connection, got a backend.
    ///
    /// # Errors
    /// The kernel refuses to read the map.
    pub(super) fn requests(&self, place: VirtualAddress) -> Result<u64, BalancerError> {
        let count = self.tables.requests.get(&place.key()).map_err(kernel("read the number of requests"))?;
        Ok(count.map_or(0, u64::from_ne_bytes))
    }

    /// Removes what has been replaced more than a second ago, and returns when there is more to remove. Every change
    /// does it too, so a late call costs memory only.
    ///
    /// # Errors
    /// The kernel refuses to remove old backends from the map.
    pub(super) fn sweep(&mut self, now: Instant) -> Result<Option<Instant>, BalancerError> {
        while let Some(oldest) = self.retired.front().filter(|oldest| oldest.due <= now) {
            self.tables.backends.remove_all(&oldest.keys).map_err(kernel("remove old backends"))?;
            self.retired.pop_front();
        }
        Ok(self.retired.front().map(|oldest| oldest.due))
    }

    fn retire(&mut self, keys: Vec<[u8; BACKEND_BYTES]>, now: Instant) {
        if !keys.is_empty() {
            self.retired.push_back(Retired { due: now + GRACE, keys });
        }
    }
}

impl Held {
    /// Returns the keys of the backends.
    fn keys(&self, place: VirtualAddress) -> Vec<[u8; BACKEND_BYTES]> {
        (0..).zip(&self.order).map(|(index, _)| place.backend_key(self.generation, index)).collect()
    }
}
