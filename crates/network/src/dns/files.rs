//! The files of a container that name things: /etc/resolv.conf and /etc/hosts, with the contents that Docker gives them.

use std::fmt::Write;
use std::net::IpAddr;

use super::resolvers::ResolvConf;
use super::sockets::ADDRESS;

/// The first lines of every /etc/hosts.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// A line of /etc/hosts that a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name of the host.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// Returns the text of a resolv.conf that names the server of this crate. What `search` and `options` leave open is as on
/// the machine; a search domain `.` stands for none. Names are looked up as they are before domains are appended
/// (`ndots:0`), unless an option says otherwise.
pub fn resolv_conf(search: &[String], options: &[String], machine: &ResolvConf) -> String {
    let or_machine = |own: &[String], machine: &[String]| if own.is_empty() { machine.to_vec() } else { own.to_vec() };
    let mut search = or_machine(search, &machine.search);
    search.retain(|domain| domain != ".");
    let mut options = or_machine(options, &machine.options);
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut text = format!("nameserver {ADDRESS}\n");
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    text + &format!("options {}\n", options.join(" "))
}

/// Returns the text of an /etc/hosts: `localhost`, the hosts that a user asks for, and the container's own addresses with
/// its hostname.
pub fn hosts(hostname: &str, addresses: &[IpAddr], extra: &[Host]) -> String {
    let own = addresses.iter().map(|address| (address, hostname));
    let lines = extra.iter().map(|host| (&host.address, host.name.as_str())).chain(own);
    lines.fold(LOCALHOST.to_owned(), |mut text, (address, name)| {
        let _ = writeln!(text, "{address}\t{name}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(|it| (*it).to_owned()).collect()
    }

    #[test]
    fn a_resolv_conf_names_our_server_and_keeps_what_the_machine_says() {
        let machine = ResolvConf::parse("nameserver 192.0.2.1\nsearch example.com corp\noptions edns0 timeout:2\n");
        let text = resolv_conf(&[], &[], &machine);
        assert_eq!(text, "nameserver 127.0.0.11\nsearch example.com corp\noptions edns0 timeout:2 ndots:0\n");
        let own = resolv_conf(&texts(&["example.org"]), &texts(&["ndots:2", "rotate"]), &machine);
        assert_eq!(own, "nameserver 127.0.0.11\nsearch example.org\noptions ndots:2 rotate\n");
        let none = resolv_conf(&texts(&["."]), &[], &ResolvConf::default());
        assert_eq!(none, "nameserver 127.0.0.11\noptions ndots:0\n");
    }

    #[test]
    fn hosts_have_localhost_what_users_ask_for_and_the_own_name() {
        let database = Host { name: "database".to_owned(), address: "192.0.2.7".parse().unwrap() };
        let own = ["10.0.0.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        let text = hosts("web", &own, &[database]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]);
        assert_eq!(lines[6..], ["192.0.2.7\tdatabase", "10.0.0.3\tweb", "fd00::3\tweb"]);
    }
}
