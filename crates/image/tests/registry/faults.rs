//! Registries that misbehave: retried with what is there kept, and a clear error at the end.

use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use flota_image::Registries;

use crate::server::{Answer, SeenRequest, Server, Store, pull};

/// The ranges that were asked for.
fn ranges(server: &Server) -> Vec<String> {
    server.asked().iter().filter_map(|it| it.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn blob_continues_where_the_connection_broke() {
    let server = Server::start(|fixture, asked, count| {
        let cut = (fixture.is_large(asked) && count < 3).then_some(100_000);
        Answer { cut, ..fixture.answer(asked) }
    })
    .await;
    pull(&server, None).await.unwrap();
    let ranges = ranges(&server);
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges[0] != ranges[1], "the second began where the first broke off: {ranges:?}");
}

/// No blob is answered before all three are asked for.
#[tokio::test]
async fn slow_blob_does_not_delay_the_others() {
    let (asked_for, all_asked) = (Mutex::new(0), Condvar::new());
    let server = Server::start(move |fixture, asked, _| {
        if asked.is_manifest() {
            return fixture.answer(asked);
        }
        let mut count = asked_for.lock().unwrap();
        *count += 1;
        all_asked.notify_all();
        let wait = all_asked.wait_timeout_while(count, Duration::from_secs(20), |count| *count < 3).unwrap().1;
        // The client does not try again after this status.
        if wait.timed_out() { Answer::new(400, "the others are not asked for") } else { fixture.answer(asked) }
    })
    .await;
    pull(&server, None).await.unwrap();
}

#[tokio::test]
async fn registry_without_ranges_gives_the_blob_anew() {
    let server = Server::start(|fixture, asked, count| {
        let cut = (fixture.is_large(asked) && count == 1).then_some(100_000);
        let whole = SeenRequest { headers: Default::default(), ..asked.clone() };
        Answer { cut, ..fixture.answer(&whole) }
    })
    .await;
    pull(&server, None).await.unwrap();
    assert_eq!(ranges(&server).len(), 1);
}

#[tokio::test]
async fn blob_that_never_goes_on_is_given_up() {
    let server = Server::start(|fixture, asked, count| {
        let cut = if count == 1 { 100_000 } else { 0 };
        Answer { cut: fixture.is_large(asked).then_some(cut), ..fixture.answer(asked) }
    })
    .await;
    let error = pull(&server, None).await.unwrap_err();
    assert!(error.contains("broke off"), "{error}");
}

#[tokio::test]
async fn registry_that_restarts_is_waited_for_once_it_has_answered() {
    let restart = Arc::new(OnceLock::<Box<dyn Fn() + Send + Sync>>::new());
    let at_blob = Arc::clone(&restart);
    let server = Server::start(move |fixture, asked, count| {
        let cut = (fixture.is_large(asked) && count == 1).then_some(100_000);
        if cut.is_some() {
            at_blob.get().unwrap()();
        }
        Answer { cut, ..fixture.answer(asked) }
    })
    .await;
    assert!(restart.set(Box::new(server.restart())).is_ok());
    pull(&server, None).await.unwrap();
    assert_eq!(ranges(&server).len(), 1, "the blob goes on where it broke off");
}

#[tokio::test]
async fn whole_blobs_of_a_failed_pull_are_kept() {
    let server = Server::start(|fixture, asked, count| match fixture.is_large(asked) && count == 1 {
        true => Answer::new(404, ""),
        false => fixture.answer(asked),
    })
    .await;
    let store = Store::new();
    let (name, registries) = (server.image(), Registries::default());
    let error = store.pull(&name, &registries, None).await.unwrap_err();
    assert!(error.contains("answers 404 Not Found"), "{error}");
    store.pull(&name, &registries, None).await.unwrap();
    let mut others: Vec<_> = server.asked().into_iter().filter(|it| !it.is_manifest()).map(|it| it.path).collect();
    others.sort();
    let total = others.len();
    others.dedup();
    // Blobs are pulled at once, so that the failure of one may cut off others; but what was whole is not asked for again.
    assert!(others.len() == 3 && total <= 6, "{total} requests");
}

#[tokio::test]
async fn registry_that_is_busy_is_asked_again_when_it_says() {
    let server = Server::start(|fixture, asked, count| match asked.is_manifest() && count == 1 {
        true => Answer::new(429, "").with("Retry-After", "1"),
        false => fixture.answer(asked),
    })
    .await;
    let begun = Instant::now();
    pull(&server, None).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn time_at_which_to_ask_again_counts_from_the_time_of_the_answer() {
    let server = Server::start(|fixture, asked, count| match asked.is_manifest() && count == 1 {
        // Long ago by this machine's clock, whatever it is.
        true => Answer::new(429, "")
            .with("Date", "Sun, 06 Nov 1994 08:49:37 GMT")
            .with("Retry-After", "Sun, 06 Nov 1994 08:49:38 GMT"),
        false => fixture.answer(asked),
    })
    .await;
    let begun = Instant::now();
    pull(&server, None).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn passing_failure_of_the_server_is_waited_out_and_a_lasting_one_reported() {
    let server = Server::start(|fixture, asked, count| match count < 3 {
        true => Answer::new(503, ""),
        false => fixture.answer(asked),
    })
    .await;
    pull(&server, None).await.unwrap();
    let down = Server::start(|_, _, _| Answer::new(500, r#"{"errors":[{"message":"out of\u001b[31m luck"}]}"#)).await;
    let error = pull(&down, None).await.unwrap_err();
    assert!(error.ends_with("answers 500 Internal Server Error: out of[31m luck"), "{error}");
}

#[tokio::test]
async fn blob_of_another_length_is_refused() {
    let longer = Server::start(|fixture, asked, _| {
        let mut answer = fixture.answer(asked);
        if fixture.is_large(asked) {
            answer.body.push(0);
        }
        answer
    })
    .await;
    let error = pull(&longer, None).await.unwrap_err();
    assert!(error.contains("sent more than the"), "{error}");
    let shorter = Server::start(|fixture, asked, _| match fixture.is_large(asked) {
        true => Answer::new(200, "short"),
        false => fixture.answer(asked),
    })
    .await;
    let error = pull(&shorter, None).await.unwrap_err();
    assert!(error.contains("sent 5 of the"), "{error}");
}

#[tokio::test]
async fn damaged_blob_is_pulled_once_more() {
    let damaged = |times: usize| {
        Server::start(move |fixture, asked, count| {
            let mut answer = fixture.answer(asked);
            if fixture.is_large(asked) && count <= times {
                answer.body[1000] ^= 1;
            }
            answer
        })
    };
    pull(&damaged(1).await, None).await.unwrap();
    let error = pull(&damaged(100).await, None).await.unwrap_err();
    assert!(error.contains("sent something else than the blob sha256:"), "{error}");
}

#[tokio::test]
async fn manifest_of_another_digest_is_refused() {
    let server = Server::start(|fixture, asked, _| fixture.answer(asked)).await;
    let mut name = server.image();
    name.version = format!("sha256:{}", "0".repeat(64));
    let error = Store::new().pull(&name, &Registries::default(), None).await.unwrap_err();
    assert!(error.contains("is damaged: what came has the digest"), "{error}");
}
