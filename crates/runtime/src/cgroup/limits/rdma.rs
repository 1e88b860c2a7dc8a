//! `linux.resources.rdma`: handles and objects of each RDMA device. v1 and v2 have the same file.

use std::collections::BTreeMap;

use super::{Controller, Write};
use crate::error::StepError;
use crate::oci::Rdma;

impl Controller for BTreeMap<String, Rdma> {
    fn name(&self, _v2: bool) -> &'static str {
        "rdma"
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        let mut writes = Vec::new();
        for (device, limits) in self {
            let handles = limits.hca_handles.map(|it| format!(" hca_handle={it}")).unwrap_or_default();
            let objects = limits.hca_objects.map(|it| format!(" hca_object={it}")).unwrap_or_default();
            if !handles.is_empty() || !objects.is_empty() {
                writes.push(Write::new("rdma", "rdma.max", format!("{device}{handles}{objects}")));
            }
        }
        Ok(writes)
    }

    fn v2(&self, _now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        self.v1()
    }
}
