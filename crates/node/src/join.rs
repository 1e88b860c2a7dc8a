//! How a machine gets an identity: as the first node of a new cluster, or from a manager with a join token.

use std::future::Future;
use std::io::ErrorKind;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;

use flota_api::FEATURE_LEVEL;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::Role;
use flota_api::proto::ca::node_ca_client::NodeCaClient;
use flota_api::proto::ca::{IssueCertificateRequest, JoinRaftRequest};
use flota_api::proto::raft::RaftMessage;
use flota_api::proto::raft::raft_transport_client::RaftTransportClient;
use flota_api::reason::Reason;
use flota_identity::{Dialer, Identity, JoinToken, KeyPair, RootCa, refusal};

/// No manager could be reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreachable(pub(crate) String);

/// How long a request is repeated while the managers have no leader.
const JOIN_WAIT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(100);
/// How long the other managers have to answer whether this one was removed. A manager whose peers are off starts so much
/// later.
const REMOVED_WAIT: Duration = Duration::from_millis(500);

/// Creates a new cluster's id and CA, unless it is given, and this node's identity in it as a manager, whose certificate is
/// valid for `life`.
pub(crate) fn first_identity(life: Duration, given: Option<RootCa>) -> anyhow::Result<(ClusterId, RootCa, Identity)> {
    let mut rng = rand::rng();
    let (cluster, node) = (ClusterId::random(&mut rng), NodeId::random(&mut rng));
    let now = SystemTime::now();
    let ca = given.map_or_else(|| RootCa::generate(&cluster, now), Ok)?;
    let key = KeyPair::generate()?;
    let certificate = ca.sign(&key.signing_request()?, &node, Role::Manager, &cluster, now, life)?;
    let identity = Identity::new(certificate, key.to_der(), vec![ca.certificate().to_vec()])?;
    Ok((cluster, ca, identity))
}

/// Requests a certificate from a manager. Returns the identity and the addresses of all managers.
pub(crate) async fn join(token: &str, manager: &str, address: &str) -> anyhow::Result<(Identity, Vec<String>)> {
    let parsed: JoinToken = token.parse()?;
    let key = KeyPair::generate()?;
    let request = IssueCertificateRequest {
        token: token.trim().to_owned(),
        csr_der: key.signing_request()?.into(),
        hostname: flota_worker::describe().hostname,
        address: address.to_owned(),
        feature_level: FEATURE_LEVEL,
    };
    let client = NodeCaClient::new(Dialer::to_join(&parsed.ca_digest).manager(manager));
    let answer = retry(manager, || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.issue_certificate(request).await }
    });
    let answer = answer.await?.into_inner();
    let [trusted, chain] = [answer.ca_der, answer.chain_der].map(|it| it.into_iter().map(Into::into).collect());
    let identity = Identity::new(answer.certificate_der.into(), key.to_der(), trusted)?;
    Ok((identity.with_intermediates(chain), answer.managers))
}

