//! Tests of fetching a blob from holders that break off or send damaged data.

use super::*;
use crate::test_cluster::TestCluster;
use flota_api::model::{NodeAddress, Role};

/// What a holder sends.
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
        self.asked.lock().expect("no holder panics").push(offset);
        let mut rest = self.blob[usize::try_from(offset).expect("a small blob")..].to_vec();
        let broken = || Some(Err(Status::unavailable("the machine is gone")));
        let end = match self.gives {
            Gives::All => None,
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
            flota_identity::incoming(listener, &cluster.identity(Role::Worker), None, Default::default()).expect("TLS");
        let holder = Holder { blob: blob.clone(), gives: *gives, asked: Arc::default() };
        asked.push(Arc::clone(&holder.asked));
        let server = tonic::transport::Server::builder().add_service(ImageStoreServer::new(holder));
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = ImageStore::open(dir.path(), true).expect("a folder");
    let (digest, _) = store.blobs.put(blob.as_slice(), None).expect("stored");
    store.blobs.remove(&digest).expect("removed");
    let dialer = Dialer::new(&cluster.identity(Role::Worker)).expect("its own key");
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
    assert_eq!((fetched, asked), (Ok(()), vec![vec![0], vec![0]]), "begun anew");
    let (fetched, _) = fetch(&[Gives::Damaged, Gives::Damaged]).await;
    assert!(fetched.expect_err("nobody gave it").contains("damaged"));
    let (fetched, _) = fetch(&[Gives::TooMuch]).await;
    assert!(fetched.expect_err("it has a size").contains("more than the 10000 bytes"));
}
