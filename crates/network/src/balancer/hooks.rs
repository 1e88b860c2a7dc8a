//! The programs, and the hooks at which the kernel runs them.
//!
//! `connect4` and `sendmsg4` (and the same for IPv6) replace a virtual address by the address of a backend when a socket
//! connects, or sends a datagram without being connected. `recvmsg4` and `peername4` replace the backend's address by
//! the virtual one again where a program is told who its peer is. Ports stay as they are.
//!
//! Nothing is replaced for a socket of a namespace that has not joined the balancer, nor for an address that is not
//! virtual in a network of the namespace. A connection to a virtual address without backends is refused (ECONNREFUSED).
//! ICMP is never redirected.
//!
//! A connection goes to a random backend. With affinity, all connections of a namespace to one virtual address go to the
//! same backend; without a connection, all datagrams of a socket do. Those choices follow from a number by a hash that
//! moves few of them when the list changes ("jump hash", Lamping and Veach, 2014, arXiv:1406.2294).

use std::os::fd::AsFd;

use super::assembler::{
    Assembler, BpfRegister, Condition, Function, Instruction, Label, Operation, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9,
    STACK, Width,
};
use super::program::Hook;
use super::tables::{AFFINITY, BalancerMaps, MOST_NETWORKS};

/// The IP version of the address that a program is called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Four,
    /// Sockets of IPv6 also use IPv4, with mapped addresses.
    Six,
}

/// The system calls for which a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// A socket connects.
    Connect,
    /// A socket that is not connected sends a datagram.
    Send,
    /// A program is told the address of its peer.
    Tell,
}

/// A program and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entrance {
    /// The name, by which the program is found again.
    pub(super) name: &'static str,
    pub(super) hook: Hook,
    version: Version,
    occasion: Occasion,
}

const fn entrance(name: &'static str, hook: u32, version: Version, occasion: Occasion) -> Entrance {
    Entrance { name, hook: Hook(hook), version, occasion }
}

/// All programs, in the order in which they are attached: a virtual address is used only when it can be told.
pub(super) const ENTRANCES: [Entrance; 8] = [
    entrance("flota_recvmsg4", 19, Version::Four, Occasion::Tell),
    entrance("flota_recvmsg6", 20, Version::Six, Occasion::Tell),
    entrance("flota_peername4", 29, Version::Four, Occasion::Tell),
    entrance("flota_peername6", 30, Version::Six, Occasion::Tell),
    entrance("flota_sendmsg4", 14, Version::Four, Occasion::Send),
    entrance("flota_sendmsg6", 15, Version::Six, Occasion::Send),
    entrance("flota_connect4", 10, Version::Four, Occasion::Connect),
    entrance("flota_connect6", 11, Version::Six, Occasion::Connect),
];

// Fields of struct bpf_sock_addr.
const ADDRESS_4: i16 = 4;
const ADDRESS_6: i16 = 8;
const PROTOCOL: i16 = 36;

// The stack: a key of `backends` (and its beginning, one of `virtuals` and `requests`), one of `asked`, and one of
// `members`.
const NETWORK: i16 = -40;
const ADDRESS: i16 = -32;
const GENERATION: i16 = -16;
const INDEX: i16 = -12;
const NAMESPACE: i16 = -8;
const SOCKET: i16 = -64;
const BACKEND: i16 = -56;

const CONTEXT: BpfRegister = R6;

/// How often a generation is read that has just been removed before the connection is refused.
const TRIES: i32 = 3;
/// Bound of a loop that takes about as many rounds as the logarithm of the number of backends.
const ROUNDS: i32 = 32;
/// Results of a program.
const REFUSE: i32 = 0;
const PROCEED: i32 = 1;

impl Entrance {
    /// Returns the program, which reads and writes these maps.
    pub(super) fn program(&self, tables: &BalancerMaps) -> Vec<Instruction> {
        let mut program = Assembler::default();
        program.apply_register(Operation::Set, CONTEXT, R1);
        match self.occasion {
            Occasion::Connect | Occasion::Send => self.redirect(&mut program, tables),
            Occasion::Tell => self.tell(&mut program, tables),
        }
        program.finish()
    }

