//! Splits lists into pages that fit into a message. The first page has the header; an empty list is one page.

use prost::Message;
use tonic::Response;

use flota_api::proto::control::ListHeader;

use super::super::{Age, Listing};
use super::Answers;

/// Largest size of one page in bytes, unless a single row is larger.
const PAGE: usize = 1 << 20;

pub(super) fn header(age: Age) -> ListHeader {
    match age {
        Age::Current => ListHeader { stale: false, age_ms: Some(0) },
        Age::Stale(age) => {
            let age_ms = age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            ListHeader { stale: true, age_ms }
        }
    }
}

/// Converts the rows with `row` and returns a stream of pages that `page` makes of them.
pub(super) fn pages<T, R, P>(
    listing: Listing<T>,
    row: impl FnMut(T) -> R + Send + 'static,
    page: impl Fn(Option<ListHeader>, Vec<R>) -> P + Send + 'static,
) -> Response<Answers<P>>
where
    T: Send + 'static,
    R: Message + 'static,
    P: Send + 'static,
{
    let mut header = Some(header(listing.age));
    let mut rows = listing.rows.into_iter().map(row).peekable();
    let mut done = false;
    let next = std::iter::from_fn(move || {
        if std::mem::replace(&mut done, true) {
            return None;
        }
        let (mut taken, mut size) = (Vec::new(), 0);
        while let Some(row) = rows.next_if(|row| taken.is_empty() || size + row.encoded_len() <= PAGE) {
            size += row.encoded_len();
            taken.push(row);
        }
        done = rows.peek().is_none();
        Some(Ok(page(header.take(), taken)))
    });
    Response::new(Box::pin(tokio_stream::iter(next)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::proto::control::{Registries, RegistryRow};
    use futures::StreamExt;
    use std::time::Duration;

    #[tokio::test]
    async fn a_long_list_comes_in_pages_with_nothing_lost() {
        let row = |number: u64| RegistryRow { host: number.to_string(), username: "x".repeat(300 << 10) };
        let list = |count: u64| {
            let age = Age::Stale(Some(Duration::from_millis(7)));
            let listing = Listing { rows: (0..count).collect(), age };
            pages(listing, row, |header, registries| Registries { header, registries })
        };
        let all: Vec<_> = list(10).into_inner().map(|page| page.expect("a page")).collect().await;
        assert!(all.len() >= 3 && all.iter().all(|page| page.encoded_len() <= PAGE + 100));
        assert_eq!(all[0].header, Some(ListHeader { stale: true, age_ms: Some(7) }));
        assert!(all[1..].iter().all(|page| page.header.is_none()));
        let hosts: Vec<_> = all.iter().flat_map(|page| &page.registries).map(|row| row.host.clone()).collect();
        assert_eq!(hosts, (0..10).map(|number: u64| number.to_string()).collect::<Vec<_>>());
        assert_eq!(list(0).into_inner().count().await, 1, "an empty list has a header too");
    }
}
