//! Prints the default seccomp profile for a process with the capabilities that are named, as `linux.seccomp` of a
//! `config.json`: `default-profile CAP_CHOWN CAP_KILL`.
#![expect(clippy::print_stdout, reason = "an example")]

fn main() {
    let capabilities: Vec<String> = std::env::args().skip(1).collect();
    let profile = flota_runtime::security::default_profile(&capabilities);
    println!("{}", serde_json::to_string(&profile).expect("a profile can be written as JSON"));
}
