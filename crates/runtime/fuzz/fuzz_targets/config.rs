//! Any bytes as a configuration: read, checked, and, where that went well, written and read again to the same.
#![no_main]

use flota_runtime::oci::{Spec, parse_json};
use flota_runtime::validate;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Ok(spec) = parse_json::<Spec>(text, "it") else { return };
    if validate(&spec).is_ok() {
        let again = serde_json::to_vec(&spec).expect("plain data");
        assert_eq!(parse_json::<Spec>(again.as_slice(), "it").expect("written by ourselves"), spec);
    }
});
