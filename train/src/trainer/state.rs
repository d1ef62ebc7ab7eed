//! What a run carries from one step to the next beside the student and the optimiser's memory.

use super::DataPosition;
use crate::evaluate::Evaluation;
use crate::kernels::ParameterRef;
use crate::metrics::StepSums;
use crate::optim::Moments;
use crate::student::{HiddenObjective, Student};
use serde::{Deserialize, Serialize};

/// All of it; the default is a run before its first evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done, skipped ones included: the position in the data, in the schedules and in every random stream.
    pub step: u64,
    /// Where the next step begins in the data; what earlier versions wrote does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<DataPosition>,
    /// Steps without an update since a loss or gradient was not finite.
    pub skipped_steps: u64,
    /// Steps since the last logged line.
    pub sums: StepSums,
    /// Whether the evaluation before the first step has been made.
    pub begun: bool,
    /// What it found.
    pub first_evaluation: Option<Evaluation>,
    /// The last evaluation.
    pub evaluation: Option<Evaluation>,
    /// Steps done when the last evaluation was made.
    pub evaluated_step: u64,
    /// Time spent, evaluations included.
    pub seconds: f64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Time spent in steps.
    pub milliseconds: f64,
}

/// Where a run begins: at the first step or at a checkpoint.
pub struct Start {
    /// See [`RunState`].
    pub state: RunState,
    /// What the student's hidden states are compared with, and the projections that are trained with it.
    pub hidden: HiddenObjective,
    /// The optimiser's memory of [`trainable`].
    pub moments: Moments,
}

/// All that is trained, in the optimiser's order: the student's parameters, then the projections'.
pub fn trainable(student: &Student, hidden: &HiddenObjective) -> Vec<ParameterRef> {
    student.parameters().iter().chain(hidden.parameters()).cloned().collect()
}
