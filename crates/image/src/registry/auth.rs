//! Answers a registry that asks for credentials: with the credentials themselves (Basic), or a token for them (Bearer,
//! as Docker's "Token Authentication Specification" describes it). A registry may offer several schemes, in one header
//! or in several.

use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::{Endpoint, RequestError, refusal, whole};

/// User name that marks the password as an identity token: what `docker login` keeps for registries that give one.
const TOKEN_USER: &str = "<token>";
/// Largest answer of a token server.
const TOKEN_BOUND: u64 = 1 << 20;

/// A login to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name; `<token>` if the password is an identity token.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, [redacted])", self.username)
    }
}

/// A scheme that a registry offers, with its parameters.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Endpoint {
    /// Returns the header that answers the registry's challenge.
    pub(super) async fn authorize(&self, response: &Response) -> Result<HeaderValue, RequestError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> = headers.iter().filter_map(|it| it.to_str().ok()).flat_map(parse).collect();
        let bearer = challenges.iter().find(|it| matches!(it, Challenge::Bearer { .. }));
        match (bearer, &self.credentials) {
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                self.token(realm, service.as_deref(), scope.as_deref()).await
            }
            (_, Some(login)) if challenges.contains(&Challenge::Basic) => {
                let text = format!("{}:{}", login.username, login.password);
                Ok(secret(&format!("Basic {}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, text))))
            }
            _ if challenges.contains(&Challenge::Basic) => Err(self.challenged("no credentials are known for it")),
            _ => Err(self.challenged("offers neither Basic nor Bearer")),
        }
    }

    fn challenged(&self, why: &str) -> RequestError {
        RequestError::Challenge { url: self.url.clone(), why: why.to_owned() }
    }

    /// Gets a token that allows pulling from the repository.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<HeaderValue, RequestError> {
        let url = Url::parse(realm).map_err(|_| self.challenged("names no address that gives tokens"))?;
        if self.url.starts_with("https:") && url.scheme() != "https" {
            return Err(self.challenged("its tokens come over a connection that is not encrypted"));
        }
        let own_scope = format!("repository:{}:pull", self.repository);
        let mut fields = vec![("scope", scope.unwrap_or(&own_scope))];
        fields.extend(service.map(|service| ("service", service)));
        let is_identity_token = self.credentials.as_ref().filter(|it| it.username == TOKEN_USER);
        if let Some(login) = is_identity_token {
            fields.extend([("grant_type", "refresh_token"), ("client_id", "flota")]);
            fields.push(("refresh_token", &login.password));
        }
        let request = || match &self.credentials {
            Some(_) if is_identity_token.is_some() => self.client.post(url.clone()).form(&fields),
            Some(login) => {
                self.client.get(url.clone()).query(&fields).basic_auth(&login.username, Some(&login.password))
            }
            None => self.client.get(url.clone()).query(&fields),
        };
        let answer = || async {
            let response = self.answer(realm, request).await?;
            if response.status().is_success() { Ok(response) } else { Err(refusal(realm.to_owned(), response).await) }
        };
        let answer =
            whole(realm, TOKEN_BOUND, answer).await?.and_then(|body| serde_json::from_slice::<TokenAnswer>(&body).ok());
        let token = answer.and_then(|it| it.token.or(it.access_token)).filter(|it| !it.is_empty());
        let token = token.ok_or_else(|| self.challenged("gives no token for them"))?;
        Ok(secret(&format!("Bearer {token}")))
    }
}

fn secret(text: &str) -> HeaderValue {
    // A token with characters that a header can't have is one that the registry refuses.
    let mut value = HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// Returns the challenges of one header that are supported, up to the first that is malformed.
fn parse(header: &str) -> Vec<Challenge> {
    let challenges = ChallengeParser::new(header).map_while(Result::ok);
    let supported = challenges.filter_map(|it| {
        let param = |name: &str| {
            it.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
        };
        match it.scheme.to_ascii_lowercase().as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => {
                Some(Challenge::Bearer { realm: param("realm")?, service: param("service"), scope: param("scope") })
            }
            _ => None,
        }
    });
    supported.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_real_registries_are_parsed() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull""#;
        let hub_parsed =
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/a:pull"));
        for (header, expected) in [
            (hub, vec![hub_parsed]),
            (r#"Basic realm="registry""#, vec![Challenge::Basic]),
            (r#"basic realm=r, BEARER Realm="https://a/t""#, vec![Challenge::Basic, bearer("https://a/t", None, None)]),
            (r#"Negotiate, Basic realm="Azure""#, vec![Challenge::Basic]),
            (r#"Bearer service="no realm""#, vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn password_is_not_shown() {
        let login = Credentials { username: "a".into(), password: "secret".into() };
        assert_eq!(format!("{login:?}"), "Credentials(a, [redacted])");
    }
}
