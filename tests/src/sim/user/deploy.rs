//! What the users have in common who change services of their own, and whose history is not recorded.

use std::time::Duration;

use rand::Rng;
use tonic::Status;

use flota_api::proto::control::{
    CreateServiceRequest, DeployStackRequest, GetRequest, RemoveRequest, RemoveStackRequest, UpdateServiceRequest,
};
use flota_api::proto::specs::{ServiceSpec, StackSpec};
use flota_api::reason::Reason;

use super::Client;

impl Client {
    /// Updates a service to this spec, or creates it if there is none of its name. No history records that.
    pub(super) async fn deploy(&mut self, spec: ServiceSpec) {
        tracing::info!(client = self.number, service = spec.name, env = ?spec.env, image = spec.image, "a service is deployed");
        let update = UpdateServiceRequest {
            request_id: self.request_id(self.history.tag()),
            service: spec.name.clone(),
            spec: Some(spec.clone()),
            ..UpdateServiceRequest::default()
        };
        let updated = self.request(|mut client| {
            let update = update.clone();
            async move { client.update_service(update).await.map(drop) }
        });
        let is_missing = |status: &Status| Reason::of(status) == Some(Reason::NotFound);
        if !updated.await.is_some_and(|answer| answer.is_err_and(|status| is_missing(&status))) {
            return;
        }
        let request_id = self.request_id(self.history.tag());
        let create = CreateServiceRequest { request_id, spec: Some(spec), ..CreateServiceRequest::default() };
        let created = self.request(|mut client| {
            let create = create.clone();
            async move { client.create_service(create).await.map(drop) }
        });
        // Whoever changes a service does so again, and the last change is made when nothing goes wrong.
        created.await;
    }

    /// Deploys a stack of these services.
    pub(super) async fn deploy_stack(&mut self, name: &str, services: Vec<ServiceSpec>) {
        let request_id = self.request_id(self.history.tag());
        let spec = StackSpec { name: name.into(), services, ..StackSpec::default() };
        let request = DeployStackRequest { request_id, spec: Some(spec), ..DeployStackRequest::default() };
        self.request(|mut client| {
            let request = request.clone();
            async move { client.deploy_stack(request).await.map(drop) }
        })
        .await;
    }

    /// Removes a service, if it is there. No history records that.
    pub(super) async fn undeploy(&mut self, name: &str) {
        let request_id = self.request_id(self.history.tag());
        let request = RemoveRequest { request_id, name: name.to_owned(), ..RemoveRequest::default() };
        self.request(|mut client| {
            let request = request.clone();
            async move { client.remove_service(request).await.map(drop) }
        })
        .await;
    }

    /// Removes a stack, if it is there.
    pub(super) async fn remove_stack(&mut self, name: &str) {
        let request_id = self.request_id(self.history.tag());
        let request = RemoveStackRequest { request_id, name: name.into(), ..RemoveStackRequest::default() };
        self.request(|mut client| {
            let request = request.clone();
            async move { client.remove_stack(request).await.map(drop) }
        })
        .await;
    }

    /// Changes a part of the spec that a service has now, if there is one of its name.
    pub(super) async fn amend(&mut self, name: &str, edit: impl Fn(&mut ServiceSpec)) {
        let get = GetRequest { name: name.to_owned() };
        let got = self.request(|mut client| {
            let get = get.clone();
            async move { client.get_service(get).await }
        });
        let Some(Ok(row)) = got.await else { return };
        let Some(service) = row.into_inner().service else { return };
        let Some((mut spec, meta)) = service.spec.zip(service.meta) else { return };
        edit(&mut spec);
        let update = UpdateServiceRequest {
            request_id: self.request_id(self.history.tag()),
            service: name.to_owned(),
            version: meta.version,
            spec: Some(spec),
            ..UpdateServiceRequest::default()
        };
        // It is refused if the service has changed since.
        let amended = self.request(|mut client| {
            let update = update.clone();
            async move { client.update_service(update).await.map(drop) }
        });
        let amended = amended.await;
        tracing::info!(client = self.number, name, ?amended, "a service was to be changed");
    }

    /// Waits for at most so many milliseconds.
    pub(super) async fn pause(&mut self, most: u64) {
        let millis = self.rng.random_range(1..=most);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}
