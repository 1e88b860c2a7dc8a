//! Committed writes a second, for `make bench`: `flota-writes flota SOCKET IN_FLIGHT SECONDS` creates services without a
//! task over a manager's control socket, `flota-writes etcd HOST:PORT IN_FLIGHT SECONDS` puts keys of the same size.
//! Prints the rate, the median and the 99th percentile in ms. One connection, one thread, as many requests at once as said.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

use flota_api::proto::control::CreateServiceRequest;
use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::specs::ServiceSpec;
use flota_api::proto::types::RestartPolicy;

/// etcdserverpb.PutRequest: the two fields that a put needs.
#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Done {}

#[derive(Clone)]
enum Target {
    Flota(ControlClient<Channel>),
    Etcd(Channel),
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Target {
    async fn connect(kind: &str, address: &str) -> Result<Self, Failure> {
        if kind == "etcd" {
            return Ok(Self::Etcd(Endpoint::from_shared(format!("http://{address}"))?.connect().await?));
        }
        Ok(Self::Flota(flota_tests::connect(Path::new(address)).await?))
    }

    async fn write(&mut self, name: &str) -> Result<(), Failure> {
        match self {
            Self::Flota(client) => {
                let spec = ServiceSpec {
                    name: name.into(),
                    image: "whoami".into(),
                    restart: Some(RestartPolicy::default()),
                    ..ServiceSpec::default()
                };
                let request = CreateServiceRequest { request_id: name.into(), spec: Some(spec) };
                client.create_service(request).await?;
            }
            Self::Etcd(channel) => {
                let mut client = tonic::client::Grpc::new(channel.clone());
                client.ready().await?;
                let put = Put { key: name.into(), value: vec![b'x'; 200] };
                let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
                let codec = tonic_prost::ProstCodec::<Put, Done>::default();
                client.unary(tonic::Request::new(put), path, codec).await?;
            }
        }
        Ok(())
    }
}

async fn run(arguments: &[String]) -> Result<(), Failure> {
    let [kind, address, in_flight, seconds] = arguments else {
        return Err("usage: flota-writes flota|etcd ADDRESS IN_FLIGHT SECONDS".into());
    };
    let (in_flight, seconds): (usize, u64) = (in_flight.parse()?, seconds.parse()?);
    let target = Target::connect(kind, address).await?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..in_flight {
        let mut target = target.clone();
        // Names of one run must not meet those of another.
        let run = format!("b{}-{writer}", std::process::id());
        writers.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                target.write(&format!("{run}-{}", times.len())).await?;
                times.push(begun.elapsed());
            }
            Ok::<_, Failure>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(writer) = writers.join_next().await {
        times.extend(writer??);
    }
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).map_or(0.0, Duration::as_secs_f64) * 1e3;
    write_line(&format!("{rate:.0} {:.2} {:.2}", at(50), at(99)))?;
    Ok(())
}

fn write_line(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}")
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(run(&arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
