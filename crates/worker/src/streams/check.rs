//! Reports on one of a task's networks.

use flota_api::model::NetworkCheck;
use flota_api::proto::streams::frame::Frame as F;

use super::{Outbox, send};
use crate::executor::ContainerExecutor;

/// Sends the report.
pub(super) async fn check(executor: &ContainerExecutor, request: NetworkCheck, outbox: &Outbox) {
    let NetworkCheck { network, probe } = request;
    let frame = match executor.plan_check(&network).await {
        Some(plan) => match tokio::task::spawn_blocking(move || plan.carry_out(probe)).await {
            Ok(report) => F::Checked(report.into()),
            Err(_) => F::Error("the check panicked".into()),
        },
        None => F::Error("the worker ends".into()),
    };
    // An error of this send means that the leader waits no more.
    let _ = send(outbox, frame).await;
}
