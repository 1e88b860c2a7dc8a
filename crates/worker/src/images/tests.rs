use tokio::sync::oneshot;

use super::*;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::Role;
use flota_api::proto::dispatcher::Peer as WirePeer;
use flota_identity::{Identity, KeyPair, RootCa};

/// How a holder gives what it has.
#[derive(Clone, Copy, Debug)]
enum Gives {
    /// So many bytes, and then the connection's end.
    Part(usize),
    All,
    /// All of it, with one bit changed.
    Damaged,
    /// More than there is.
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

/// Fetches a blob of 10,000 bytes from such holders, in turn: what came of it, and from which offsets each was asked.
async fn fetch(holders: &[Gives]) -> (Result<(), String>, Vec<Vec<u64>>) {
    let blob: Vec<u8> = (0..10_000u32).map(|number| u8::try_from(number * 7 % 251).expect("it is small")).collect();
    let cluster = ClusterId::random(&mut rand::rng());
    let ca = RootCa::generate(&cluster, std::time::SystemTime::now()).expect("a CA");
    let identity = || {
        let key = KeyPair::generate().expect("a key");
        let (request, node) = (key.signing_request().expect("a request"), NodeId::random(&mut rand::rng()));
        let certificate =
            ca.sign(&request, &node, Role::Worker, &cluster, std::time::SystemTime::now()).expect("signed");
        Identity::new(certificate, key.to_der(), ca.certificate().to_vec()).expect("an identity")
    };
    let (mut peers, mut asked) = (Vec::new(), Vec::new());
    for gives in holders {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        peers.push(WirePeer { address, ..WirePeer::default() });
        let (incoming, _) = flota_identity::incoming(listener, &identity(), None).expect("TLS");
        let holder = Holder { blob: blob.clone(), gives: *gives, asked: Arc::default() };
        asked.push(Arc::clone(&holder.asked));
        let server = tonic::transport::Server::builder().add_service(ImageStoreServer::new(holder));
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = ImageStore::open(dir.path(), true).expect("a folder");
    let (digest, _) = store.blobs.put(blob.as_slice(), None).expect("stored");
    store.blobs.remove(&digest);
    let images = Images {
        store,
        dialer: Dialer::new(&identity()).expect("its own key"),
        reporter: Reporter::default(),
        grant_key: Arc::default(),
        fetching: Arc::default(),
        changing: Arc::default(),
        unwanted: Arc::default(),
        clock: Clock::system(),
    };
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

#[tokio::test]
async fn a_fetch_of_one_image_does_not_wait_for_another() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = ImageStore::open(dir.path(), true).expect("a folder");
    let cluster = ClusterId::random(&mut rand::rng());
    let ca = RootCa::generate(&cluster, std::time::SystemTime::now()).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let request = key.signing_request().expect("a request");
    let certificate =
        ca.sign(&request, &"n".into(), Role::Worker, &cluster, std::time::SystemTime::now()).expect("signed");
    let identity = Identity::new(certificate, key.to_der(), ca.certificate().to_vec()).expect("an identity");
    let images = Images {
        store,
        dialer: Dialer::new(&identity).expect("its own key"),
        reporter: Reporter::default(),
        grant_key: Arc::default(),
        fetching: Arc::default(),
        changing: Arc::default(),
        unwanted: Arc::default(),
        clock: Clock::system(),
    };
    let held = images.alone_with("one").await;
    let other = timeout(Duration::from_secs(60), images.alone_with("two")).await;
    assert!(other.is_ok());
    let (sender, receiver) = oneshot::channel();
    let waiting = images.clone();
    tokio::spawn(async move {
        let _guard = waiting.alone_with("one").await;
        let _ = sender.send(());
    });
    drop(held);
    timeout(Duration::from_secs(60), receiver).await.expect("in time").expect("the same one waits its turn");
}
