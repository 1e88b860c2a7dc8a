//! Packs one static program as an image: the program lies at `/` under its own name and is the entrypoint.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use tar_core::HEADER_SIZE;
use tar_core::builder::EntryBuilder;

use oci_spec::image::{Arch, ConfigBuilder, ImageConfigurationBuilder, MediaType, Os, RootFsBuilder};

use crate::manifest::descriptor;
use crate::store::{Image, ImageError, ImageStore};

/// Largest program that can be packed, in bytes.
const PROGRAM_BOUND: usize = 1 << 30;

/// Stores an image that runs the program. The same name and program always give the same digest.
///
/// # Errors
/// The name is illegal, the program is not a static ELF file, or an I/O error.
pub fn pack(store: &ImageStore, name: &str, program: &[u8]) -> Result<Image, ImageError> {
    let refuse = |why: &str| Err(ImageError::Archive(format!("`{name}`: {why}")));
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(legal) {
        return refuse("a program's name has letters, digits, `.`, `_` and `-`");
    }
    if program.len() > PROGRAM_BOUND || !program.starts_with(b"\x7fELF") {
        return refuse("it is not an ELF program");
    }
    if is_dynamic(program) {
        return refuse("it is linked dynamically: a packed image has no libraries (link it statically)");
    }
    let io = |source| ImageError::Io { act: "pack the program", source };
    let layer = layer(name, program);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&layer).map_err(io)?;
    let packed = packed.finish().map_err(io)?;
    let (digest, size) = store.blobs.put(packed.as_slice(), None)?;
    let layer_descriptor = descriptor(MediaType::ImageLayerGzip, &digest, size);
    let (digest, size) = store.blobs.put(config(name, &digest_of(&layer)).as_slice(), None)?;
    let manifest = store.put_manifest(descriptor(MediaType::ImageConfig, &digest, size), vec![layer_descriptor])?;
    let image = store.image(&manifest)?;
    store.record(&image)?;
    Ok(image)
}

/// Returns the archive of the program.
fn layer(name: &str, program: &[u8]) -> Vec<u8> {
    const FITS: &str = "a short name and a number of 30 bits fit into a header";
    let mut entry = EntryBuilder::new_ustar();
    entry.path(name).size(program.len() as u64).expect(FITS).mode(0o755).expect(FITS);
    let mut archive = entry.finish_bytes();
    archive.extend_from_slice(program);
    // Padding, and the two blocks of zeros that end an archive.
    archive.resize(archive.len().next_multiple_of(HEADER_SIZE) + 2 * HEADER_SIZE, 0);
    archive
}

/// Returns the image config of a program whose uncompressed layer has the digest `diff_id`.
fn config(name: &str, diff_id: &str) -> Vec<u8> {
    const COMPLETE: &str = "every required field is set";
    let config = ConfigBuilder::default().entrypoint([format!("/{name}")]).build().expect(COMPLETE);
    let root = RootFsBuilder::default().diff_ids([diff_id.to_owned()]).build().expect(COMPLETE);
    let config = ImageConfigurationBuilder::default()
        .architecture(Arch::default())
        .os(Os::Linux)
        .config(config)
        .rootfs(root)
        .build()
        .expect(COMPLETE);
    serde_json::to_vec(&config).expect("the types of oci-spec have a JSON form")
}

fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Returns whether the ELF file has a program header of type PT_INTERP (elf(5)). Reads 64-bit little-endian files.
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
