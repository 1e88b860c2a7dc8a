//! Published ports and networks of a service as people write them, in Docker's short and long syntax. Also used by `ctl`
//! for its flags.

use flota_api::model::{HostEntry, NetworkAttachment, Protocol, PublishMode, PublishedPort};

/// Parses the ports of `[PUBLISHED:]TARGET[/PROTOCOL]`, where both may be ranges of equal length, or of
/// `target=…[,published=…][,protocol=…][,mode=…]`.
///
/// # Errors
/// A message that names the part that can't be used.
pub fn ports(text: &str) -> Result<Vec<PublishedPort>, String> {
    if text.contains('=') {
        return long(text);
    }
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (published, target) = match ports.rsplit_once(':') {
        None => (None, ports),
        Some((published, _)) if published.contains(':') || published.contains('.') => {
            return Err(format!("`{text}`: a port is published on every address, so it names none"));
        }
        Some((published, target)) => (Some(published), target),
    };
    pair(published, target, parse_protocol(protocol)?, PublishMode::Ingress)
}

fn long(text: &str) -> Result<Vec<PublishedPort>, String> {
    let (mut target, mut published) = (None, None);
    let (mut protocol, mut mode) = (Protocol::Tcp, PublishMode::Ingress);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("target", value)) => target = Some(value),
            Some(("published", value)) => published = Some(value),
            Some(("protocol", value)) => protocol = parse_protocol(value)?,
            Some(("mode", value)) => mode = parse_mode(value)?,
            _ => return Err(format!("`{field}` is none of target=, published=, protocol= and mode=")),
        }
    }
    pair(published, target.ok_or("target= is missing")?, protocol, mode)
}

/// Returns the ports of two ranges.
pub(crate) fn pair(
    published: Option<&str>,
    target: &str,
    protocol: Protocol,
    mode: PublishMode,
) -> Result<Vec<PublishedPort>, String> {
    let targets = range(target)?;
    let published = published.filter(|text| !text.is_empty()).map(range).transpose()?;
    if published.as_ref().is_some_and(|it| it.len() != targets.len()) {
        let published = published.map_or(0, |it| it.len());
        return Err(format!("{published} published ports can't stand for {} ports of a task", targets.len()));
    }
    let port = |(index, target)| {
        let published = published.as_ref().and_then(|it| it.clone().nth(index));
        PublishedPort { target, published, protocol, mode }
    };
    Ok(targets.enumerate().map(port).collect())
}

fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("`{text}` is not a port; a port is between 1 and 65535")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(format!("`{text}` ends before it begins")) } else { Ok(first..=last) }
}

/// Parses a protocol.
pub(crate) fn parse_protocol(text: &str) -> Result<Protocol, String> {
    let found = Protocol::ALL.iter().copied().find(|it| it.as_str() == text);
    found.ok_or_else(|| format!("`{text}` is not a protocol; a protocol is tcp or udp"))
}

/// Parses a mode of a published port.
pub(crate) fn parse_mode(text: &str) -> Result<PublishMode, String> {
    let found = PublishMode::ALL.iter().copied().find(|it| it.as_str() == text);
    found.ok_or_else(|| format!("`{text}` is not a mode; a mode is ingress or host"))
}

/// Parses a network that a service joins: `NAME`, or `name=NAME[,alias=ALIAS]…`.
///
/// # Errors
/// A message that names the part that can't be used.
pub fn network(text: &str) -> Result<NetworkAttachment, String> {
    let mut attachment = NetworkAttachment::default();
    if !text.contains('=') {
        attachment.network = text.into();
    } else {
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("name", name)) => attachment.network = name.into(),
                Some(("alias", alias)) => attachment.aliases.push(alias.to_owned()),
                _ => return Err(format!("`{field}` is neither name= nor alias=")),
            }
        }
    }
    if attachment.network.is_empty() { Err(format!("`{text}` names no network")) } else { Ok(attachment) }
}

/// Parses a line of `/etc/hosts`: `NAME:ADDRESS`, or `NAME=ADDRESS`.
///
/// # Errors
/// A message that names the part that can't be used.
pub fn host(text: &str) -> Result<HostEntry, String> {
    let split = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) = split.ok_or_else(|| format!("`{text}` does not have the form NAME:ADDRESS"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse().map_err(|_| format!("`{address}` is not an IP address"))?;
    Ok(HostEntry { name: name.to_owned(), address })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<Vec<String>, String> {
        let show = |it: PublishedPort| {
            format!("{}:{}/{} {}", it.published.unwrap_or_default(), it.target, it.protocol, it.mode)
        };
        Ok(ports(text)?.into_iter().map(show).collect())
    }

    #[test]
    fn ports_are_written_in_the_short_and_the_long_syntax() {
        for (text, expected) in [
            ("80", &["0:80/tcp ingress"][..]),
            ("8080:80", &["8080:80/tcp ingress"]),
            ("53:5353/udp", &["53:5353/udp ingress"]),
            ("8000-8001:80-81", &["8000:80/tcp ingress", "8001:81/tcp ingress"]),
            ("published=8080,target=80,protocol=udp,mode=host", &["8080:80/udp host"]),
            ("target=80", &["0:80/tcp ingress"]),
        ] {
            assert_eq!(shown(text), Ok(expected.iter().map(|it| (*it).to_owned()).collect()), "{text}");
        }
    }

    #[test]
    fn ports_that_cannot_be_are_refused_with_the_part_that_is_wrong() {
        for (text, expected) in [
            ("0", "`0` is not a port; a port is between 1 and 65535"),
            ("0:80", "`0` is not a port; a port is between 1 and 65535"),
            ("80:65536", "`65536` is not a port"),
            ("8000-8002:80-81", "3 published ports can't stand for 2 ports of a task"),
            ("81-80", "`81-80` ends before it begins"),
            ("127.0.0.1:80:80", "`127.0.0.1:80:80`: a port is published on every address"),
            ("80/sctp", "`sctp` is not a protocol; a protocol is tcp or udp"),
            ("published=80", "target= is missing"),
            ("target=80,mode=x", "`x` is not a mode"),
            ("target=80,x=1", "`x=1` is none of"),
        ] {
            let error = ports(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn networks_and_host_entries_are_written_as_in_docker() {
        let attachment = network("name=back,alias=db,alias=sql").expect("a network");
        assert_eq!((attachment.network.as_str(), attachment.aliases.join(" ")), ("back", "db sql".into()));
        assert_eq!(network("back").expect("a network").network.as_str(), "back");
        assert!(network("alias=x").is_err() && network("name=a,x=y").is_err() && network("").is_err());
        assert_eq!(host("db:10.0.0.1").expect("an entry").address.to_string(), "10.0.0.1");
        assert_eq!(host("db=[fd00::1]").expect("an entry").address.to_string(), "fd00::1");
        assert_eq!(host("db:fd00::1").expect("an entry").address.to_string(), "fd00::1");
        assert!(host("db").is_err() && host("db:x").is_err());
    }
}
