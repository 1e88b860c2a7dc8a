//! Where the program begins: in its own code, before the C library's (src/bin/flota-runtime/entry.rs).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|it| it == "x86_64") {
        println!("cargo::rustc-link-arg-bin=flota-runtime=-Wl,--entry=flota_runtime_entry");
    }
}
