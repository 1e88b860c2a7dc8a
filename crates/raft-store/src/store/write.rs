//! A transaction that is collected over a view.

use flota_api::object::{Kind, StoreObject};

use super::View;
use crate::transaction::{Action, Expectation, Transaction};

/// Collects a transaction over a view: whatever it changes is expected to be as the view had it.
#[derive(Debug)]
pub struct WriteTx {
    view: View,
    transaction: Transaction,
}

impl WriteTx {
    /// An empty one. `request_id` may be empty.
    pub fn new(view: View, request_id: &str) -> Self {
        Self { view, transaction: Transaction { request_id: request_id.to_owned(), ..Transaction::default() } }
    }

    /// What it was planned on.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Expects that the object is still as the view has it (or is still absent), although it isn't changed.
    pub fn expect(&mut self, kind: Kind, id: &str) {
        let version = self.view.version_of(kind, id);
        if !self.transaction.expectations.iter().any(|it| it.kind == kind && it.id == id) {
            self.transaction.expectations.push(Expectation { kind, id: id.to_owned(), version });
        }
    }

    /// A new object.
    pub fn create(&mut self, object: impl StoreObject) {
        let object = object.into_object();
        self.expect(object.kind(), object.id());
        self.transaction.actions.push(Action::Create(object));
    }

    /// An object anew.
    pub fn update(&mut self, object: impl StoreObject) {
        let object = object.into_object();
        self.expect(object.kind(), object.id());
        self.transaction.actions.push(Action::Update(object));
    }

    /// An object no more.
    pub fn remove(&mut self, kind: Kind, id: &str) {
        self.expect(kind, id);
        self.transaction.actions.push(Action::Remove(kind, id.to_owned()));
    }

    /// The transaction, to be proposed.
    pub fn finish(self) -> Transaction {
        self.transaction
    }
}
