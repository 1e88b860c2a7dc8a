//! One endpoint of a registry, spoken to as the OCI distribution specification and Docker's registries require:
//! credentials and tokens, redirects, retries.
//!
//! A request is repeated when another try may succeed: after a broken connection, 429 or 5xx, and with a new token when
//! the registry no longer takes the old one. Redirects lead to other hosts without the credentials (reqwest removes
//! them), and never from HTTPS to HTTP.

mod auth;
mod name;
mod settings;

use std::error::Error;
use std::fmt;
use std::time::Duration;

use oci_spec::image::{MediaType, ToDockerV2S2};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, DATE, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, redirect};
use tokio::sync::Mutex;

pub use auth::Credentials;
pub use name::ImageName;
pub use settings::{Registries, RegistryOptions, SettingsError};

/// The longest wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// The longest wait for the next bytes of an answer.
const READ_WAIT: Duration = Duration::from_secs(30);
/// Largest number of tries in a row without progress.
pub(crate) const TRIES: u32 = 5;
/// Pause before the second try. It doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause, also if the registry asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Largest number of bytes of an error message that are read.
const MESSAGE: usize = 4096;

/// Why a registry did not answer a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no connection to it.
    #[error("failed to connect to {url}: {}", causes(.source))]
    Connect {
        /// The address of the request.
        url: String,
        /// The cause.
        source: reqwest::Error,
    },
    /// The connection broke.
    #[error("{url} broke off: {}", causes(.source))]
    Broken {
        /// The address of the request.
        url: String,
        /// The cause.
        source: reqwest::Error,
    },
    /// The registry refused the request.
    #[error("{url} answers {status}{message}")]
    Status {
        /// The address of the request.
        url: String,
        /// The status of HTTP.
        status: StatusCode,
        /// The registry's own words, after a colon.
        message: String,
    },
    /// The registry asks for credentials in a way that is not supported, or its answer to them makes no sense.
    #[error("{url} asks for authentication, and {why}")]
    Challenge {
        /// The address of the request.
        url: String,
        /// The defect.
        why: String,
    },
}

impl RequestError {
    fn from_reqwest(url: &str, source: reqwest::Error) -> Self {
        // The address is in the message already.
        let (url, source) = (url.to_owned(), source.without_url());
        let is_connect = source.is_connect() || source.is_builder();
        if is_connect { Self::Connect { url, source } } else { Self::Broken { url, source } }
    }
}

