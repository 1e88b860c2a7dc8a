//! Measures committed writes per second, for `make bench`:
//! `flota-writes flota|etcd HOST:PORT CERTIFICATES IN_FLIGHT SECONDS`.
//!
//! `flota` creates services without tasks, `etcd` puts keys of the same size. Both use one connection with mutual TLS, with
//! `ca.pem`, `cert.pem` and `key.pem` of the folder CERTIFICATES. One thread keeps IN_FLIGHT requests in flight. Prints the
//! rate, and the median and 99th percentile of the latency in ms.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use flota_api::proto::control::control_client::ControlClient;
use flota_api::proto::control::{CreateServiceRequest, ResolveImage};
use flota_api::proto::specs::ServiceSpec;
use flota_api::proto::types::RestartPolicy;

/// etcdserverpb.PutRequest, with the two fields that a put needs.
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

const USAGE: &str = "usage: flota-writes flota|etcd HOST:PORT CERTIFICATES IN_FLIGHT SECONDS";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The name in the certificates of managers.
const MANAGER_NAME: &str = "manager.flota";
/// The name in the certificate that the benchmark makes for etcd.
const ETCD_NAME: &str = "localhost";

async fn connect(address: &str, name: &str, certificates: &Path) -> Result<Channel, Failure> {
    let read = |name: &str| std::fs::read(certificates.join(name));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")?))
        .identity(Identity::from_pem(read("cert.pem")?, read("key.pem")?))
        .domain_name(name);
    Ok(Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await?)
}

impl Target {
    async fn connect(kind: &str, address: &str, certificates: &Path) -> Result<Self, Failure> {
        match kind {
            "flota" => Ok(Self::Flota(ControlClient::new(connect(address, MANAGER_NAME, certificates).await?))),
            "etcd" => Ok(Self::Etcd(connect(address, ETCD_NAME, certificates).await?)),
            _ => Err(USAGE.into()),
        }
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
                let request = CreateServiceRequest {
                    request_id: name.into(),
                    spec: Some(spec),
                    // A write is measured, and not a question to a registry.
                    resolve_image: ResolveImage::Never.into(),
                };
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
    let [kind, address, certificates, in_flight, seconds] = arguments else { return Err(USAGE.into()) };
    let (in_flight, seconds): (usize, u64) = (in_flight.parse()?, seconds.parse()?);
    let target = Target::connect(kind, address, Path::new(certificates)).await?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..in_flight {
        let mut target = target.clone();
        // Names must differ between runs.
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
