//! One endpoint of a registry, spoken to as the OCI distribution specification and Docker's registries require:
//! credentials and tokens, redirects, retries.
//!
//! A request is repeated when another try may succeed: after a broken connection, 429 or 5xx, when a host that has answered
//! before can't be reached, and with a new token when the registry no longer takes the old one. Redirects lead to other hosts without the credentials (reqwest removes
//! them), and never from HTTPS to HTTP.

mod auth;
mod name;
mod settings;

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oci_spec::image::{MediaType, ToDockerV2S2};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, DATE, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, redirect};
use tokio::sync::Mutex;

use crate::manifest::BOUND as DOCUMENT_BOUND;

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
/// What a request accepts that is not for a manifest.
static ANYTHING: HeaderValue = HeaderValue::from_static("*/*");
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
    has_answered: AtomicBool,
}

impl Endpoint {
    /// Returns the registry at `base`, which is `https://HOST` or `http://HOST`.
    pub(crate) fn registry(base: &str, repository: &str, client: Client, credentials: Option<Credentials>) -> Self {
        let (url, repository) = (format!("{base}/v2/{repository}"), repository.to_owned());
        Self {
            url,
            repository,
            client,
            credentials,
            is_registry: true,
            authorization: Mutex::default(),
            has_answered: AtomicBool::new(false),
        }
    }

    /// Returns a mirror at `base`.
    pub(crate) fn mirror(base: &str, repository: &str, client: Client) -> Self {
        Self { is_registry: false, ..Self::registry(base, repository, client, None) }
    }

    /// The error for an answer that broke off.
    pub(crate) fn broken(&self, error: reqwest::Error) -> RequestError {
        RequestError::from_reqwest(&self.url, error)
    }

    /// Returns the manifest or index with this tag or digest; `None` if it is too large for one.
    pub(crate) async fn manifest(&self, version: &str) -> Result<Option<Vec<u8>>, RequestError> {
        whole(&self.url, DOCUMENT_BOUND, || self.manifest_answer(Method::GET, version)).await
    }

    /// Returns the config with this digest; `None` if it is too large for one.
    pub(crate) async fn config(&self, digest: &str) -> Result<Option<Vec<u8>>, RequestError> {
        let path = format!("blobs/{digest}");
        whole(&self.url, DOCUMENT_BOUND, || self.request(Method::GET, &path, &ANYTHING, 0)).await
    }

    /// Asks whether there is a manifest or index with this tag or digest. Returns the answer, which has no body.
    pub(crate) async fn has_manifest(&self, version: &str) -> Result<Response, RequestError> {
        self.manifest_answer(Method::HEAD, version).await
    }

    async fn manifest_answer(&self, method: Method, version: &str) -> Result<Response, RequestError> {
        let kinds = [MediaType::ImageManifest, MediaType::ImageIndex];
        let docker = kinds.iter().map(|it| it.to_docker_v2s2().expect("Docker has both").to_owned());
        let accept = kinds.iter().map(ToString::to_string).chain(docker).collect::<Vec<_>>().join(", ");
        let accept = HeaderValue::try_from(accept).expect("media types are legal in a header");
        self.request(method, &format!("manifests/{version}"), &accept, 0).await
    }

    /// Requests the rest of a blob from `offset` on. Returns the answer with the offset at which it begins: a registry
    /// need not support ranges.
    pub(crate) async fn get_from(&self, path: &str, offset: u64) -> Result<(Response, u64), RequestError> {
        let response = self.request(Method::GET, path, &ANYTHING, offset).await?;
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
        let mut renewals = 0;
        let mut authorization = self.authorization.lock().await.clone();
        loop {
            let request = || {
                let mut request = self.client.request(method.clone(), &url).header(ACCEPT, accept);
                if offset > 0 {
                    request = request.header(RANGE, format!("bytes={offset}-"));
                }
                match &authorization {
                    Some(value) => request.header(AUTHORIZATION, value),
                    None => request,
                }
            };
            let response = self.answer(&url, request).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            if !self.wants_credentials(&response) || renewals == 2 {
                return Err(refusal(url, response).await);
            }
            let new = self.renew(&response, authorization.as_ref(), renewals > 0).await?;
            if authorization.as_ref() == Some(&new) {
                return Err(refusal(url, response).await);
            }
            (authorization, renewals) = (Some(new), renewals + 1);
        }
    }

    /// Sends the request until another try would have no other result, or there were [`TRIES`] of them.
    async fn answer(&self, url: &str, request: impl Fn() -> RequestBuilder) -> Result<Response, RequestError> {
        let mut tries = 1;
        loop {
            let answer = request().send().await.map_err(|error| RequestError::from_reqwest(url, error));
            self.has_answered.fetch_or(answer.is_ok(), Ordering::Relaxed);
            let asked_pause = match answer {
                Ok(response) if is_passing(response.status()) && tries < TRIES => retry_after(&response),
                Ok(response) => return Ok(response),
                Err(error) if self.is_interruption(&error) && tries < TRIES => None,
                Err(error) => return Err(error),
            };
            pause(tries, asked_pause).await;
            tries += 1;
        }
    }

    /// Returns whether another try may have another result. A host that has never answered may not exist, and another
    /// endpoint is asked sooner.
    pub(crate) fn is_interruption(&self, error: &RequestError) -> bool {
        match error {
            RequestError::Connect { .. } => self.has_answered.load(Ordering::Relaxed),
            RequestError::Broken { .. } => true,
            RequestError::Status { status, .. } => is_passing(*status),
            RequestError::Challenge { .. } => false,
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

/// Returns the body of the answer to `request`, which is sent again when the answer breaks off; `None` if the body has more
/// than `bound` bytes.
async fn whole<F>(url: &str, bound: u64, request: impl Fn() -> F) -> Result<Option<Vec<u8>>, RequestError>
where
    F: Future<Output = Result<Response, RequestError>>,
{
    let mut tries = 1;
    loop {
        let mut response = request().await?;
        let mut body = Vec::new();
        let broken = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => return Ok(Some(body)),
                Err(error) => break error,
            }
            if body.len() as u64 > bound {
                return Ok(None);
            }
        };
        if tries == TRIES {
            return Err(RequestError::from_reqwest(url, broken));
        }
        pause(tries, None).await;
        tries += 1;
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