    /// Writes the address of the context to the stack.
    fn read_address(&self, program: &mut Assembler, to: i16) {
        match self.version {
            Version::Four => {
                program.store_word(STACK, to, 0);
                program.store_word(STACK, to + 4, 0);
                program.store_word(STACK, to + 8, i32::from_ne_bytes([0, 0, 0xff, 0xff]));
                program.load(Width::Word, R1, CONTEXT, ADDRESS_4);
                program.store(Width::Word, STACK, to + 12, R1);
            }
            Version::Six => {
                for at in [0, 4, 8, 12] {
                    program.load(Width::Word, R1, CONTEXT, ADDRESS_6 + at);
                    program.store(Width::Word, STACK, to + at, R1);
                }
            }
        }
    }

    /// Sets the address of the context from memory.
    fn write_address(&self, program: &mut Assembler, base: BpfRegister, from: i16) {
        let words: &[(i16, i16)] = match self.version {
            Version::Four => &[(12, ADDRESS_4)],
            Version::Six => &[(0, ADDRESS_6), (4, ADDRESS_6 + 4), (8, ADDRESS_6 + 8), (12, ADDRESS_6 + 12)],
        };
        for (at, field) in words {
            program.load(Width::Word, R1, base, from + at);
            program.store(Width::Word, CONTEXT, *field, R1);
        }
    }

    fn redirect(&self, program: &mut Assembler, tables: &BalancerMaps) {
        let [untouched, found, unlisted, refused] = [(); 4].map(|()| program.label());
        for icmp in [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6] {
            program.load(Width::Word, R1, CONTEXT, PROTOCOL);
            program.jump_if(R1, Condition::Equal, icmp, untouched);
        }
        cookie(program, Function::NamespaceCookie, NAMESPACE);
        look_up(program, &tables.members, NAMESPACE);
        program.jump_if(R0, Condition::Equal, 0, untouched);
        program.apply_register(Operation::Set, R7, R0);
        cookie(program, Function::SocketCookie, SOCKET);
        self.read_address(program, ADDRESS);

        search_networks(program, tables, found, unlisted);
        program.place(found);
        self.select(program, tables, unlisted, refused);

        copy_address(program, R0, 0, BACKEND);
        program.set_map(R1, tables.asked.as_fd());
        program.point_to_stack(R2, SOCKET);
        program.point_to_stack(R3, ADDRESS);
        program.apply(Operation::Set, R4, 0);
        program.call(Function::MapUpdate);
        let counted = program.label();
        look_up(program, &tables.requests, NETWORK);
        program.jump_if(R0, Condition::Equal, 0, counted);
        program.apply(Operation::Set, R1, 1);
        program.add_to_memory(R0, 0, R1);
        program.place(counted);
        self.write_address(program, STACK, BACKEND);
        program.exit(PROCEED);

        // A socket that once asked for a virtual address may now use its backend directly.
        program.place(unlisted);
        copy_address(program, STACK, ADDRESS, BACKEND);
        program.set_map(R1, tables.asked.as_fd());
        program.point_to_stack(R2, SOCKET);
        program.call(Function::MapDelete);
        program.place(untouched);
        program.exit(PROCEED);

        program.place(refused);
        program.apply(Operation::Set, R1, -libc::ECONNREFUSED);
        program.call(Function::SetReturnValue);
        program.exit(REFUSE);
    }

