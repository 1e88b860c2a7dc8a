//! `security_opt` of a service.

/// Returns whether the options forbid programs to gain privileges; `None` if they don't say. The last one counts.
pub(super) fn forbidden(options: &[String]) -> Result<Option<bool>, String> {
    let mut forbidden = None;
    for option in options {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, "true"));
        forbidden = Some(match (name, value) {
            ("no-new-privileges", "true") => true,
            ("no-new-privileges", "false") => false,
            ("no-new-privileges", other) => return Err(format!("no-new-privileges: `{other}` is not true or false")),
            (other, _) => return Err(format!("`{other}` is not supported yet, only `no-new-privileges`")),
        });
    }
    Ok(forbidden)
}

#[cfg(test)]
mod tests {
    use crate::load::parse;

    fn forbidden(options: &str) -> Result<Option<bool>, String> {
        let stack = parse(&format!("services:\n  web:\n    image: a\n    security_opt: [{options}]\n"), "s")?;
        Ok(stack.services[0].no_new_privileges)
    }

    #[test]
    fn new_privileges_are_forbidden_in_every_spelling_of_docker() {
        for (options, expected) in [
            ("", None),
            ("no-new-privileges", Some(true)),
            ("no-new-privileges:true", Some(true)),
            ("no-new-privileges=true, no-new-privileges:false", Some(false)),
        ] {
            assert_eq!(forbidden(options), Ok(expected), "{options}");
        }
    }

    #[test]
    fn other_options_are_refused_with_their_key() {
        for (options, expected) in [
            ("seccomp:unconfined", "`seccomp` is not supported yet, only `no-new-privileges`"),
            ("no-new-privileges:maybe", "no-new-privileges: `maybe` is not true or false"),
        ] {
            let error = forbidden(options).expect_err("refused");
            assert_eq!(error, format!("services.web.security_opt: {expected}"));
        }
    }
}
