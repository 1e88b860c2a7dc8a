//! Divides a set of assignments into messages: each is small and has the specs of its tasks once.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;

use flota_api::id::ValueDataId;
use flota_api::model::{ServiceSpec, ValueBytes};
use flota_api::proto::dispatcher::{AssignedSpec, Assignments, TaskAssignment, ValueChunk};

/// The spec of each service and version that assignments name.
pub(super) type Specs = BTreeMap<(String, u64), Arc<ServiceSpec>>;

/// Bytes of one part of a set without large specs. A session keeps a buffer for its largest message, so messages are small.
pub(super) const PART: usize = 4 << 10;

/// Bytes of a secret or config in one message.
pub(super) const CHUNK: usize = 16 << 10;

/// The messages of a set. The last is not complete yet.
struct MessageParts {
    complete: Vec<Assignments>,
    last: Assignments,
    /// Bytes of the last one, and of the specs in it.
    size: usize,
    specs: usize,
    /// What is the same in every message.
    common: Assignments,
}

impl MessageParts {
    /// Returns the last message with room for so many bytes, which may be a new one. A message with a large spec has as
    /// much room again, so that the spec is not repeated for each few of its tasks.
    fn room(&mut self, bytes: usize) -> &mut Assignments {
        if self.size > 0 && self.size + bytes > PART.max(2 * self.specs) {
            let full = std::mem::replace(&mut self.last, self.common.clone());
            self.complete.push(Assignments { more: true, ..full });
            (self.size, self.specs) = (0, 0);
        }
        self.size += bytes;
        &mut self.last
    }

    /// Adds a task, with its spec if the message does not have it.
    fn add(&mut self, task: TaskAssignment, spec: Option<&AssignedSpec>) {
        let is_there = |last: &Assignments| last.specs.last() == spec;
        let missing = if is_there(&self.last) { 0 } else { spec.map_or(0, Message::encoded_len) };
        self.room(task.encoded_len() + missing);
        if !is_there(&self.last) {
            self.last.specs.extend(spec.cloned());
            // A new message lacks a spec that the one before has.
            let size = spec.map_or(0, Message::encoded_len);
            (self.size, self.specs) = (self.size + size - missing, self.specs + size);
        }
        self.last.tasks.push(task);
    }
}

/// Splits a set into small messages; each contains the specs of its tasks once. Only the last is marked as the last.
pub(super) fn cut(mut whole: Assignments, specs: &Specs, data: &BTreeMap<ValueDataId, ValueBytes>) -> Vec<Assignments> {
    let mut tasks = std::mem::take(&mut whole.tasks);
    let (removed, dropped) = (std::mem::take(&mut whole.removed_tasks), std::mem::take(&mut whole.dropped_images));
    let (images, volumes) = (std::mem::take(&mut whole.images), std::mem::take(&mut whole.dropped_volumes));
    let mut parts = MessageParts { complete: Vec::new(), last: whole.clone(), size: 0, specs: 0, common: whole };
    let key_of = |task: &TaskAssignment| (task.service_id.clone(), task.spec_version);
    // Tasks with the same spec come together.
    tasks.sort_by_key(key_of);
    let mut spec: Option<AssignedSpec> = None;
    for task in tasks {
        let key = key_of(&task);
        if spec.as_ref().is_none_or(|it| (&it.service_id, it.spec_version) != (&key.0, key.1)) {
            spec = specs.get(&key).map(|spec| assigned_spec(&key, spec));
        }
        parts.add(task, spec.as_ref());
    }
    for (id, bytes) in data {
        for chunk in bytes.0.chunks(CHUNK) {
            let chunk = ValueChunk { data_id: id.to_string(), bytes: chunk.to_vec().into() };
            parts.room(chunk.encoded_len()).value_data.push(chunk);
        }
    }
    removed.into_iter().for_each(|id| parts.room(id.len()).removed_tasks.push(id));
    dropped.into_iter().for_each(|digest| parts.room(digest.len()).dropped_images.push(digest));
    volumes.into_iter().for_each(|id| parts.room(id.len()).dropped_volumes.push(id));
    images.into_iter().for_each(|image| parts.room(image.encoded_len()).images.push(image));
    parts.complete.push(parts.last);
    parts.complete
}

fn assigned_spec((service_id, spec_version): &(String, u64), spec: &ServiceSpec) -> AssignedSpec {
    AssignedSpec { service_id: service_id.clone(), spec_version: *spec_version, spec: Some(spec.into()) }
}
