//! `linux.resources.pids`: the number of processes and threads.

use super::{Controller, Write};
use crate::error::StepError;
use crate::oci::Pids;

impl Controller for Pids {
    fn name(&self, _v2: bool) -> &'static str {
        "pids"
    }

    fn v1(&self) -> Result<Vec<Write>, StepError> {
        let limit = if self.limit > 0 { self.limit.to_string() } else { "max".to_owned() };
        Ok(vec![Write::new("pids.limit", "pids.max", limit).lifting(self.limit <= 0)])
    }

    fn v2(&self, _now: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Write>, StepError> {
        self.v1()
    }
}
