//! The preparation of a task's container: a list of steps, each of which can be undone.
//!
//! **Where does a new step go (a volume, a secret, a network)?**
//! 1. A type that implements [`PrepareStep`], in a file of its own: for containers beside `container/steps.rs`.
//! 2. What the step finds out for the container becomes a field of [`Draft`], which `translate.rs` turns into the
//!    container's configuration.
//! 3. The step takes its place in `ContainerExecutor::new`: after the steps that it needs, before those that need it.
//!
//! Nothing else changes: the task runner does all steps in order before each start, and undoes them in reverse order
//! when one of them fails, when the container has ended, and when the task is removed. A daemon that takes over a task
//! does not know how far an earlier daemon came, and undoes every step. An undo must therefore also succeed if its
//! step was never begun or was interrupted.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;

use flota_api::id::TaskId;
use flota_api::model::Assignment;
use flota_image::ImageConfig;
use flota_runtime::{FileSystemMount, ImageFiles};

use super::{Cause, ExecutorError};
use crate::networks::TaskNetwork;
use crate::task_ids::OwnIds;
use crate::variables::SecretVariables;

/// One step of a preparation. It is shared by all tasks, which it tells apart by their ids.
pub trait PrepareStep: fmt::Debug + Send + Sync {
    /// Returns what the step provides, as in "failed to remove the … of a task".
    fn name(&self) -> &'static str;

    /// Provides it for a task. The future may be dropped at any point, after which the step is undone.
    fn prepare<'a>(&'a self, task: &'a Assignment, draft: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>>;

    /// Removes what [`PrepareStep::prepare`] has provided, even if it was interrupted. Succeeds if nothing is left.
    fn undo<'a>(&'a self, task: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>>;
}

/// The properties of the container that the steps have determined.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// Digest of the task's image. Before the first step, the digest that an earlier start used, if there was one.
    pub digest: Option<String>,
    /// Folders of the image's unpacked layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// The image's config: how to run its program.
    pub config: ImageConfig,
    /// The files of the images that it mounts, by their references.
    pub images: BTreeMap<String, ImageFiles>,
    /// The ids that the container has of its own.
    pub ids: Option<OwnIds>,
    /// The network of the container.
    pub network: TaskNetwork,
    /// Folders of its volumes, by their paths in the container.
    pub volumes: BTreeMap<String, PathBuf>,
    /// Its volumes that are file systems.
    pub file_systems: Vec<FileSystemMount>,
    /// Files and folders with its secrets and configs, by their paths in the container.
    pub values: BTreeMap<String, PathBuf>,
    /// Variables that are secrets or configs.
    pub variables: SecretVariables,
}

/// A part of a preparation that could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("failed to remove the {what} of a task")]
pub struct TeardownError {
    /// Name of the step.
    pub what: &'static str,
    /// The cause.
    #[source]
    pub source: Cause,
}

/// The preparation of one task and its progress.
#[derive(Debug)]
pub(crate) struct Prepared {
    task: TaskId,
    steps: Vec<Arc<dyn PrepareStep>>,
    /// Number of steps that may have left something.
    begun: usize,
    is_complete: bool,
    draft: Draft,
}

impl Prepared {
    /// Returns the preparation of a task for which an earlier daemon may have begun any step.
    pub(crate) fn unknown(task: &TaskId, steps: Vec<Arc<dyn PrepareStep>>) -> Self {
        Self { task: task.clone(), begun: steps.len(), steps, is_complete: false, draft: Draft::default() }
    }

    /// Returns whether every step is done and no container was started since.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Takes the draft for a start; a preparation serves one start only.
    pub(crate) fn take_draft(&mut self) -> Draft {
        self.is_complete = false;
        std::mem::take(&mut self.draft)
    }

    /// Returns the digest of the prepared image.
    pub(crate) fn digest(&self) -> Option<&str> {
        self.draft.digest.as_deref()
    }

    /// Does every step, after it has undone what is left of an earlier preparation. After an error, or if the future
    /// was dropped, the caller undoes what has been done.
    pub(crate) async fn complete(
        &mut self,
        assignment: &Assignment,
        pinned: Option<&str>,
    ) -> Result<(), ExecutorError> {
        // A container must not start among the files of an earlier one.
        if let Some(left) = self.undo().await.into_iter().next() {
            return Err(ExecutorError::Transient(Box::new(left)));
        }
        self.draft = Draft { digest: pinned.map(str::to_owned), ..Draft::default() };
        for step in &self.steps {
            // The count is raised first, so that a step that fails midway is undone as well.
            self.begun += 1;
            step.prepare(assignment, &mut self.draft).await?;
        }
        self.is_complete = true;
        Ok(())
    }

