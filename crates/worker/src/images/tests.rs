//! Tests of fetching a blob from holders that break off or send damaged data.

use std::pin::Pin;

use futures::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::uses::ImageRole;
use super::*;
use crate::test_cluster::TestCluster;
use flota_api::model::{NodeAddress, Role};
use flota_api::proto::images::image_store_server::{ImageStore as ImageStoreRpc, ImageStoreServer};
use flota_api::proto::images::{Chunk, GetBlobRequest};

/// The answer of a holder.
#[derive(Clone, Copy, Debug)]
enum Gives {
    /// This many bytes before the connection ends.
    Part(usize),
    All,
    /// The whole blob, with one bit changed.
    Damaged,
    /// More than the whole blob.
    TooMuch,
    Nothing,
    /// Nothing the first two times, because it serves others, and then all.
    Busy,
}

struct Holder {
    blob: Vec<u8>,
    gives: Gives,
    asked: Arc<Mutex<Vec<u64>>>,
}

#[tonic::async_trait]
impl ImageStoreRpc for Holder {
    type GetBlobStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn get_blob(&self, request: Request<GetBlobRequest>) -> Result<Response<Self::GetBlobStream>, Status> {
        let offset = request.into_inner().offset;
        let times = {
            let mut asked = self.asked.lock().expect("no holder panics");
            asked.push(offset);
            asked.len()
        };
        let mut rest = self.blob[usize::try_from(offset).expect("a small blob")..].to_vec();
        let broken = || Some(Err(Status::unavailable("the machine is gone")));
        let end = match self.gives {
            Gives::Busy if times <= 2 => return Err(Status::resource_exhausted("busy")),
            Gives::All | Gives::Busy => None,
            Gives::Part(bytes) => {
                rest.truncate(bytes);
                broken()
            }
            Gives::Damaged => {
                rest[0] ^= 1;
                None
            }
            Gives::TooMuch => {
                rest.extend_from_slice(&[0; 100]);
                None
            }
            Gives::Nothing => return Err(Status::not_found("this node does not hold the image")),
        };
        let chunks: Vec<_> =
            rest.chunks(1000).map(|data| Ok(Chunk { data: data.to_vec().into() })).chain(end).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}

/// Fetches a blob of 10,000 bytes from such holders in turn. Returns the result, and the offsets at which each was
/// asked.
async fn fetch(holders: &[Gives]) -> (Result<(), String>, Vec<Vec<u64>>) {
    let blob: Vec<u8> = (0..10_000u32).map(|number| u8::try_from(number * 7 % 251).expect("it is small")).collect();
    let cluster = TestCluster::new();
    let (mut peers, mut asked) = (Vec::new(), Vec::new());
    for gives in holders {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        peers.push(NodeAddress { address, ..NodeAddress::default() });
        let (incoming, _) =
            flota_identity::incoming(listener, cluster.credentials(Role::Worker), None, Default::default());
        let holder = Holder { blob: blob.clone(), gives: *gives, asked: Arc::default() };
        asked.push(Arc::clone(&holder.asked));
        let server = tonic::transport::Server::builder().add_service(ImageStoreServer::new(holder));
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = ImageStore::open(dir.path(), true).expect("a folder");
    let (digest, _) = store.blobs.put(blob.as_slice(), None).expect("stored");
    store.blobs.remove(&digest).expect("removed");
    let dialer = Dialer::new(cluster.credentials(Role::Worker));
    let images = Images::new(store, dialer, Registries::default(), Reporter::default(), Clock::system());
    let source = ImageSource { digest: digest.clone(), holders: peers, grant: None };
    let fetched = images.fetch_blob(&source, &digest, 10_000).await.map_err(|error| error.to_string());
    assert_eq!(images.store.blobs.has(&digest), fetched.is_ok(), "it is there whole, or not at all");
    let left = std::fs::read_dir(dir.path().join("blobs/partial")).expect("a folder").count();
    assert_eq!(left, 0, "nothing half made is left");
    (fetched, asked.iter().map(|it| it.lock().expect("no holder panics").clone()).collect())
}

#[tokio::test]
async fn a_transfer_goes_on_with_the_next_holder_where_it_stopped() {
    let (fetched, asked) = fetch(&[Gives::Part(4_000), Gives::Nothing, Gives::Part(1_000), Gives::All]).await;
    assert_eq!((fetched, asked), (Ok(()), vec![vec![0], vec![4_000], vec![4_000], vec![5_000]]));
}

#[tokio::test]
async fn a_holder_that_gives_something_else_does_not_spoil_what_the_others_give() {
    let (fetched, asked) = fetch(&[Gives::Damaged, Gives::All]).await;
    assert_eq!((fetched, asked), (Ok(()), vec![vec![0], vec![0]]), "begun again");
    let (fetched, _) = fetch(&[Gives::Damaged, Gives::Damaged]).await;
    assert!(fetched.expect_err("no holder gave it").contains("damaged"));
    let (fetched, _) = fetch(&[Gives::TooMuch]).await;
    assert!(fetched.expect_err("it has a size").contains("more than the 10000 bytes"));
}

#[tokio::test]
async fn a_holder_that_is_busy_is_waited_for_if_no_other_one_has_it() {
    let (fetched, asked) = fetch(&[Gives::Busy, Gives::Nothing]).await;
    assert_eq!((fetched, asked), (Ok(()), vec![vec![0; 3], vec![0; 2]]));
    let (fetched, asked) = fetch(&[Gives::Busy, Gives::All]).await;
    assert_eq!((fetched, asked), (Ok(()), vec![vec![0], vec![0]]), "another one has it");
}

/// Returns this node's images, of which the one with this digest was packed here and reported to the leader.
fn packed(dir: &std::path::Path) -> (Images, String) {
    let store = ImageStore::open(dir, true).expect("a folder");
    let program = [b"\x7fELF".as_slice(), &[0; 60]].concat();
    let digest = flota_image::pack(&store, "program", &program).expect("packed").digest;
    let dialer = Dialer::new(TestCluster::new().credentials(Role::Worker));
    (Images::new(store, dialer, Registries::default(), Reporter::default(), Clock::system()), digest)
}

#[tokio::test]
async fn an_image_that_a_task_uses_is_not_removed_before_its_task() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, digest) = packed(dir.path());
    // The name of the image was resolved on this node, so that the assignment does not contain the digest.
    let task = Assignment { task_id: "t".into(), ..Assignment::default() };
    images.ensure(&task, &WantedImage::own(&task, Some(&digest))).await.expect("it is here");
    images.drop_now(std::slice::from_ref(&digest)).await;
    assert!(images.store.whole_image(&digest).is_some(), "a task uses it");
    images.uses.remove(&"t".into());
    images.drop_now(std::slice::from_ref(&digest)).await;
    assert!(images.store.whole_image(&digest).is_none());
}

