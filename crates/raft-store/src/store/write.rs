//! Builds a transaction over a view.

use flota_api::id::Id;
use flota_api::object::{Kind, StoreObject};

use super::View;
use crate::transaction::{Action, Expectation, Transaction};

/// Builds a transaction over a view. The transaction fails if an object that it changes is no longer as in the view.
#[derive(Debug)]
pub struct WriteTx {
    view: View,
    transaction: Transaction,
}

impl WriteTx {
    /// An empty transaction, for the user's request with this id.
    pub fn new(view: View, request_id: Option<&str>) -> Self {
        let request_id = request_id.map(str::to_owned);
        Self { view, transaction: Transaction { request_id, ..Transaction::default() } }
    }

    /// The view that it is built over.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Makes the transaction fail if the object is no longer as in the view, or no longer absent.
    pub fn expect(&mut self, kind: Kind, id: impl Into<Id>) {
        let id = id.into();
        let version = self.view.version_of(kind, id);
        if !self.transaction.expectations.iter().any(|it| it.kind == kind && it.id == id) {
            self.transaction.expectations.push(Expectation { kind, id, version });
        }
    }

    /// Creates an object.
    pub fn create(&mut self, object: impl StoreObject) {
        let object = object.into_object();
        self.expect(object.kind(), object.id());
        self.transaction.actions.push(Action::Create(object));
    }

    /// Replaces an object.
    pub fn update(&mut self, object: impl StoreObject) {
        let object = object.into_object();
        self.expect(object.kind(), object.id());
        self.transaction.actions.push(Action::Update(object));
    }

    /// Gives an object another version, so that what was planned of it before meets a conflict. One that the transaction changes
    /// already stays as it is there.
    pub fn touch(&mut self, object: impl StoreObject) {
        let object = object.into_object();
        let is_it = |action: &Action| match action {
            Action::Create(other) | Action::Update(other) => (other.kind(), other.id()) == (object.kind(), object.id()),
            Action::Remove(kind, id) => (*kind, *id) == (object.kind(), object.id()),
            Action::Status(..) => false,
        };
        if !self.transaction.actions.iter().any(is_it) {
            self.expect(object.kind(), object.id());
            self.transaction.actions.push(Action::Update(object));
        }
    }

    /// Whether it changes anything so far.
    pub fn has_actions(&self) -> bool {
        !self.transaction.actions.is_empty()
    }

    /// Removes an object.
    pub fn remove(&mut self, kind: Kind, id: impl Into<Id>) {
        let id = id.into();
        self.expect(kind, id);
        self.transaction.actions.push(Action::Remove(kind, id));
    }

    /// Returns the transaction.
    pub fn finish(self) -> Transaction {
        self.transaction
    }
}
