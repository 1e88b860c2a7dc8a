//! The secrets and configs of a service as people write them. Also used by `ctl` for its flags.

use flota_api::model::{ValueKind, ValueUse};

/// The keys, for errors.
const KEYS: &str = "source (src), target (dst), uid, gid, mode, version, env, on-update";

/// Sets a field by its key.
pub(crate) fn set(it: &mut ValueUse, key: &str, value: &str) -> Result<(), String> {
    let number = |what: &str| format!("{key}: `{value}` is not {what}");
    let owned = || value.to_owned();
    match key {
        "source" | "src" => it.source = owned(),
        "target" | "dst" => it.target = Some(owned()),
        "env" => it.env = Some(owned()),
        "uid" => it.uid = value.parse().map_err(|_| number("the number of a user"))?,
        "gid" => it.gid = value.parse().map_err(|_| number("the number of a group"))?,
        "mode" => {
            let digits = value.strip_prefix("0o").unwrap_or(value);
            it.mode = u32::from_str_radix(digits, 8).map_err(|_| number("a mode such as 0440"))?;
        }
        "version" => it.version = Some(value.parse().map_err(|_| number("the number of a version"))?),
        "on-update" => match value.split_once(':') {
            None if value == "roll" => it.signal = None,
            Some(("signal", signal)) => it.signal = Some(signal.to_owned()),
            _ => return Err(number("roll, or signal:SIGNAL such as signal:HUP")),
        },
        _ => return Err(format!("there is no key `{key}`; the keys are {KEYS}")),
    }
    Ok(())
}

/// Refuses what breaks a rule.
pub(crate) fn checked(it: ValueUse, kind: ValueKind) -> Result<ValueUse, String> {
    match it.violations(kind).first() {
        Some((field, why)) => Err(format!("{field}: {why}")),
        None => Ok(it),
    }
}

/// Parses a secret or config: its name, or fields `KEY=VALUE` separated by commas.
///
/// # Errors
/// A message that names the field that can't be used.
pub fn value(text: &str, kind: ValueKind) -> Result<ValueUse, String> {
    let mut it = ValueUse::of("");
    for (index, field) in text.split(',').enumerate() {
        match field.split_once('=') {
            Some((key, value)) => set(&mut it, key, value)?,
            None if index == 0 => it.source = field.to_owned(),
            None => return Err(format!("`{field}` needs a value; the keys are {KEYS}")),
        }
    }
    checked(it, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_understood() {
        let secret = |text: &str| value(text, ValueKind::Secret);
        assert_eq!(secret("db"), Ok(ValueUse::of("db")));
        let whole = secret("source=db,target=x,uid=7,gid=8,mode=0440,version=3,env=DB").expect("good");
        assert_eq!((whole.target.as_deref(), whole.uid, whole.gid, whole.mode), (Some("x"), 7, 8, 0o440));
        assert_eq!((whole.version.map(u64::from), whole.env.as_deref()), (Some(3), Some("DB")));
        assert_eq!(secret("db,on-update=signal:HUP").expect("good").signal.as_deref(), Some("HUP"));
        assert_eq!(secret("db,on-update=roll"), Ok(ValueUse::of("db")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("", "source: a name is needed"),
            ("target=x", "source: a name is needed"),
            ("db,ro", "`ro` needs a value"),
            ("db,colour=red", "there is no key `colour`"),
            ("db,mode=9", "mode: `9` is not a mode"),
            ("db,version=0", "version: `0` is not the number of a version"),
            ("db,on-update=HUP", "on-update: `HUP` is not roll"),
            ("db,target=../x", "target: "),
        ] {
            let error = value(text, ValueKind::Secret).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
