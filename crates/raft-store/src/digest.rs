//! A digest of all tables that is updated with each change, so that managers can be compared after any entry.
//!
//! It is the sum, modulo 2^128, of the first half of the SHA-256 of each object and each answer. The order of insertion
//! does not matter, and removal is subtraction.

use std::fmt;

use prost::Message;
use serde::{Deserialize, Serialize};

use flota_api::object::Object;
use flota_api::proto::objects::Object as WireObject;
use flota_api::version::{Timestamp, Version};

/// What one object adds to the digest of the tables. It is kept as bytes, which need no alignment in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ObjectDigest([u8; 16]);

impl ObjectDigest {
    /// Encodes and hashes the object.
    pub(crate) fn of(object: &Object) -> Self {
        Self(hash(&WireObject::from(object).encode_to_vec()).to_ne_bytes())
    }

    fn get(self) -> u128 {
        u128::from_ne_bytes(self.0)
    }
}

/// Digest of the tables. It is equal on managers with equal tables.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(u128);

impl Digest {
    /// Decodes the bytes that [`Digest::to_bytes`] returned.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Encodes the digest for the wire.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Returns the digest including the time of the last entry, which is part of the tables.
    pub(crate) fn at(mut self, time: Timestamp) -> Self {
        self.add(hash(format!("time {}", time.0).as_bytes()));
        self
    }

    /// Adds an object.
    pub(crate) fn add_object(&mut self, it: ObjectDigest) {
        self.add(it.get());
    }

    /// Removes an object.
    pub(crate) fn take_object(&mut self, it: ObjectDigest) {
        self.take(it.get());
    }

    /// Adds an answer to a request.
    pub(crate) fn add_answer(&mut self, request: &str, version: Version, is_refusal: bool) {
        self.add(answer(request, version, is_refusal));
    }

    /// Removes an answer.
    pub(crate) fn take_answer(&mut self, request: &str, version: Version, is_refusal: bool) {
        self.take(answer(request, version, is_refusal));
    }

    fn add(&mut self, one: u128) {
        self.0 = self.0.wrapping_add(one);
    }

    fn take(&mut self, one: u128) {
        self.0 = self.0.wrapping_sub(one);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn answer(request: &str, version: Version, is_refusal: bool) -> u128 {
    let kind = if is_refusal { "refused " } else { "" };
    hash(format!("{kind}{version} {request}").as_bytes())
}

fn hash(bytes: &[u8]) -> u128 {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    u128::from_be_bytes(*hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
}