/// Returns the innermost cause, which says what happened.
fn causes(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// An address at which a registry, or a mirror of it, is reached.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// The address with the repository, such as `https://localhost:5000/v2/team/web`.
    url: String,
    repository: String,
    client: Client,
    credentials: Option<Credentials>,
    /// Whether this is the registry itself and not a mirror: what it answers is final.
    pub(crate) is_registry: bool,
    /// The header that the registry took last.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Endpoint {
    /// Returns the registry at `base`, which is `https://HOST` or `http://HOST`.
    pub(crate) fn registry(base: &str, repository: &str, client: Client, credentials: Option<Credentials>) -> Self {
        let (url, repository) = (format!("{base}/v2/{repository}"), repository.to_owned());
        Self { url, repository, client, credentials, is_registry: true, authorization: Mutex::default() }
    }

    /// Returns a mirror at `base`.
    pub(crate) fn mirror(base: &str, repository: &str, client: Client) -> Self {
        Self { is_registry: false, ..Self::registry(base, repository, client, None) }
    }

    /// The error for an answer that broke off.
    pub(crate) fn broken(&self, error: reqwest::Error) -> RequestError {
        RequestError::from_reqwest(&self.url, error)
    }

    /// Requests the manifest or index with this tag or digest.
    pub(crate) async fn manifest(&self, method: Method, version: &str) -> Result<Response, RequestError> {
        let kinds = [MediaType::ImageManifest, MediaType::ImageIndex];
        let docker = kinds.iter().map(|it| it.to_docker_v2s2().expect("Docker has both").to_owned());
        let accept = kinds.iter().map(ToString::to_string).chain(docker).collect::<Vec<_>>().join(", ");
        let accept = HeaderValue::try_from(accept).expect("media types are legal in a header");
        self.request(method, &format!("manifests/{version}"), &accept, 0).await
    }

    /// Requests the rest of a blob from `offset` on. Returns the answer with the offset at which it begins: a registry
    /// need not support ranges.
    pub(crate) async fn get_from(&self, path: &str, offset: u64) -> Result<(Response, u64), RequestError> {
        let response = self.request(Method::GET, path, &HeaderValue::from_static("*/*"), offset).await?;
        let begins = match response.status() {
            StatusCode::PARTIAL_CONTENT => start_of_range(&response).unwrap_or(offset),
            _ => 0,
        };
        Ok((response, begins))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &HeaderValue,
        offset: u64,
    ) -> Result<Response, RequestError> {
        let url = format!("{}/{path}", self.url);
        let (mut tries, mut renewals) = (1, 0);
        let mut authorization = self.authorization.lock().await.clone();
        loop {
            let mut request = self.client.request(method.clone(), &url).header(ACCEPT, accept);
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            if let Some(value) = &authorization {
                request = request.header(AUTHORIZATION, value);
            }
            let asked_pause = match request.send().await.map_err(|error| RequestError::from_reqwest(&url, error)) {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) if self.wants_credentials(&response) && renewals < 2 => {
                    let new = self.renew(&response, authorization.as_ref(), renewals > 0).await?;
                    if authorization.as_ref() == Some(&new) {
                        return Err(refusal(url, response).await);
                    }
                    (authorization, renewals) = (Some(new), renewals + 1);
                    continue;
                }
                Ok(response) if is_passing(response.status()) && tries < TRIES => retry_after(&response),
                Ok(response) => return Err(refusal(url, response).await),
                Err(RequestError::Broken { .. }) if tries < TRIES => None,
                Err(error) => return Err(error),
            };
            pause(tries, asked_pause).await;
            tries += 1;
        }
    }

    /// Returns whether the registry itself, and not a host that it redirects to, asks for credentials.
    fn wants_credentials(&self, response: &Response) -> bool {
        let is_own = reqwest::Url::parse(&self.url).is_ok_and(|own| own.origin() == response.url().origin());
        response.status() == StatusCode::UNAUTHORIZED && is_own
    }

    /// Returns an authorization in place of the one that was refused: the one that another request has got meanwhile, or
    /// a new one. With `own`, it is new and no other request uses it up, because some tokens are good for few requests.
    async fn renew(
        &self,
        response: &Response,
        refused: Option<&HeaderValue>,
        own: bool,
    ) -> Result<HeaderValue, RequestError> {
        if own {
            return self.authorize(response).await;
        }
        let mut authorization = self.authorization.lock().await;
        match &*authorization {
            Some(other) if Some(other) != refused => Ok(other.clone()),
            _ => Ok(authorization.insert(self.authorize(response).await?).clone()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Waits before the next try: as long as the registry asks for, or longer with each try.
pub(crate) async fn pause(tries: u32, asked: Option<Duration>) {
    let pause = asked.unwrap_or(FIRST_PAUSE * 2u32.pow(tries.min(8) - 1));
    tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
}

/// Returns whether another try may have another result.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// Returns the pause that the registry asks for: a number of seconds, or a time (RFC 9110, "Retry-After"), which is
/// measured from the time at which the registry sent its answer, so that this machine's clock does not matter.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = |name| Some(response.headers().get(name)?.to_str().ok()?.trim());
    let after = text(RETRY_AFTER)?;
    match after.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let (until, now) = (httpdate::parse_http_date(after).ok()?, httpdate::parse_http_date(text(DATE)?).ok()?);
            // A time that is past asks for no pause.
            Some(until.duration_since(now).unwrap_or_default())
        }
    }
}

fn start_of_range(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// The registry's answer as an error, in its own words if it has some (OCI distribution specification, "Error codes").
async fn refusal(url: String, mut response: Response) -> RequestError {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await
        && body.len() < MESSAGE
    {
        body.extend_from_slice(&chunk);
    }
    let document: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let words = ["message", "code"].iter().find_map(|key| document["errors"][0][key].as_str());
    let message = words.filter(|it| !it.is_empty()).map(|it| format!(": {it}")).unwrap_or_default();
    RequestError::Status { url, status, message: message.chars().filter(|it| !it.is_control()).collect() }
}

/// A client for a registry with these options.
pub(crate) fn client(options: &RegistryOptions, verify: bool) -> Result<Client, reqwest::Error> {
    let redirects = redirect::Policy::custom(|attempt| {
        let was_secure = attempt.previous().last().is_some_and(|it| it.scheme() == "https");
        if attempt.previous().len() > 10 {
            attempt.error("too many redirects")
        } else if was_secure && attempt.url().scheme() != "https" {
            attempt.error("a redirect from HTTPS to HTTP is not followed")
        } else {
            attempt.follow()
        }
    });
    Client::builder()
        .user_agent(concat!("flota/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_WAIT)
        .read_timeout(READ_WAIT)
        .redirect(redirects)
        .tls_certs_merge(options.authorities.clone())
        .tls_danger_accept_invalid_certs(!verify)
        .build()
}
