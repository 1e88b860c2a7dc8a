//! `security_opt` and `userns_mode` of a service.

use crate::tree::{Fault, Node};

/// Returns whether the options forbid programs to gain privileges; `None` if they don't say. The last one counts.
pub(super) fn forbidden(node: &Node) -> Result<Option<bool>, Fault> {
    let flags = node.list()?.iter().map(|option| option.parsed(flag)).collect::<Result<Vec<_>, _>>()?;
    Ok(flags.last().copied())
}

/// Returns whether each task has ids of its own.
pub(super) fn has_user_namespace(node: &Node) -> Result<bool, Fault> {
    node.parsed(|mode| match mode {
        "auto" => Ok(true),
        "host" => Ok(false),
        other => Err(format!("`{other}` is not auto or host")),
    })
}

fn flag(option: &str) -> Result<bool, String> {
    let (name, value) = option.split_once(['=', ':']).unwrap_or((option, "true"));
    match (name, value) {
        ("no-new-privileges", "true") => Ok(true),
        ("no-new-privileges", "false") => Ok(false),
        ("no-new-privileges", other) => Err(format!("no-new-privileges: `{other}` is not true or false")),
        (other, _) => Err(format!("`{other}` is not supported yet, only `no-new-privileges`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    fn read(options: &str) -> Result<Option<bool>, String> {
        let node = parse(&format!("[{options}]")).map_err(|fault| fault.why)?;
        forbidden(&node).map_err(|fault| format!("{}: {}", fault.key, fault.why))
    }

    #[test]
    fn new_privileges_are_forbidden_in_every_spelling_of_docker() {
        for (options, expected) in [
            ("", None),
            ("no-new-privileges", Some(true)),
            ("no-new-privileges:true", Some(true)),
            ("no-new-privileges=true, no-new-privileges:false", Some(false)),
        ] {
            assert_eq!(read(options), Ok(expected), "{options}");
        }
    }

    #[test]
    fn other_options_are_refused_with_their_key() {
        for (options, expected) in [
            ("seccomp:unconfined", "[0]: `seccomp` is not supported yet, only `no-new-privileges`"),
            ("no-new-privileges:maybe", "[0]: no-new-privileges: `maybe` is not true or false"),
            ("seccomp:unconfined, no-new-privileges", "[0]: `seccomp` is not supported yet, only `no-new-privileges`"),
        ] {
            assert_eq!(read(options), Err(expected.to_owned()), "{options}");
        }
    }

    #[test]
    fn ids_are_the_tasks_own_or_the_nodes() {
        let read = |mode: &str| {
            let node = parse(mode).map_err(|fault| fault.why)?;
            has_user_namespace(&node).map_err(|fault| fault.why)
        };
        assert_eq!(read("auto"), Ok(true));
        assert_eq!(read("host"), Ok(false));
        assert_eq!(read("private"), Err("`private` is not auto or host".into()));
    }
}
