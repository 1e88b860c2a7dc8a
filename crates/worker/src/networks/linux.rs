//! The kernel of this node and its DNS server.
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use flota_api::id::{NetworkId, NodeId, TaskId};
use flota_api::model::Assignment;

use super::kernel::{AttachError, Attached, Kernel, KernelError, TaskSockets};
use super::view::{Touched, View};