/// Repeats a request while the managers elect a leader. A refusal, and a manager that can't be reached, is returned
/// immediately.
async fn retry<T, F>(manager: &str, request: impl Fn() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, tonic::Status>>,
{
    let until = tokio::time::Instant::now() + JOIN_WAIT;
    loop {
        match tokio::time::timeout_at(until, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            // An error of the connection has no reason.
            Ok(Err(status)) if Reason::of(&status).is_some_and(|reason| !reason.is_judgement()) => {
                if tokio::time::Instant::now() + PAUSE >= until {
                    return Err(explain(&status, manager));
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ok(Err(status)) => return Err(explain(&status, manager)),
            Err(_) => return Err(Unreachable(format!("the manager at {manager} does not answer")).into()),
        }
    }
}

/// Converts a status to an error for the user. Of a broken connection it shows the innermost cause only, because the
/// layers in between add nothing.
fn explain(status: &tonic::Status, manager: &str) -> anyhow::Error {
    let cause = innermost(status);
    match (Reason::of(status), status.code()) {
        (None, tonic::Code::Unavailable | tonic::Code::Unknown) => {
            let text = format!("failed to connect to the manager at {manager}: {}", own_words(cause));
            // A refused handshake is an answer: the manager was reached.
            let refused = |error: &std::io::Error| matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::Other);
            let unreachable = cause.downcast_ref::<std::io::Error>().is_some_and(|error| !refused(error));
            if unreachable { Unreachable(text).into() } else { anyhow!(text) }
        }
        _ => anyhow!("{}", status.message()),
    }
}

/// The innermost cause of a status.
fn innermost(status: &tonic::Status) -> &(dyn std::error::Error + 'static) {
    let mut cause: &(dyn std::error::Error + 'static) = status;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

/// Why a request failed: the words of a manager that has answered, or those of a broken connection.
pub(crate) fn why(status: &tonic::Status) -> String {
    match Reason::of(status) {
        Some(_) => status.message().to_owned(),
        None => own_words(innermost(status)),
    }
}

/// The text of a connection's failure, with our own words for what the TLS library says.
fn own_words(cause: &(dyn std::error::Error + 'static)) -> String {
    let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let inner: Option<&rustls::Error> = inner.and_then(|it| it.downcast_ref()).or_else(|| cause.downcast_ref());
    inner.map_or_else(|| cause.to_string(), refusal)
}

/// Returns whether one of the managers that can be reached says that the cluster has removed this one.
pub(crate) async fn was_removed(dialer: &Dialer, managers: &[String], own: &str) -> bool {
    let others = managers.iter().filter(|manager| *manager != own);
    let answers = others.map(|manager| {
        // Refused before anybody looks at the message. One that is not refused is for another Raft id, and changes nothing.
        let mut client = RaftTransportClient::new(dialer.raft(manager));
        async move {
            let answer = tokio::time::timeout(REMOVED_WAIT, client.digest(RaftMessage::default())).await;
            matches!(answer, Ok(Err(status)) if Reason::of(&status) == Some(Reason::NodeRemoved))
        }
    });
    futures::future::join_all(answers).await.contains(&true)
}

/// Requests a Raft id for this manager from another one. The id was never used.
pub(crate) async fn raft_id(dialer: &Dialer, node: &NodeId, managers: &[String], address: &str) -> anyhow::Result<u64> {
    let mut last = anyhow!("no other manager is known");
    for manager in managers.iter().filter(|manager| *manager != address) {
        let request =
            JoinRaftRequest { node_id: node.to_string(), address: address.to_owned(), feature_level: FEATURE_LEVEL };
        let client = NodeCaClient::new(dialer.manager(manager));
        let answer = retry(manager, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.join_raft(request).await }
        });
        match answer.await {
            Ok(answer) => return Ok(answer.into_inner().raft_id),
            Err(error) => last = error,
        }
    }
    Err(last.context("failed to get a Raft id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_repeated_for_its_reason_and_not_for_its_code() {
        let answers = |answers: Vec<Result<u8, tonic::Status>>| {
            let answers = std::sync::Mutex::new(answers.into_iter());
            move || std::future::ready(answers.lock().expect("no holder panics").next().expect("it is not asked again"))
        };
        let no_leader = || Err(Reason::NoLeader.attach(tonic::Status::unavailable("no leader")));
        let joined = retry("m1", answers(vec![no_leader(), no_leader(), Ok(7)])).await;
        assert_eq!(joined.expect("a leader answers"), 7);
        let denied = Err(Reason::Denied.attach(tonic::Status::unavailable("not you")));
        let refused = retry("m1", answers(vec![no_leader(), denied])).await.expect_err("it is refused");
        assert_eq!(refused.to_string(), "not you");
        let broken = retry("m1", answers(vec![Err(tonic::Status::unavailable("reset"))])).await;
        let broken = broken.expect_err("no manager has answered").to_string();
        assert!(broken.starts_with("failed to connect to the manager at m1: "), "{broken}");
    }

    #[test]
    fn a_verifiers_refusal_is_told_in_its_own_words() {
        let refused = || rustls::Error::General("it belongs to another cluster".into());
        let wrapped = std::io::Error::new(ErrorKind::InvalidData, refused());
        assert_eq!(own_words(&wrapped), "it belongs to another cluster");
        assert_eq!(own_words(&refused()), "it belongs to another cluster");
        let other = std::io::Error::from(ErrorKind::ConnectionRefused);
        assert_eq!(own_words(&other), other.to_string());
    }
}
