//! What makes the steps: the kernels on the processor, or the composed student on a device of candle.

use super::{failed, milliseconds, trainable};
use crate::batcher::Step;
use crate::composed::{Composed, Training};
use crate::config::Config;
use crate::device::Placement;
use crate::kernels::{DropoutPlan, ParameterRef};
use crate::loss::{LossParts, StepObjective};
use crate::optim::{AdamW, AdamWSettings, Clipped, Moments, measure};
use crate::student::{Answers, HiddenObjective, Student};
use logitcache::error::{Error, Result};
use std::time::Instant;

/// One of the two, with the optimiser.
pub(super) enum Engine<'a> {
    /// Gradients lie in the parameters.
    Kernels { student: &'a Student, hidden: HiddenObjective, trainable: Vec<ParameterRef>, optimiser: AdamW },
    /// Values, gradients and moments lie on the device.
    Composed {
        training: Box<Training<'a>>,
        trainable: Vec<ParameterRef>,
        /// Of the gradient at hand.
        norm: f64,
        /// As they were last brought back.
        moments: Moments,
    },
}

/// What the passes of a step gave and took.
pub(super) struct Passes {
    pub(super) parts: LossParts,
    pub(super) forward_ms: f64,
    /// On a device that is given work ahead, all of the wait for it.
    pub(super) backward_ms: f64,
    /// The first micro-batch whose loss is not finite.
    pub(super) first_nonfinite: Option<usize>,
}

impl<'a> Engine<'a> {
    pub(super) fn new(config: &Config, student: &'a Student, hidden: HiddenObjective, moments: Moments) -> Result<Self> {
        let settings = AdamWSettings { weight_decay: config.weight_decay, ..AdamWSettings::default() };
        let trainable = trainable(student, &hidden);
        let optimiser = AdamW::new(settings, moments, &trainable)?;
        Ok(match &config.placement {
            Placement::Kernels => Self::Kernels { student, hidden, trainable, optimiser },
            Placement::Composed { device, .. } => {
                let composed = Composed::new(student, &hidden, device, config.precision);
                let training = composed.and_then(|composed| composed.train(settings, optimiser.moments())).map_err(failed("--device"))?;
                Self::Composed { training: Box::new(training), trainable, norm: 0.0, moments: Moments::default() }
            }
        })
    }

    /// All that is trained, on the processor: as it is with the kernels, and as [`bring_back`](Self::bring_back) last left it with the other.
    pub(super) fn trainable(&self) -> &[ParameterRef] {
        match self {
            Self::Kernels { trainable, .. } | Self::Composed { trainable, .. } => trainable,
        }
    }

    /// The student as it is now, to be measured.
    pub(super) fn student(&self) -> &dyn Answers {
        match self {
            Self::Kernels { student, .. } => *student,
            Self::Composed { training, .. } => training.student(),
        }
    }

    /// Forward and backward for each micro-batch.
    pub(super) fn gradients(&mut self, step: &Step, objective: &StepObjective, dropout: &DropoutPlan) -> Result<Passes> {
        match self {
            Self::Kernels { student, hidden, .. } => accumulate_gradients((student, hidden), step, objective, dropout),
            Self::Composed { training, norm, .. } => {
                let began = Instant::now();
                let gradients = training.gradients(step, objective, dropout).map_err(|error| refused(&error.to_string()))?;
                *norm = gradients.norm;
                let mut parts = LossParts::default();
                gradients.parts.iter().for_each(|of_batch| parts += *of_batch);
                let first_nonfinite = gradients.parts.iter().position(|parts| !parts.total.is_finite());
                Ok(Passes { parts, forward_ms: 0.0, backward_ms: milliseconds(began), first_nonfinite })
            }
        }
    }

    /// The norm of the gradient, and what limits it.
    pub(super) fn measure(&self, max_norm: f64) -> Result<Clipped> {
        match self {
            Self::Kernels { trainable, .. } => measure(trainable, max_norm).map_err(failed("gradient norm")),
            Self::Composed { norm, .. } => Ok(Clipped::new(*norm, max_norm)),
        }
    }

    /// Moves every value and forgets the gradients.
    pub(super) fn update(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        match self {
            Self::Kernels { trainable, optimiser, .. } => {
                optimiser.update(trainable, learning_rate, gradient_scale).map_err(failed("update"))
            }
            Self::Composed { training, .. } => training.update(learning_rate, gradient_scale).map_err(|error| refused(&error.to_string())),
        }
    }

    /// Forgets the gradients.
    pub(super) fn forget(&mut self) {
        match self {
            Self::Kernels { trainable, .. } => trainable.iter().for_each(|parameter| parameter.zero_gradient()),
            Self::Composed { training, .. } => training.forget(),
        }
    }

    /// Gives the student on the processor the values of this moment, and [`moments`](Self::moments) those that belong to them.
    pub(super) fn bring_back(&mut self) -> Result<()> {
        if let Self::Composed { training, moments, .. } = self {
            *moments = training.download().map_err(failed("values from the device"))?;
        }
        Ok(())
    }

    /// The optimiser's memory, as [`bring_back`](Self::bring_back) last left it.
    pub(super) fn moments(&self) -> &Moments {
        match self {
            Self::Kernels { optimiser, .. } => optimiser.moments(),
            Self::Composed { moments, .. } => moments,
        }
    }
}

/// A step that the device did not make.
fn refused(error: &str) -> Error {
    // As the driver, cuBLAS and cuRAND say it.
    if ["OUT_OF_MEMORY", "ALLOC_FAILED", "ALLOCATION_FAILED"].iter().any(|name| error.contains(name)) {
        let remedy = "use a smaller --batch-tokens and a larger --accumulate: the steps stay what they are";
        return Error::usage("--batch-tokens", "micro-batches that fit the device's memory", error, remedy);
    }
    Error::invalid("passes", "a result", error)
}

/// Forward and backward by the kernels. The gradients add up in the parameters; since every part is divided by the counts of the whole step, the
/// sum does not depend on how the step was split.
pub(super) fn accumulate_gradients(
    (student, hidden): (&Student, &HiddenObjective),
    step: &Step,
    objective: &StepObjective,
    dropout: &DropoutPlan,
) -> Result<Passes> {
    let mut passes = Passes { parts: LossParts::default(), forward_ms: 0.0, backward_ms: 0.0, first_nonfinite: None };
    for (index, batch) in step.micro_batches.iter().enumerate() {
        let forward_at = Instant::now();
        let (loss, parts) = student.mapped_loss(batch, objective, hidden, dropout).map_err(failed("forward pass"))?;
        if !parts.total.is_finite() {
            passes.first_nonfinite.get_or_insert(index);
        }
        passes.parts += parts;
        passes.forward_ms += milliseconds(forward_at);
        let backward_at = Instant::now();
        loss.backward().map_err(failed("backward pass"))?;
        passes.backward_ms += milliseconds(backward_at);
    }
    Ok(passes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_names_the_flag_that_asks_for_less() {
        for name in ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "CURAND_STATUS_ALLOCATION_FAILED"] {
            let error = refused(&format!("DriverError({name}, \"out of memory\")"));
            assert!(error.exit_code() == 2 && error.to_string().contains("--batch-tokens"), "{error}");
        }
        assert!(refused("id 13 of 13").to_string().contains("id 13 of 13"));
    }
}
