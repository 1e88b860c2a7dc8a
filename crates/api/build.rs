//! Compiles ../../proto with a pure-Rust protobuf compiler: no system tool is needed.
use std::path::PathBuf;

const FILES: [&str; 11] =
    ["types", "specs", "objects", "raft", "control", "streams", "dispatcher", "ca", "images", "node", "errors"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files: Vec<PathBuf> = FILES.iter().map(|name| root.join(format!("{name}.proto"))).collect();
    let descriptors = protox::compile(&files, [&root])?;
    let methods = descriptors.file.iter().flat_map(|file| {
        let path = |service: &str, method: &str| format!("/{}.{service}/{method}", file.package());
        file.service
            .iter()
            .flat_map(move |service| service.method.iter().map(move |method| path(service.name(), method.name())))
    });
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("methods.rs");
    std::fs::write(out, format!("&{:?}", methods.collect::<Vec<_>>()))?;
    // Maps in order: what is encoded is hashed and compared between managers.
    let services = tonic_prost_build::configure().codec_path("crate::codec::SmallBuffers");
    // These have bytes of secrets, and their `Debug` is written by hand (src/convert/values.rs).
    let services = services.skip_debug([
        ".flota.objects.ValueData",
        ".flota.control.CreateValueRequest",
        ".flota.control.UpdateValueRequest",
        ".flota.control.StackValue",
        ".flota.dispatcher.ValueChunk",
        // As above, in src/convert/certificates.rs.
        ".flota.types.GivenCa",
    ]);
    services.bytes(".").btree_map(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed={}", root.display());
    Ok(())
}
