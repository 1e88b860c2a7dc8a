//! A user who deploys the same stack again and again. Only what concerns no task differs: labels of the services, their
//! policies, and on which nodes one of them may be. Sometimes the stack is removed, so that its services are new ones
//! afterwards.

use rand::Rng;

use flota_api::proto::specs::{ServiceSpec, UpdateOrder, UpdatePolicy};
use flota_api::proto::types::RestartPolicy;

use super::Client;

const STACK: &str = "the-yard";
/// The service that may not be on each node.
const BOUND: &str = "the-yard_well";
/// The services whose tasks have nothing to move for but their nodes.
pub(in crate::sim) const STEADY: [&str; 2] = [BOUND, "the-yard_bench"];
/// The label of nodes that keeps [`BOUND`] away if its value is [`AWAY`], and one that says nothing.
pub(in crate::sim) const LABELS: [&str; 2] = ["zone", "rack"];
/// The value of the first of [`LABELS`] on the nodes that the service may leave. The first worker never has it.
pub(in crate::sim) const AWAY: &str = "b";

impl Client {
    /// Deploys the stack until the history is stopped. It is there afterwards.
    pub(super) async fn deploy_yard(mut self) {
        while !self.history.is_stopped() {
            self.deploy_once().await;
            self.pause(1_500).await;
            if self.rng.random_bool(0.05) {
                self.remove_stack(STACK).await;
            }
        }
        self.deploy_once().await;
    }

    async fn deploy_once(&mut self) {
        let is_same = self.rng.random_bool(0.5);
        let tag = if is_same { 0 } else { self.history.tag() };
        let order = if tag % 2 == 0 { UpdateOrder::StopFirst } else { UpdateOrder::StartFirst };
        let spec = |name: &str| ServiceSpec {
            name: name.into(),
            image: self.wishes.image.into(),
            replicas: 3,
            labels: [("change".to_owned(), tag.to_string())].into(),
            constraints: match name == BOUND {
                true => vec![format!("node.labels.{}!={AWAY}", LABELS[0])],
                // Two ways to say that all nodes will do.
                false => (tag % 3 == 1).then(|| "node.hostname!=nowhere".to_owned()).into_iter().collect(),
            },
            update: Some(UpdatePolicy { parallelism: 1 + tag % 3, order: order.into(), ..UpdatePolicy::default() }),
            stop_grace_ms: 1_000,
            restart: Some(RestartPolicy { delay_ms: 200, ..RestartPolicy::default() }),
            ..ServiceSpec::default()
        };
        let services = STEADY.map(spec).into();
        self.deploy_stack(STACK, services).await;
    }
}