#[tokio::test]
async fn an_image_whose_removal_has_begun_is_not_used_before_that_has_ended() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, digest) = packed(dir.path());
    let removing = images.changing.clone().write_owned().await;
    let task = Assignment { task_id: "t".into(), ..Assignment::default() };
    let wanted = WantedImage::own(&task, Some(&digest));
    let ensured = images.ensure(&task, &wanted);
    tokio::pin!(ensured);
    assert!(futures::poll!(&mut ensured).is_pending(), "its blobs are still there");
    images.store.remove(&digest).expect("removed");
    drop(removing);
    ensured.await.expect_err("nobody has it any more");
}

#[tokio::test]
async fn only_the_newest_list_of_images_to_hold_is_fetched() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, digest) = packed(dir.path());
    let source = |digest: &str| ImageSource { digest: digest.to_owned(), holders: Vec::new(), grant: None };
    let absent = || source(&format!("sha256:{}", "1".repeat(64)));
    let reported = || images.reporter.has_report_of(&digest);
    let removing = images.changing.clone().write_owned().await;
    let first = images.clone().keep(vec![absent(), source(&digest)]);
    tokio::pin!(first);
    assert!(futures::poll!(&mut first).is_pending(), "it is fetching");
    let second = images.clone().keep(vec![absent()]);
    tokio::time::timeout(DROP_RETRY, second).await.expect("the first one carries it out");
    drop(removing);
    first.await;
    assert!(!reported(), "it is not on the newest list");
    images.clone().keep(vec![source(&digest)]).await;
    assert!(reported());
    drop(images.clone().keep(vec![source(&digest)]));
    drop(images.clone().drop_unused(vec![digest.clone()]));
    assert!(images.to_keep().is_empty(), "the leader has no use for it any more");
}

