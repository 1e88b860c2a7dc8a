//! Names of Linux's signals. The manager checks them when a service is created, and the worker sends them.

/// The signals by name, without `SIG` (signal(7)). Their numbers are those of every architecture but Alpha, MIPS, PA-RISC
/// and SPARC, on none of which Flota runs.
const NAMES: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// First and last real-time signal as programs see them: C libraries keep 32 and 33 for themselves (signal(7)).
const REAL_TIME: [i32; 2] = [34, 64];

/// Returns the number of a signal: a number from 1 to 64, or a name such as `TERM`, `SIGTERM` or `SIGRTMIN+3`, in any case.
/// `None` if there is no such signal.
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=REAL_TIME[1]).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let [first, last] = REAL_TIME;
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => first + offset(rest, '+')?,
        (_, Some(rest)) => last - offset(rest, '-')?,
        _ => return NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number),
    };
    (first..=last).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_are_known_by_number_and_in_every_spelling_of_their_names() {
        for (text, expected) in [
            ("9", Some(9)),
            ("64", Some(64)),
            ("KILL", Some(9)),
            ("SIGQUIT", Some(3)),
            ("sigterm", Some(15)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX", Some(64)),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("", None),
            ("SIG", None),
            ("TERMINATE", None),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
            ("RTMIN+", None),
            ("RTMIN+-1", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
