//! From what a user typed (a name, an id, or an unambiguous beginning of an id) to the one object of a list.

use crate::error::{Failed, Usage};

/// Shorter beginnings would be ambiguous tomorrow.
const SHORTEST_PREFIX: usize = 3;

/// The one object that `text` means.
pub(crate) fn pick<T>(
    kind: &str,
    text: &str,
    all: Vec<T>,
    id: impl Fn(&T) -> String,
    name: impl Fn(&T) -> String,
) -> anyhow::Result<T> {
    let (mut exact, mut named, mut begins) = (Vec::new(), Vec::new(), Vec::new());
    for object in all {
        if id(&object) == text {
            exact.push(object);
        } else if name(&object) == text {
            named.push(object);
        } else if text.len() >= SHORTEST_PREFIX && id(&object).starts_with(text) {
            begins.push(object);
        }
    }
    let mut found = [exact, named, begins].into_iter().find(|it| !it.is_empty()).unwrap_or_default();
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(last), false) => {
            let ids: Vec<String> = found.iter().chain([&last]).take(10).map(id).collect();
            Err(Usage(format!("`{text}` may be any of these {kind}s: {}", ids.join(", "))).into())
        }
        (None, _) => Err(Failed(tonic::Status::not_found(format!("there is no {kind} `{text}`"))).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_an_id_or_its_beginning_means_one_object_or_none() {
        let all = || vec![("abc1", "web"), ("abc2", "web"), ("xyz1", "abc1"), ("fff1", "db")];
        let of = |text: &str| {
            let found = pick("service", text, all(), |it| it.0.to_owned(), |it| it.1.to_owned());
            found.map(|it| it.0).map_err(|error| (crate::error::code(&error), error.to_string()))
        };
        assert_eq!(of("abc1"), Ok("abc1"), "an id comes before a name");
        assert_eq!(of("db"), Ok("fff1"));
        assert_eq!(of("xyz"), Ok("xyz1"));
        assert_eq!(of("web"), Err((2, "`web` may be any of these services: abc1, abc2".into())));
        assert_eq!(of("abc"), Err((2, "`abc` may be any of these services: abc1, abc2".into())));
        assert_eq!(of("xy"), Err((3, "there is no service `xy`".into())));
    }
}
