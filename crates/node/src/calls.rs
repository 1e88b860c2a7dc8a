//! How many calls each user has open at this manager, so that one user can't take the room of all others. A follower has one
//! connection to the leader for the calls of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::Response;
use http_body_util::BodyExt;
use tonic::body::Body;

/// Largest number of calls that one user has open: its streams, which are bounded by themselves, and as many others.
const CALLS_BOUND: usize = 128;

/// The number of calls that each user has open, by the user's name. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(Arc<Mutex<HashMap<String, usize>>>);

/// The place of one call; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    calls: Calls,
    user: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.calls.0.lock().expect("no holder panics");
        if let Some(count) = open.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.user);
            }
        }
    }
}

impl Calls {
    /// Takes a place for a call of this user; `None` if it has too many open.
    pub(crate) fn take(&self, user: &str) -> Option<Place> {
        let mut open = self.0.lock().expect("no holder panics");
        let count = open.entry(user.to_owned()).or_default();
        if *count >= CALLS_BOUND {
            return None;
        }
        *count += 1;
        Some(Place { calls: self.clone(), user: user.to_owned() })
    }
}

impl Place {
    /// Returns the response, which holds the place until it was read to its end or dropped.
    pub(crate) fn hold(self, response: Response<Body>) -> Response<Body> {
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _place = &self;
                frame
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_calls_open_and_another_user_as_many() {
        let calls = Calls::default();
        let mut held: Vec<_> = (0..CALLS_BOUND).map(|_| calls.take("ada").expect("there is room")).collect();
        assert!(calls.take("ada").is_none() && calls.take("eve").is_some());
        let response = held.pop().expect("there are many").hold(Response::new(Body::new("x".to_owned())));
        assert!(calls.take("ada").is_none(), "the response is not read yet");
        drop(response);
        assert!(calls.take("ada").is_some());
        drop(held);
        assert!(calls.0.lock().expect("no holder panics").is_empty(), "nothing is kept of users without calls");
    }
}