    /// Undoes the steps in reverse order. A step that can't be undone does not prevent the others; it is returned, and
    /// the next call tries it again.
    pub(crate) async fn undo(&mut self) -> Vec<TeardownError> {
        self.is_complete = false;
        let mut failed = Vec::new();
        let mut left = 0;
        for (index, step) in self.steps.iter().enumerate().take(self.begun).rev() {
            if let Err(source) = step.undo(&self.task).await {
                left = left.max(index + 1);
                failed.push(TeardownError { what: step.name(), source });
            }
        }
        // The count is set last: if this future is dropped midway, the next call undoes everything again.
        self.begun = left;
        failed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::FutureExt;

    use super::*;

    /// A log of the steps that were done and undone.
    type Diary = Arc<Mutex<Vec<String>>>;

    #[derive(Debug)]
    struct Noted {
        name: &'static str,
        diary: Diary,
        prepare: Outcome,
        undo: Outcome,
    }

    #[derive(Clone, Copy, Debug)]
    enum Outcome {
        Done,
        Fails,
        Hangs,
    }

    impl Noted {
        async fn play(&self, act: &str, outcome: Outcome) -> Result<(), Cause> {
            self.diary.lock().unwrap().push(format!("{act} {}", self.name));
            match outcome {
                Outcome::Done => Ok(()),
                Outcome::Fails => Err("no space left".into()),
                Outcome::Hangs => std::future::pending().await,
            }
        }
    }

    impl PrepareStep for Noted {
        fn name(&self) -> &'static str {
            self.name
        }

        fn prepare<'a>(&'a self, _: &'a Assignment, _: &'a mut Draft) -> BoxFuture<'a, Result<(), ExecutorError>> {
            Box::pin(async { self.play("prepare", self.prepare).await.map_err(ExecutorError::Final) })
        }

        fn undo<'a>(&'a self, _: &'a TaskId) -> BoxFuture<'a, Result<(), Cause>> {
            Box::pin(self.play("undo", self.undo))
        }
    }

    /// Returns a preparation of the steps a, b and c, of which none is begun.
    fn preparation(outcomes: [(Outcome, Outcome); 3]) -> (Prepared, Diary) {
        let diary = Diary::default();
        let steps = ["a", "b", "c"].into_iter().zip(outcomes).map(|(name, (prepare, undo))| {
            Arc::new(Noted { name, diary: Arc::clone(&diary), prepare, undo }) as Arc<dyn PrepareStep>
        });
        let prepared = Prepared::unknown(&"t".into(), steps.collect());
        (Prepared { begun: 0, ..prepared }, diary)
    }

    fn take(diary: &Diary) -> String {
        std::mem::take(&mut *diary.lock().unwrap()).join(", ")
    }

    const GOOD: (Outcome, Outcome) = (Outcome::Done, Outcome::Done);

    #[tokio::test]
    async fn steps_are_done_in_order_and_undone_in_reverse_once() {
        let (mut prepared, diary) = preparation([GOOD; 3]);
        prepared.complete(&Assignment::default(), None).await.unwrap();
        assert!(prepared.is_complete());
        assert_eq!(take(&diary), "prepare a, prepare b, prepare c");
        assert!(prepared.undo().await.is_empty());
        assert!(!prepared.is_complete());
        assert_eq!(take(&diary), "undo c, undo b, undo a");
        prepared.undo().await;
        assert_eq!(take(&diary), "", "nothing is left to be undone");
    }

    #[tokio::test]
    async fn a_step_that_fails_is_undone_with_those_before_it() {
        let (mut prepared, diary) = preparation([GOOD, (Outcome::Fails, Outcome::Done), GOOD]);
        prepared.complete(&Assignment::default(), None).await.unwrap_err();
        assert!(!prepared.is_complete());
        prepared.undo().await;
        assert_eq!(take(&diary), "prepare a, prepare b, undo b, undo a");
    }

    #[tokio::test]
    async fn a_step_that_is_cut_off_is_undone_with_those_before_it() {
        let (mut prepared, diary) = preparation([GOOD, (Outcome::Hangs, Outcome::Done), GOOD]);
        assert!(prepared.complete(&Assignment::default(), None).now_or_never().is_none());
        prepared.undo().await;
        assert_eq!(take(&diary), "prepare a, prepare b, undo b, undo a");
    }

    #[tokio::test]
    async fn an_undo_that_fails_holds_up_no_other_and_is_returned() {
        let (mut prepared, diary) =
            preparation([(Outcome::Done, Outcome::Fails), (Outcome::Done, Outcome::Fails), GOOD]);
        prepared.complete(&Assignment::default(), None).await.unwrap();
        take(&diary);
        let failed = prepared.undo().await;
        assert_eq!(failed.iter().map(|it| it.what).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(failed[0].to_string(), "failed to remove the b of a task");
        assert_eq!(take(&diary), "undo c, undo b, undo a");
        let again = prepared.complete(&Assignment::default(), None).await;
        assert!(matches!(again, Err(ExecutorError::Transient(_))), "nothing starts among what is left");
        assert_eq!(take(&diary), "undo b, undo a");
    }

    #[tokio::test]
    async fn an_undo_that_is_cut_off_is_done_again() {
        let (mut prepared, diary) = preparation([GOOD, (Outcome::Done, Outcome::Hangs), GOOD]);
        prepared.complete(&Assignment::default(), None).await.unwrap();
        take(&diary);
        assert!(prepared.undo().now_or_never().is_none());
        assert!(prepared.undo().now_or_never().is_none());
        assert_eq!(take(&diary), "undo c, undo b, undo c, undo b");
    }

    #[tokio::test]
    async fn what_an_earlier_daemon_left_is_undone_whole() {
        let (prepared, diary) = preparation([GOOD; 3]);
        let mut unknown = Prepared::unknown(&prepared.task, prepared.steps);
        unknown.undo().await;
        assert_eq!(take(&diary), "undo c, undo b, undo a");
    }
}
