//! The numbers of all system calls: one row for each name, one column for each architecture.
//!
//! The crate `syscalls` has the numbers. They are sorted into one table at compile time, because a profile names 450
//! calls and looks up each of them for three architectures.

use super::architectures::{ALL, Architecture, IPC, SOCKETCALL, X32_BIT};

/// A name as two numbers that sort like the text.
type Name = [u128; 2];

/// Marks a call that an architecture does not have.
const ABSENT: u32 = u32::MAX;

/// Upper bound of the number of rows.
const CAPACITY: usize = 640;

/// Calls with numbers of their own on x32, from 512 on (arch/x86/entry/syscalls/syscall_64.tbl).
const X32_OWN: [Name; 36] = list(
    "rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace rt_sigpending \
    rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid set_robust_list \
    get_robust_list vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv \
    process_vm_writev setsockopt getsockopt io_setup io_submit execveat preadv2 pwritev2",
);

/// Calls of x86_64 that x32 does not have (the same file, marked `64`).
const NOT_ON_X32: [Name; 11] = list(
    "uselib _sysctl create_module get_kernel_syms query_module nfsservctl set_thread_area \
    get_thread_area epoll_ctl_old epoll_wait_old vserver",
);

/// What the crate calls a call of aarch64, and what the kernel calls it.
const FSTATAT: [Name; 2] = list("fstatat newfstatat");

/// ARM's private calls, from 0xf0001 on (arch/arm/include/uapi/asm/unistd.h).
const ARM_PRIVATE: &str = "breakpoint cacheflush usr26 usr32 set_tls get_tls";

/// Calls newer than the crate, from 470 on everywhere (scripts/syscall.tbl).
const NEWEST: &str = "listns rseq_slice_yield";

/// Calls by the first argument of a multiplexing call, from 1 on: socketcall (linux/net.h) and ipc (linux/ipc.h),
/// where a dash marks a gap.
const SOCKETCALLS: &str = "socket bind connect listen accept getsockname getpeername socketpair send recv sendto \
    recvfrom shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg";
const IPC_CALLS: &str = "semop semget semctl semtimedop - - - - - - msgsnd msgrcv msgget msgctl - - - - - - shmat shmdt \
    shmget shmctl";

const DASH: [Name; 1] = list("-");

/// The multiplexing call that also reaches a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Multiplexed {
    /// The first argument of socketcall.
    Socket(u8),
    /// The first argument of ipc.
    Ipc(u8),
}

impl Multiplexed {
    /// Returns the number of the multiplexing call.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Socket(_) => SOCKETCALL,
            Self::Ipc(_) => IPC,
        }
    }
}

/// A system call, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    numbers: [u32; ALL.len()],
    /// Its position in a multiplexing call, on architectures that have those.
    pub(super) multiplexed: Option<Multiplexed>,
}

impl Call {
    /// Returns the number that the kernel reports for it.
    pub(super) fn number(&self, on: Architecture) -> Option<u32> {
        Some(self.numbers[on as usize]).filter(|it| *it != ABSENT)
    }
}

/// Finds a call that at least one architecture has.
pub(super) fn find(name: &str) -> Option<&'static Call> {
    let name = pack(name.as_bytes(), 0, name.len())?;
    NAMES.binary_search(&name).ok().map(|row| &CALLS[row])
}

/// Returns all names, for tests that compare tables.
#[cfg(test)]
pub(super) fn names() -> Vec<String> {
    let text = |name: &Name| name.iter().flat_map(|half| half.to_be_bytes()).filter(|it| *it != 0).collect();
    NAMES.iter().map(|name| String::from_utf8(text(name)).expect("names are ASCII")).collect()
}

static NAMES: [Name; TABLE.length] = sorted(&TABLE.names);
static CALLS: [Call; TABLE.length] = sorted(&TABLE.calls);

const TABLE: Table = build();

/// The rows as they were added, and their order. The compiler runs this code, so an insertion moves numbers only.
struct Table {
    names: [Name; CAPACITY],
    calls: [Call; CAPACITY],
    order: [usize; CAPACITY],
    length: usize,
}

const fn sorted<T: Copy, const LENGTH: usize>(rows: &[T; CAPACITY]) -> [T; LENGTH] {
    let mut sorted = [rows[0]; LENGTH];
    let mut at = 0;
    while at < LENGTH {
        sorted[at] = rows[TABLE.order[at]];
        at += 1;
    }
    sorted
}

const fn pack(text: &[u8], from: usize, to: usize) -> Option<Name> {
    if to - from > 32 {
        return None;
    }
    let mut name = [0; 2];
    let mut at = 0;
    while at < 32 {
        let byte = if from + at < to { text[from + at] } else { 0 };
        name[at / 16] = name[at / 16] << 8 | byte as u128;
        at += 1;
    }
    Some(name)
}

const fn is_less(left: Name, right: Name) -> bool {
    left[0] < right[0] || left[0] == right[0] && left[1] < right[1]
}

const fn is_same(left: Name, right: Name) -> bool {
    left[0] == right[0] && left[1] == right[1]
}