    /// Makes R0 point to a backend. It points to the value of `virtuals` before.
    fn select(&self, program: &mut Assembler, tables: &BalancerMaps, unlisted: Label, refused: Label) {
        let [again, sticky, chosen, selected] = [(); 4].map(|()| program.label());
        program.apply(Operation::Set, R7, TRIES);
        program.place(again);
        program.load(Width::Double, R8, R0, 0);
        program.store(Width::Word, STACK, GENERATION, R8);
        program.apply(Operation::ShiftRight, R8, 32);
        program.apply_register(Operation::Set, R9, R8);
        program.apply(Operation::ShiftRight, R9, AFFINITY.trailing_zeros().cast_signed());
        program.apply(Operation::And, R8, (!AFFINITY).cast_signed());
        program.jump_if(R8, Condition::Equal, 0, refused);
        program.load(Width::Double, R1, STACK, NAMESPACE);
        program.jump_if(R9, Condition::Different, 0, sticky);
        if self.occasion == Occasion::Connect {
            program.call(Function::RandomNumber);
            program.apply_register(Operation::Remainder, R0, R8);
            program.apply_register(Operation::Set, R2, R0);
            program.jump(chosen);
        } else {
            program.load(Width::Double, R1, STACK, SOCKET);
        }
        program.place(sticky);
        jump_hash(program);
        program.place(chosen);
        program.store(Width::Word, STACK, INDEX, R2);
        look_up(program, &tables.backends, NETWORK);
        program.jump_if(R0, Condition::Different, 0, selected);
        // The generation has been removed since it was read, which takes longer than a second.
        program.apply(Operation::Add, R7, -1);
        program.jump_if(R7, Condition::Equal, 0, refused);
        look_up(program, &tables.virtuals, NETWORK);
        program.jump_if(R0, Condition::Different, 0, again);
        program.jump(unlisted);
        program.place(selected);
    }

    fn tell(&self, program: &mut Assembler, tables: &BalancerMaps) {
        let untouched = program.label();
        cookie(program, Function::SocketCookie, SOCKET);
        self.read_address(program, BACKEND);
        look_up(program, &tables.asked, SOCKET);
        program.jump_if(R0, Condition::Equal, 0, untouched);
        program.apply_register(Operation::Set, R7, R0);
        self.write_address(program, R7, 0);
        program.place(untouched);
        program.exit(PROCEED);
    }
}

/// Writes a cookie of the context to the stack.
fn cookie(program: &mut Assembler, function: Function, to: i16) {
    program.apply_register(Operation::Set, R1, CONTEXT);
    program.call(function);
    program.store(Width::Double, STACK, to, R0);
}

/// Makes R0 point to the value of the key at this place of the stack, or null.
fn look_up(program: &mut Assembler, map: &impl AsFd, key: i16) {
    program.set_map(R1, map.as_fd());
    program.point_to_stack(R2, key);
    program.call(Function::MapLookup);
}

/// Copies an address to the stack.
fn copy_address(program: &mut Assembler, base: BpfRegister, from: i16, to: i16) {
    for at in [0, 8] {
        program.load(Width::Double, R1, base, from + at);
        program.store(Width::Double, STACK, to + at, R1);
    }
}

/// Looks for the address in the networks that R7 points to, and makes R0 point to its value of `virtuals`.
fn search_networks(program: &mut Assembler, tables: &BalancerMaps, found: Label, unlisted: Label) {
    let next = program.label();
    program.apply(Operation::Set, R8, MOST_NETWORKS as i32);
    program.place(next);
    program.load(Width::Double, R1, R7, 0);
    program.jump_if(R1, Condition::Equal, 0, unlisted);
    program.store(Width::Double, STACK, NETWORK, R1);
    look_up(program, &tables.virtuals, NETWORK);
    program.jump_if(R0, Condition::Different, 0, found);
    program.apply(Operation::Add, R7, 8);
    program.apply(Operation::Add, R8, -1);
    program.jump_if(R8, Condition::Different, 0, next);
    program.jump(unlisted);
}

/// Sets R2 to a number below R8 that follows from R1.
fn jump_hash(program: &mut Assembler) {
    let (next, done) = (program.label(), program.label());
    let (key, result, candidate) = (R1, R2, R3);
    program.set_number(R5, 2_862_933_555_777_941_757);
    program.apply(Operation::Set, candidate, 0);
    program.apply(Operation::Set, R0, ROUNDS);
    program.place(next);
    program.apply_register(Operation::Set, result, candidate);
    program.apply_register(Operation::Multiply, key, R5);
    program.apply(Operation::Add, key, 1);
    program.apply_register(Operation::Set, R4, key);
    program.apply(Operation::ShiftRight, R4, 33);
    program.apply(Operation::Add, R4, 1);
    program.apply(Operation::Add, candidate, 1);
    program.apply(Operation::ShiftLeft, candidate, 31);
    program.apply_register(Operation::Divide, candidate, R4);
    program.jump_if_register(candidate, Condition::AtLeast, R8, done);
    program.apply(Operation::Add, R0, -1);
    program.jump_if(R0, Condition::Different, 0, next);
    program.place(done);
}
