//! What a teacher answers, as its export and its config.json say: plain data that every stage may read.

use logitcache::target::{Pooling, Problem, Task};

/// The task of a teacher, and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeacherTask {
    /// The kind of answer.
    pub task: Task,
    /// What a sequence classifier's logits mean; none for the other tasks.
    pub problem: Option<Problem>,
    /// By id, the names of a classifier's classes, as `id2label` of config.json has them, or `LABEL_0`, `LABEL_1`, ... where it has none; empty
    /// for the other tasks.
    pub class_names: Vec<String>,
    /// How a sentence encoder pools the states of its tokens; none for the other tasks, and where the graph pools and no file says how.
    pub pooling: Option<Pooling>,
    /// Whether a sentence encoder scales its vector to length 1; false for the other tasks.
    pub normalized: bool,
}

impl TeacherTask {
    /// A language model, which needs no more than its task.
    pub fn of(task: Task) -> Self {
        Self { task, problem: None, class_names: Vec::new(), pooling: None, normalized: false }
    }
}
