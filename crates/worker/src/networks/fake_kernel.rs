//! A kernel in memory, for tests of the code that changes kernels.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use flota_api::id::{NetworkId, TaskId};
use flota_api::model::{Assignment, NodePort, TunnelKey};
use flota_network::NetworkError;

use super::NetworkFacts;
use super::check::CheckPlan;
use super::kernel::{AttachError, Attached, Kernel, KernelError, TaskSockets};
use super::view::{Touched, View};

/// What a machine's kernel has, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) networks: BTreeSet<NetworkId>,
    pub(crate) tasks: BTreeSet<TaskId>,
    pub(crate) adopted: BTreeSet<TaskId>,
    pub(crate) audits: usize,
    pub(crate) refuses: bool,
    /// Ended tasks whose connections are not closed yet.
    pub(crate) sending: BTreeSet<TaskId>,
    /// What the leader should know of its network.
    pub(crate) facts: NetworkFacts,
    /// The key that it makes next.
    pub(crate) new_key: Option<TunnelKey>,
    /// The version of the record of an earlier daemon.
    pub(crate) succeeded: Option<u64>,
    /// The ports that are left to the node's own programs.
    pub(crate) left: BTreeSet<NodePort>,
}

/// A kernel in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeKernel(Arc<Mutex<Machine>>);

impl FakeKernel {
    pub(crate) fn machine(&self) -> std::sync::MutexGuard<'_, Machine> {
        self.0.lock().unwrap()
    }
}

impl Kernel for FakeKernel {
    fn networks(&self) -> BTreeSet<NetworkId> {
        self.machine().networks.clone()
    }

    fn tasks(&self) -> BTreeSet<TaskId> {
        self.machine().tasks.clone()
    }

    fn has_namespace(&self, task: &TaskId) -> bool {
        self.machine().tasks.contains(task)
    }

    fn program(&mut self, view: &View, tasks: &[&Assignment], todo: &mut Touched) -> Result<(), KernelError> {
        if self.machine().refuses {
            return Err(NetworkError::NoLink("br0".into()).into());
        }
        let in_use: Vec<&NetworkId> = tasks.iter().flat_map(|it| &it.attachments).map(|it| &it.network).collect();
        for id in std::mem::take(todo).networks {
            if view.network(&id).is_some() {
                self.machine().networks.insert(id);
            } else if !in_use.contains(&&id) {
                self.machine().networks.remove(&id);
            }
        }
        Ok(())
    }

    fn succeed(&mut self, recorded: &View, _: &View) {
        self.machine().succeeded = Some(recorded.version);
    }

    fn settle(&mut self) {}

    fn attach(&mut self, _: &View, task: &Assignment) -> Result<Attached, AttachError> {
        self.machine().tasks.insert(task.task_id.clone());
        Ok(Attached::default())
    }

    fn adopt(&mut self, _: &View, task: &Assignment, _: &TaskSockets) -> Result<(), AttachError> {
        self.machine().adopted.insert(task.task_id.clone());
        Ok(())
    }

    fn facts(&mut self) -> NetworkFacts {
        self.machine().facts.clone()
    }

    fn renew_key(&mut self) {
        let mut machine = self.machine();
        let new = machine.new_key.take();
        machine.facts.tunnel_keys.extend(new);
    }

    fn settle_key(&mut self, public: [u8; 32]) {
        self.machine().facts.tunnel_keys.retain(|it| it.public == public);
    }

    fn set_managers(&mut self, _: BTreeSet<IpAddr>) {}

    fn leave_ports(&mut self, ports: &BTreeSet<NodePort>) {
        self.machine().left = ports.clone();
    }

    fn audit(&mut self, _: &View) -> Result<(), KernelError> {
        self.machine().audits += 1;
        Ok(())
    }

    fn plan_check(&mut self, _: &View, _: &NetworkId) -> CheckPlan {
        CheckPlan::default()
    }

    fn is_sending(&mut self, task: &TaskId) -> bool {
        self.machine().sending.contains(task)
    }

    fn detach(&mut self, task: &TaskId, _: Option<&Assignment>) -> Result<(), KernelError> {
        self.machine().tasks.remove(task);
        Ok(())
    }

    fn remove_all(&mut self) -> Result<(), KernelError> {
        self.machine().networks.clear();
        Ok(())
    }
}