#[tokio::test]
async fn an_image_that_this_node_is_to_hold_and_has_already_is_reported() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, digest) = packed(dir.path());
    assert!(!images.reporter.has_report_of(&digest));
    let source = ImageSource { digest: digest.clone(), holders: Vec::new(), grant: None };
    images.clone().keep(vec![source]).await;
    assert!(images.reporter.has_report_of(&digest));
}

#[tokio::test]
async fn an_image_that_the_leader_names_and_no_node_holds_is_the_one_with_that_digest_in_the_registry() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, digest) = packed(dir.path());
    let spec = Arc::new(flota_api::model::ServiceSpec { image: "127.0.0.1:1/program:1".into(), ..Default::default() });
    let task = |digest: &str| {
        let source = ImageSource { digest: digest.into(), holders: Vec::new(), grant: None };
        Assignment { task_id: "t".into(), spec: Arc::clone(&spec), image: Some(source), ..Assignment::default() }
    };
    images.ensure(&task(&digest), &WantedImage::own(&task(&digest), None)).await.expect("it is here");
    assert!(images.reporter.has_report_of(&digest), "the leader does not know that");
    let other = format!("sha256:{}", "1".repeat(64));
    let task = task(&other);
    let wanted = WantedImage::own(&task, Some(&digest));
    let error = images.ensure(&task, &wanted).await.expect_err("no node has it");
    let text = flota_api::text::with_causes(&error);
    assert!(
        text.starts_with(&format!("no node holds the image {other}, and its registry does not send it: ")),
        "{text}"
    );
    assert!(text.contains(&format!("failed to pull 127.0.0.1:1/program@{other}: failed to connect")), "{text}");
}

#[tokio::test]
async fn tasks_of_one_spec_run_the_image_that_the_first_one_resolved() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, digest) = packed(dir.path());
    // Nothing listens at this registry: a request to it fails the test.
    let spec = flota_api::model::ServiceSpec { image: "127.0.0.1:1/program".into(), ..Default::default() };
    let task = |id: &str, spec_version| Assignment {
        task_id: id.into(),
        service_id: "s".into(),
        spec_version,
        spec: Arc::new(spec.clone()),
        ..Assignment::default()
    };
    images.uses.add(&task("first", 1), ImageRole::Root, &digest);
    let task_of_same = task("second", 1);
    let wanted = WantedImage::own(&task_of_same, None);
    let second = images.ensure(&task_of_same, &wanted).await.expect("the registry is not asked");
    assert_eq!(second.digest, digest);
    assert_eq!(images.uses.of_spec(&task("other", 2), &ImageRole::Root), None, "another spec is resolved again");
}

#[tokio::test]
async fn nothing_is_removed_while_an_image_is_added_that_nobody_waits_for_any_more() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, _) = packed(dir.path());
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let adding = tokio::spawn({
        let images = images.clone();
        let work = move |_: &ImageStore| {
            let _ = begun.send(());
            let _ = goes_on.recv();
            Ok(())
        };
        async move { images.add(work).await.map(drop) }
    });
    begins.await.expect("the work has begun");
    adding.abort();
    assert!(adding.await.expect_err("it was cancelled").is_cancelled());
    assert!(images.changing.try_write().is_err(), "the work goes on");
    drop(go_on);
    // Tokio's locks have a queue, so this waits until the work has ended.
    let ended = tokio::time::timeout(Duration::from_secs(20), images.changing.write());
    drop(ended.await.expect("nothing is removed for ever"));
}
