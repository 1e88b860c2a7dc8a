//! One static program as an image: at `/` under its own name, as the entrypoint.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::manifest::{ImageConfig, architecture};
use crate::store::{Image, ImageError, ImageStore};

/// Larger programs are not packed.
const PROGRAM_BOUND: usize = 1 << 30;

/// Makes the image and keeps its blobs. The same program gives the same digest.
///
/// # Errors
/// It is no static ELF program, or the machine would not.
pub fn pack(store: &ImageStore, name: &str, program: &[u8]) -> Result<Image, ImageError> {
    let refuse = |why: &str| Err(ImageError::Archive(format!("`{name}`: {why}")));
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(legal) {
        return refuse("a program's name has letters, digits, `.`, `_` and `-`");
    }
    if program.len() > PROGRAM_BOUND || !program.starts_with(b"\x7fELF") {
        return refuse("it is no ELF program");
    }
    if is_dynamic(program) {
        return refuse("it is linked dynamically: a packed image has no libraries (link it statically)");
    }
    let io = |source| ImageError::Io { act: "pack the program", source };
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    layer.append_data(&mut header, name, program).map_err(io)?;
    let layer = layer.into_inner().map_err(io)?;
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&layer).map_err(io)?;
    let packed = packed.finish().map_err(io)?;
    let (layer_digest, layer_size) = store.blobs.put(packed.as_slice(), None)?;
    let config = ImageConfig { entrypoint: vec![format!("/{name}")], ..ImageConfig::default() };
    let (diff_id, _) = digest_of(&layer);
    let config = serde_json::json!({
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let (config_digest, config_size) = store.blobs.put(config.to_string().as_bytes(), None)?;
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size },
        "layers": [
            { "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer_digest, "size": layer_size },
        ],
    });
    let (digest, _) = store.blobs.put(manifest.to_string().as_bytes(), None)?;
    let image = store.image(&digest)?;
    store.record(&image)?;
    Ok(image)
}

fn digest_of(bytes: &[u8]) -> (String, usize) {
    use sha2::Digest;
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    (format!("sha256:{hex}"), bytes.len())
}

/// Whether the ELF file asks for an interpreter: a program header of type PT_INTERP (elf(5)); 64 bit, little endian.
fn is_dynamic(elf: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at + length)?;
        Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let offset = number(32, 8).and_then(|it| usize::try_from(it).ok());
    let (Some(offset), Some(size), Some(count)) = (offset, number(54, 2), number(56, 2)) else { return false };
    let header = |index: u64| usize::try_from(index * size).ok().and_then(|it| number(offset.checked_add(it)?, 4));
    (0..count).any(|index| header(index) == Some(3))
}