impl Table {
    /// Returns the row of a name, which is added if it is new.
    const fn row(&mut self, name: Name) -> usize {
        let (mut low, mut high) = (0, self.length);
        while low < high {
            let middle = (low + high) / 2;
            if is_less(self.names[self.order[middle]], name) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low < self.length && is_same(self.names[self.order[low]], name) {
            return self.order[low];
        }
        let (new, mut at) = (self.length, self.length);
        while at > low {
            self.order[at] = self.order[at - 1];
            at -= 1;
        }
        self.order[low] = new;
        self.names[new] = name;
        self.length += 1;
        new
    }

    const fn set(&mut self, on: Architecture, name: Name, number: u32) {
        let row = self.row(name);
        self.calls[row].numbers[on as usize] = number;
    }
}

/// Iterates over the words of a list.
struct Words {
    text: &'static [u8],
    at: usize,
}

const fn words(text: &'static str) -> Words {
    Words { text: text.as_bytes(), at: 0 }
}

impl Words {
    const fn next(&mut self) -> Option<Name> {
        while self.at < self.text.len() && self.text[self.at] == b' ' {
            self.at += 1;
        }
        let from = self.at;
        while self.at < self.text.len() && self.text[self.at] != b' ' {
            self.at += 1;
        }
        if from == self.at { None } else { pack(self.text, from, self.at) }
    }
}

/// Returns the words of a list, of which there are exactly this many.
const fn list<const LENGTH: usize>(text: &'static str) -> [Name; LENGTH] {
    let (mut words, mut list, mut at) = (words(text), [[0; 2]; LENGTH], 0);
    while let Some(word) = words.next() {
        list[at] = word;
        at += 1;
    }
    assert!(at == LENGTH, "the list has another length");
    list
}

/// Returns the position of a name in a list.
const fn position(list: &[Name], name: Name) -> Option<u32> {
    let mut at = 0;
    while at < list.len() {
        if is_same(list[at], name) {
            return Some(at as u32);
        }
        at += 1;
    }
    None
}

/// Adds the crate's calls of an architecture, name by name.
macro_rules! enter {
    ($module:ident, |$number:ident, $name:ident| $enter:expr) => {{
        let mut next = Some(syscalls::$module::Sysno::first());
        while let Some(call) = next {
            let ($number, text) = (call.id() as u32, call.name().as_bytes());
            let Some($name) = pack(text, 0, text.len()) else { panic!("a name is longer than a row takes") };
            $enter;
            next = call.next();
        }
        // The crate's own iteration stops before the last one.
        let call = syscalls::$module::Sysno::last();
        let ($number, text) = (call.id() as u32, call.name().as_bytes());
        let Some($name) = pack(text, 0, text.len()) else { panic!("a name is longer than a row takes") };
        $enter;
    }};
}

const fn build() -> Table {
    let none = Call { numbers: [ABSENT; ALL.len()], multiplexed: None };
    let mut table = Table { names: [[0; 2]; CAPACITY], calls: [none; CAPACITY], order: [0; CAPACITY], length: 0 };
    enter!(x86_64, |number, name| {
        table.set(Architecture::X86_64, name, number);
        if let Some(own) = position(&X32_OWN, name) {
            table.set(Architecture::X32, name, X32_BIT | (512 + own));
        } else if position(&NOT_ON_X32, name).is_none() {
            table.set(Architecture::X32, name, X32_BIT | number);
        }
    });
    enter!(x86, |number, name| table.set(Architecture::X86, name, number));
    enter!(aarch64, |number, name| {
        // Only 32-bit machines have the calls with 64-bit times, and the kernel's own name for fstatat differs.
        if number < 403 || number > 423 {
            table.set(Architecture::Aarch64, if is_same(name, FSTATAT[0]) { FSTATAT[1] } else { name }, number);
        }
    });
    enter!(arm, |number, name| table.set(Architecture::Arm, name, number));
    enter!(riscv64, |number, name| table.set(Architecture::Riscv64, name, number));
    enter!(s390x, |number, name| table.set(Architecture::S390x, name, number));
    enter!(powerpc64, |number, name| table.set(Architecture::Ppc64le, name, number));
    add_missing(&mut table);
    add_multiplexed(&mut table);
    table
}

const fn add_missing(table: &mut Table) {
    let (mut private, mut number) = (words(ARM_PRIVATE), 0xf_0001);
    while let Some(name) = private.next() {
        table.set(Architecture::Arm, name, number);
        number += 1;
    }
    let (mut newest, mut number) = (words(NEWEST), 470);
    while let Some(name) = newest.next() {
        let mut column = 0;
        while column < ALL.len() {
            let bit = if matches!(ALL[column], Architecture::X32) { X32_BIT } else { 0 };
            table.set(ALL[column], name, number | bit);
            column += 1;
        }
        number += 1;
    }
}

const fn add_multiplexed(table: &mut Table) {
    let (mut sockets, mut place) = (words(SOCKETCALLS), 1);
    while let Some(name) = sockets.next() {
        let row = table.row(name);
        table.calls[row].multiplexed = Some(Multiplexed::Socket(place));
        place += 1;
    }
    let (mut calls, mut place) = (words(IPC_CALLS), 1);
    while let Some(name) = calls.next() {
        if !is_same(name, DASH[0]) {
            let row = table.row(name);
            table.calls[row].multiplexed = Some(Multiplexed::Ipc(place));
        }
        place += 1;
    }
}
