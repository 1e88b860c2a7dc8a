//! `healthcheck` of a service. Compose has no word for checks by HTTP and TCP; `x-flota-http` and `x-flota-tcp` are.

use std::num::NonZeroU32;

use flota_api::model::{HealthSpec, HealthTest};

use crate::fields::Fields;
use crate::parse;
use crate::tree::{Fault, Node, Value};

/// Reads a health check.
pub(super) fn check(node: &Node) -> Result<HealthSpec, Fault> {
    let mut keys = node.fields()?;
    let duration = |keys: &mut Fields<'_>, key| keys.read(key, |it| it.parsed(parse::duration));
    let spec = HealthSpec {
        test: test(&mut keys)?,
        interval: duration(&mut keys, "interval")?,
        timeout: duration(&mut keys, "timeout")?,
        start_period: duration(&mut keys, "start_period")?,
        start_interval: duration(&mut keys, "start_interval")?,
        retries: keys.read("retries", retries)?.flatten(),
    };
    keys.finish()?;
    Ok(spec)
}

fn retries(node: &Node) -> Result<Option<NonZeroU32>, Fault> {
    node.parsed(|text| text.parse().map(NonZeroU32::new).map_err(|_| format!("`{text}` is not a whole number from 0")))
}

/// Reads Docker's list, or one text, which is a command line.
fn command(node: &Node) -> Result<Option<HealthTest>, Fault> {
    match &node.value {
        Value::List(_) => HealthTest::from_words(&node.texts()?).map_err(|why| node.fault(why)),
        Value::Scalar(_) => Ok(Some(HealthTest::Shell(node.text()?))),
        _ => Err(node.unexpected("a text or a list")),
    }
}

/// Reads the one key that says how health is found out.
fn test(keys: &mut Fields<'_>) -> Result<Option<HealthTest>, Fault> {
    let disabled = keys.read("disable", Node::flag)?.unwrap_or_default().then_some(HealthTest::None);
    let port = |text: &str| match text.parse() {
        Ok(port) => Ok(HealthTest::Tcp { port }),
        Err(_) => Err(format!("`{text}` is not a port")),
    };
    let said = [
        disabled,
        keys.read("test", command)?.flatten(),
        keys.read("x-flota-http", |it| it.parsed(HealthTest::http))?,
        keys.read("x-flota-tcp", |it| it.parsed(port))?,
    ];
    let mut said = said.into_iter().flatten();
    match (said.next(), said.next()) {
        (_, Some(_)) => Err(keys.fault("one of test, disable, x-flota-http and x-flota-tcp is enough")),
        (first, None) => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    fn read(text: &str) -> Result<String, String> {
        let node = parse(text).map_err(|fault| fault.why)?;
        let spec = check(&node).map_err(|fault| format!("{}: {}", fault.key, fault.why))?;
        let words = spec.test.iter().flat_map(HealthTest::words).collect::<Vec<_>>().join("|");
        let times = [spec.interval, spec.timeout, spec.start_period, spec.start_interval];
        let times = times.iter().flatten().map(|it| format!(" {it:?}")).collect::<String>();
        Ok(format!("{words}{times} {}", spec.retries.map_or(0, NonZeroU32::get)))
    }

    #[test]
    fn checks_are_read_as_compose_writes_them_and_in_two_ways_more() {
        for (text, expected) in [
            ("{}", " 0"),
            ("{ test: curl -f x || exit 1 }", "CMD-SHELL|curl -f x || exit 1 0"),
            ("{ test: [CMD, a, b c], retries: 2 }", "CMD|a|b c 2"),
            ("{ test: [CMD-SHELL, a b] }", "CMD-SHELL|a b 0"),
            ("{ test: [NONE] }", "NONE 0"),
            ("{ test: [], interval: 1m30s }", " 90s 0"),
            ("{ disable: true }", "NONE 0"),
            ("{ disable: false, test: a }", "CMD-SHELL|a 0"),
            ("{ x-flota-http: 'http://:8080/a', x-note: ignored }", "HTTP|http://:8080/a 0"),
            (
                "{ x-flota-tcp: 5432, interval: 1s, timeout: 2s, start_period: 3s, start_interval: 4s }",
                "TCP|5432 1s 2s 3s 4s 0",
            ),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn faults_name_their_key() {
        for (text, expected) in [
            ("{ test: [curl, x] }", "test: `curl` is not NONE, CMD with the words of a program, or CMD-SHELL"),
            ("{ test: { a: b } }", "test: a text or a list is needed, not a map"),
            ("{ test: a, disable: true }", ": one of test, disable, x-flota-http and x-flota-tcp is enough"),
            ("{ interval: 10 }", "interval: `10` is not a duration"),
            ("{ retries: -1 }", "retries: `-1` is not a whole number from 0"),
            ("{ x-flota-tcp: web }", "x-flota-tcp: `web` is not a port"),
            ("{ x-flota-http: 'http://host/' }", "x-flota-http: `http://host/` is not an address such as"),
            ("{ cmd: a }", "cmd: this key is not supported"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
