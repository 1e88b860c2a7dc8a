//! Converts a service of the document into a spec.

mod devices;
mod privileges;

use std::collections::BTreeMap;

use flota_api::capability;
use flota_api::constraint::Constraint;
use flota_api::model::{RestartCondition, RestartPolicy, ServiceMode, ServiceSpec};
use flota_api::resources::Resources;
use serde_yaml_ng::Value;

use crate::parse;
use crate::schema::{Amounts, Pairs, Reservations, Service, Words};

pub(crate) fn service(stack: &str, key: &str, service: Service) -> Result<ServiceSpec, String> {
    let base = ServiceSpec::default();
    let at = |field: &'static str| {
        move |why: String| {
            if field.starts_with("deploy") { format!("{field}.{why}") } else { format!("{field}: {why}") }
        }
    };
    let grace =
        service.stop_grace_period.as_deref().map(parse::duration).transpose().map_err(at("stop_grace_period"))?;
    let (mut cap_add, mut cap_drop) = (Vec::new(), Vec::new());
    capability::amend(&mut cap_add, &mut cap_drop, &service.cap_add, &service.cap_drop);
    let deploy = service.deploy;
    let Reservations { cpus, memory, pids, generic_resources, devices } = deploy.resources.reservations;
    let reservations = Amounts { cpus, memory, pids };
    let generic_resources =
        devices::generic(generic_resources, devices).map_err(at("deploy.resources.reservations"))?;
    let labels = pairs(service.labels)?.into_iter().chain(pairs(deploy.labels)?).collect();
    Ok(ServiceSpec {
        name: format!("{stack}_{key}"),
        labels,
        image: dollars(&service.image).map_err(at("image"))?,
        entrypoint: words(service.entrypoint).map_err(at("entrypoint"))?,
        command: words(service.command).map_err(at("command"))?,
        env: pairs(service.environment)
            .map_err(at("environment"))?
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        working_dir: service.working_dir,
        user: service.user,
        hostname: service.hostname,
        mode: deploy.replicas.map_or(base.mode, |replicas| ServiceMode::Replicated { replicas }),
        limits: amounts(deploy.resources.limits).map_err(at("deploy.resources.limits"))?,
        reservations: amounts(reservations).map_err(at("deploy.resources.reservations"))?,
        restart: restart(deploy.restart_policy).map_err(at("deploy.restart_policy"))?,
        stop_grace: grace.unwrap_or(base.stop_grace),
        stop_signal: service.stop_signal,
        constraints: constraints(&deploy.placement.constraints).map_err(at("deploy.placement"))?,
        runtime: service.runtime,
        init: service.init,
        privileged: service.privileged,
        no_new_privileges: privileges::forbidden(&service.security_opt).map_err(at("security_opt"))?,
        cap_add,
        cap_drop,
        devices: devices::mapped(service.devices).map_err(at("devices"))?,
        generic_resources,
        ..base
    })
}

fn constraints(texts: &[String]) -> Result<Vec<Constraint>, String> {
    let parse = |(index, text): (usize, &String)| {
        Constraint::parse(text).map_err(|error| format!("constraints[{index}]: {error}"))
    };
    texts.iter().enumerate().map(parse).collect()
}

fn words(words: Words) -> Result<Vec<String>, String> {
    match words {
        Words::Absent => Ok(Vec::new()),
        Words::List(list) => list.iter().map(|it| dollars(it)).collect(),
        Words::Text(text) => split(&dollars(&text)?),
    }
}

/// Splits `text` into words at white space, except within quotes. A backslash makes the next character literal, except
/// within single quotes.
fn split(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(characters.next()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(format!("`{text}` has an unclosed quote"));
    }
    words.extend(word);
    Ok(words)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => serde_yaml_ng::to_string(other).unwrap_or_default().trim().to_owned(),
    }
}

/// Replaces `$$` by a dollar sign. Variables (Compose specification, "Interpolation") are not supported yet, and are
/// refused rather than taken literally.
fn dollars(text: &str) -> Result<String, String> {
    let whole = text.replace("$$", "\0");
    if whole.contains('$') {
        return Err(format!("`{text}` uses a variable, which is not supported yet; write `$$` for a dollar sign"));
    }
    Ok(whole.replace('\0', "$"))
}

fn pairs(pairs: Pairs) -> Result<BTreeMap<String, String>, String> {
    Ok(match pairs {
        Pairs::Absent => BTreeMap::new(),
        Pairs::Map(map) => {
            map.iter().map(|(name, value)| Ok((name.clone(), dollars(&text(value))?))).collect::<Result<_, String>>()?
        }
        Pairs::List(list) => {
            let pair = |item: &String| match item.split_once('=') {
                Some((name, value)) => Ok((name.to_owned(), dollars(value)?)),
                None => Err(format!(
                    "`{item}` takes its value from the environment, which is not supported yet; write NAME=value"
                )),
            };
            list.iter().map(pair).collect::<Result<_, _>>()?
        }
    })
}

fn amounts(amounts: Amounts) -> Result<Resources, String> {
    let read = |value: Option<Value>, name: &str, parse: fn(&str) -> Result<u64, String>| {
        value.map_or(Ok(0), |value| parse(&text(&value)).map_err(|why| format!("{name}: {why}")))
    };
    Ok(Resources {
        nano_cpus: read(amounts.cpus, "cpus", parse::cpus)?,
        memory_bytes: read(amounts.memory, "memory", parse::bytes)?,
        pids: amounts.pids.unwrap_or(0),
    })
}

fn restart(policy: crate::schema::RestartPolicy) -> Result<RestartPolicy, String> {
    let base = RestartPolicy::default();
    let time = |value: Option<String>, name: &str| {
        value.as_deref().map(parse::duration).transpose().map_err(|why| format!("{name}: {why}"))
    };
    let condition = match policy.condition.as_deref() {
        None | Some("any") => RestartCondition::Any,
        Some("on-failure") => RestartCondition::OnFailure,
        Some("none") => RestartCondition::None,
        Some(other) => return Err(format!("condition: `{other}` is not one of any, on-failure, none")),
    };
    Ok(RestartPolicy {
        condition,
        delay: time(policy.delay, "delay")?.unwrap_or(base.delay),
        max_attempts: policy.max_attempts.unwrap_or(0),
        window: time(policy.window, "window")?.unwrap_or(base.window),
    })
}
