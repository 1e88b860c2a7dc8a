//! Credentials and tokens.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::server::{Answer, Fixture, SeenRequest, Server, pull};

/// base64 of `user:pass`.
const LOGIN: &str = "Basic dXNlcjpwYXNz";

fn challenge(asked: &SeenRequest, parameters: &str) -> String {
    let host = asked.header("host").unwrap();
    format!(r#"Bearer realm="http://{host}/token",service="r",scope="repository:team/box:pull"{parameters}"#)
}

fn refused() -> Answer {
    Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
}

/// Serves the image to a client that has the token, and gives the token if `gets_token`.
fn with_token(fixture: &Fixture, asked: &SeenRequest, gets_token: bool) -> Answer {
    if asked.path.starts_with("/token") {
        return if gets_token { Answer::new(200, r#"{"access_token":"t"}"#) } else { refused() };
    }
    match asked.header("authorization") {
        Some("Bearer t") => fixture.answer(asked),
        _ => refused().with("WWW-Authenticate", "Basic realm=\"r\"").with("WWW-Authenticate", challenge(asked, "")),
    }
}

#[tokio::test]
async fn token_is_chosen_where_a_registry_offers_two_schemes_in_two_headers() {
    let server = Server::start(|fixture, asked, _| with_token(fixture, asked, true)).await;
    pull(&server, None).await.unwrap();
    let token = server.asked().into_iter().find(|it| it.path.starts_with("/token")).unwrap();
    assert_eq!(token.path, "/token?scope=repository%3Ateam%2Fbox%3Apull&service=r");
    assert_eq!(token.header("authorization"), None);
}

#[tokio::test]
async fn credentials_go_to_the_token_server_and_not_to_the_registry() {
    let server =
        Server::start(|fixture, asked, _| with_token(fixture, asked, asked.header("authorization") == Some(LOGIN)))
            .await;
    pull(&server, Some(("user", "pass"))).await.unwrap();
    let with_login = server.asked().into_iter().filter(|it| it.header("authorization") == Some(LOGIN));
    assert!(with_login.map(|it| it.path).all(|path| path.starts_with("/token")));
    let error = pull(&server, Some(("user", "wrong"))).await.unwrap_err();
    assert!(error.ends_with("/token answers 401 Unauthorized: authentication required"), "{error}");
}

#[tokio::test]
async fn identity_token_is_exchanged() {
    let server = Server::start(|fixture, asked, _| with_token(fixture, asked, asked.method == "POST")).await;
    pull(&server, Some(("<token>", "abc"))).await.unwrap();
}

#[tokio::test]
async fn token_that_is_refused_in_mid_pull_is_replaced() {
    let uses = Mutex::new(HashMap::<String, u32>::new());
    let server = Server::start(move |fixture, asked, count| {
        if asked.path.starts_with("/token") {
            return Answer::new(200, format!(r#"{{"token":"t{count}"}}"#));
        }
        let token = asked.header("authorization").unwrap_or_default().to_owned();
        let mut uses = uses.lock().unwrap();
        let used = uses.entry(token.clone()).or_default();
        *used += 1;
        if token.starts_with("Bearer t") && *used <= 1 {
            return fixture.answer(asked);
        }
        refused().with("WWW-Authenticate", challenge(asked, r#",error="invalid_token""#))
    })
    .await;
    pull(&server, None).await.unwrap();
    let tokens = server.asked().iter().filter(|it| it.path.starts_with("/token")).count();
    assert!(tokens >= 4, "each token is good for one request: {tokens}");
}

#[tokio::test]
async fn token_server_that_is_busy_or_breaks_off_is_asked_again() {
    let server = Server::start(|fixture, asked, count| match (asked.path.starts_with("/token"), count) {
        (true, 1) => Answer::new(503, ""),
        (true, 2) => Answer { cut: Some(3), ..with_token(fixture, asked, true) },
        _ => with_token(fixture, asked, true),
    })
    .await;
    pull(&server, None).await.unwrap();
    let tokens = server.asked().iter().filter(|it| it.path.starts_with("/token")).count();
    assert_eq!(tokens, 3);
}

#[tokio::test]
async fn basic_is_answered_with_the_login() {
    let server = Server::start(|fixture, asked, _| match asked.header("authorization") {
        Some(LOGIN) => fixture.answer(asked),
        _ => refused().with("WWW-Authenticate", "Basic realm=\"r\""),
    })
    .await;
    pull(&server, Some(("user", "pass"))).await.unwrap();
    let error = pull(&server, None).await.unwrap_err();
    assert!(error.ends_with("asks for authentication, and no credentials are known for it"), "{error}");
    let error = pull(&server, Some(("user", "wrong"))).await.unwrap_err();
    assert!(error.ends_with("answers 401 Unauthorized: authentication required"), "{error}");
}

#[tokio::test]
async fn redirect_to_another_host_has_no_credentials() {
    let storage =
        Server::start(
            |fixture, asked, _| {
                if asked.header("authorization").is_some() { refused() } else { fixture.answer(asked) }
            },
        )
        .await;
    let target = storage.address.clone();
    let server = Server::start(move |fixture, asked, _| match asked.header("authorization") {
        Some(LOGIN) if asked.is_manifest() => fixture.answer(asked),
        Some(LOGIN) => Answer::new(307, "").with("Location", format!("http://{target}{}", asked.path)),
        _ => refused().with("WWW-Authenticate", "Basic realm=\"r\""),
    })
    .await;
    pull(&server, Some(("user", "pass"))).await.unwrap();
    assert_eq!(storage.asked().len(), 3, "each blob came from there");
}
