//! `linux.resources.hugepageLimits`: huge pages in use, and reserved pages if the kernel counts them.

use super::{Controller, Write, refuse};
use crate::error::StepError;
use crate::oci::HugepageLimit;

const FIELD: &str = "hugepageLimits";

/// Checks a page size, such as `2MB` or `1GB`, which becomes part of a file's name.
fn checked(size: &str) -> Result<&str, StepError> {
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    match digits {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit()) => Ok(size),
        _ => Err(refuse(FIELD, format!("`{size}` is not a size of pages (like 2MB)"))),
    }
}

fn writes(limits: &[HugepageLimit], end: &str) -> Result<Vec<Write>, StepError> {
    let mut writes = Vec::new();
    for HugepageLimit { page_size, limit } in limits {
        let size = checked(page_size)?;
        writes.push(Write::new(FIELD, format!("hugetlb.{size}.{end}"), limit));
        writes.push(Write::new(FIELD, format!("hugetlb.{size}.rsvd.{end}"), limit).skip_if_missing(true));
    }
    Ok(writes)
}

impl Controller for Vec<HugepageLimit> {
    fn name(&self, _v2: bool) -> &'static str {
        "hugetlb"
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        writes(self, "limit_in_bytes")
    }

    fn v2(&self, _now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        writes(self, "max")
    }
}
