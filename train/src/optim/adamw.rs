//! Adam with decoupled weight decay (Loshchilov and Hutter 2019), as `torch.optim.AdamW` computes it and with the settings of DistilBERT's
//! training script.

use super::CHUNK;
use crate::kernels::ParameterRef;
use logitcache::error::{Error, Result};
use rayon::prelude::*;

/// The settings that do not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment, in [0, 1).
    pub beta_1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta_2: f64,
    /// Added to the root of the second moment; above 0.
    pub epsilon: f64,
    /// Share of a matrix's value taken off per unit of learning rate. Biases and LayerNorm weights, the parameters of one dimension, are never
    /// decayed.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    /// DistilBERT's: 0.9, 0.98, 1e-6 and no decay.
    fn default() -> Self {
        Self { beta_1: 0.9, beta_2: 0.98, epsilon: 1e-6, weight_decay: 0.0 }
    }
}

/// What the optimiser remembers between steps: all that has to be saved for a run to go on as if it had not stopped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Steps taken.
    pub step: u64,
    /// `[parameter][element]`: running mean of the gradient, parameters in the student's order, elements row-major.
    pub first: Vec<Vec<f32>>,
    /// `[parameter][element]`: running mean of the gradient's square.
    pub second: Vec<Vec<f32>>,
}

impl Moments {
    /// Before the first step.
    pub fn zeros(parameters: &[ParameterRef]) -> Self {
        let zeros = || parameters.iter().map(|parameter| vec![0.0; parameter.elements()]).collect();
        Self { step: 0, first: zeros(), second: zeros() }
    }

    fn check(&self, parameters: &[ParameterRef]) -> Result<()> {
        for (field, moments) in [("first moments", &self.first), ("second moments", &self.second)] {
            if moments.len() != parameters.len() {
                return Err(Error::invalid(field, format!("one for each of {} parameters", parameters.len()), moments.len().to_string()));
            }
            for (moment, parameter) in moments.iter().zip(parameters) {
                if moment.len() != parameter.elements() {
                    let field = format!("{field} of {}", parameter.name());
                    return Err(Error::invalid(field, format!("{} numbers", parameter.elements()), moment.len().to_string()));
                }
            }
        }
        Ok(())
    }
}

/// The optimiser of one student.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    moments: Moments,
}

impl AdamW {
    /// An optimiser that continues from `moments` ([`Moments::zeros`] for a new run).
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings outside their ranges and for moments of other parameters.
    pub fn new(settings: AdamWSettings, moments: Moments, parameters: &[ParameterRef]) -> Result<Self> {
        for (field, beta) in [("beta_1", settings.beta_1), ("beta_2", settings.beta_2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::invalid(field, "at least 0 and below 1", beta.to_string()));
            }
        }
        if !(settings.epsilon.is_finite() && settings.epsilon > 0.0) {
            return Err(Error::invalid("epsilon", "a finite value above 0", settings.epsilon.to_string()));
        }
        if !(settings.weight_decay.is_finite() && settings.weight_decay >= 0.0) {
            return Err(Error::invalid("weight_decay", "a finite value of at least 0", settings.weight_decay.to_string()));
        }
        moments.check(parameters)?;
        Ok(Self { settings, moments })
    }

    /// The state to save.
    pub fn moments(&self) -> &Moments {
        &self.moments
    }

    /// The settings given.
    pub fn settings(&self) -> &AdamWSettings {
        &self.settings
    }

    /// One step: every value moves by its gradient times `gradient_scale` (see [`super::clip::measure`]), and every gradient is forgotten
    /// before the next step. One pass over the memory; the result does not depend on the number of threads. `parameters` are those the optimiser
    /// was made for, in the same order.
    ///
    /// # Errors
    /// A parameter that is not float32 or not the one the moments belong to.
    pub fn update(&mut self, parameters: &[ParameterRef], learning_rate: f64, gradient_scale: f64) -> candle_core::Result<()> {
        if parameters.len() != self.moments.first.len() {
            candle_core::bail!("AdamW was made for {} parameters, not {}", self.moments.first.len(), parameters.len());
        }
        self.moments.step += 1;
        let moments = self.moments.first.iter_mut().zip(&mut self.moments.second);
        for (parameter, (first, second)) in parameters.iter().zip(moments) {
            if parameter.elements() != first.len() {
                candle_core::bail!("{} has {} elements, its moments {}", parameter.name(), parameter.elements(), first.len());
            }
            let decay = if parameter.shape().rank() > 1 { self.settings.weight_decay } else { 0.0 };
            let step = Step::new(&self.settings, self.moments.step, learning_rate, decay, gradient_scale);
            parameter.update(|value: &mut [f32], gradient: &mut [f32]| {
                let value = value.par_chunks_mut(CHUNK).zip_eq(gradient.par_chunks(CHUNK));
                let moments = first.par_chunks_mut(CHUNK).zip_eq(second.par_chunks_mut(CHUNK));
                value.zip_eq(moments).for_each(|((value, gradient), (first, second))| step.apply(value, gradient, first, second));
            })?;
            parameter.zero_gradient();
        }
        Ok(())
    }
}

/// One step's arithmetic with all that is common to a parameter's elements worked out:
/// m += (1 - b1) (g - m); v += (1 - b2) (g^2 - v); x = x (1 - rate decay) - rate / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + epsilon).
struct Step {
    gradient_scale: f32,
    first_share: f32,
    second_share: f32,
    kept: f32,
    rate: f32,
    root_correction: f32,
    epsilon: f32,
}

impl Step {
    fn new(settings: &AdamWSettings, step: u64, learning_rate: f64, decay: f64, gradient_scale: f64) -> Self {
        // Worked out in double precision: 1 - 0.98^1 would lose digits in single precision.
        let bias = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            gradient_scale: gradient_scale as f32,
            first_share: (1.0 - settings.beta_1) as f32,
            second_share: (1.0 - settings.beta_2) as f32,
            kept: (1.0 - learning_rate * decay) as f32,
            rate: (learning_rate / bias(settings.beta_1)) as f32,
            root_correction: (1.0 / bias(settings.beta_2).sqrt()) as f32,
            epsilon: settings.epsilon as f32,
        }
    }

    fn apply(&self, value: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let moments = first.iter_mut().zip(second);
        for ((value, gradient), (first, second)) in value.iter_mut().zip(gradient).zip(moments) {
            let scaled = *gradient * self.gradient_scale;
            *first += self.first_share * (scaled - *first);
            *second += self.second_share * (scaled * scaled - *second);
            let root = second.sqrt() * self.root_correction + self.epsilon;
            *value = *value * self.kept - self.rate * *first / root;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Parameter;
    use candle_core::{Device, Tensor};

    fn parameters(tensors: &[Tensor]) -> Vec<ParameterRef> {
        tensors.iter().enumerate().map(|(i, tensor)| Parameter::new(format!("parameter {i}"), tensor).unwrap()).collect()
    }

    fn values(parameter: &ParameterRef) -> Vec<f32> {
        parameter.with_value(|value: &[f32]| value.to_vec()).unwrap()
    }

    fn set_gradient(parameter: &ParameterRef, gradient: impl Fn(usize) -> f32) {
        parameter.with_gradient(|values: &mut [f32]| values.iter_mut().enumerate().for_each(|(i, value)| *value = gradient(i))).unwrap();
    }

    fn assert_close(found: &[f32], expected: &[f64]) {
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(*a) - b).abs() <= 1e-7 + 2e-6 * b.abs(), "element {i}: {a}, expected {b}");
        }
    }

    // torch 2.15.0:
    //   spread = lambda n, a, b: [((i * a) % b) / b - .5 for i in range(n)]
    //   w = Parameter(tensor(spread(6, 7, 11)).reshape(2, 3)); b = Parameter(tensor(spread(3, 5, 7)))
    //   o = AdamW([{"params": [w], "weight_decay": .1}, {"params": [b], "weight_decay": 0}], lr=1e-2, betas=(.9, .98), eps=1e-6)
    //   for s in range(10): lr = 1e-2 * (s + 1) / 10; the gradients below; o.step()
    #[test]
    fn ten_steps_are_torchs() {
        let spread = |n: u32, a: u32, b: u32| (0..n).map(|i| ((i * a) % b) as f32 / b as f32 - 0.5).collect::<Vec<_>>();
        let weight = Tensor::from_vec(spread(6, 7, 11), (2, 3), &Device::Cpu).unwrap();
        let bias = Tensor::from_vec(spread(3, 5, 7), 3, &Device::Cpu).unwrap();
        let parameters = parameters(&[weight, bias]);
        let settings = AdamWSettings { weight_decay: 0.1, ..Default::default() };
        let mut optimiser = AdamW::new(settings, Moments::zeros(&parameters), &parameters).unwrap();
        for s in 0..10 {
            // Twice the gradient under a scale of one half.
            set_gradient(&parameters[0], |i| 2.0 * ((((i + 1) * (s + 3) * 37) % 101) as f32 / 101.0 - 0.5));
            set_gradient(&parameters[1], |i| 2.0 * ((((i + 2) * (s + 5) * 53) % 103) as f32 / 103.0 - 0.5) * 1e-4);
            optimiser.update(&parameters, 1e-2 * (s + 1) as f64 / 10.0, 0.5).unwrap();
            if s == 0 {
                let weight = [-0.498950005, 0.137350008, -0.226250008, 0.410049975, 0.0464497991, -0.319149971];
                assert_close(&values(&parameters[0]), &weight);
                assert_close(&values(&parameters[1]), &[-0.499027431, 0.213329494, -0.0704742894]);
            }
        }
        let weight = [-0.490602493, 0.135508984, -0.236900553, 0.405257672, 0.0429461636, -0.338359356];
        assert_close(&values(&parameters[0]), &weight);
        assert_close(&values(&parameters[1]), &[-0.450909406, 0.198049754, -0.0676917881]);
        let moments = optimiser.moments();
        let first = [-0.039439741522073746, -0.006707382388412952, 0.02302725426852703, -0.017140399664640427, 0.031594227999448776];
        assert_close(&moments.first[0][..5], &first);
        let second = [0.015563588589429855, 0.016487374901771545, 0.016022980213165283, 0.011687352322041988, 0.016780808568000793];
        assert_close(&moments.second[0][..5], &second);
        assert_eq!(moments.step, 10);
        assert_eq!(parameters[0].with_gradient(|gradient: &mut [f32]| gradient.to_vec()).unwrap(), [0.0; 6], "gradients are cleared");
    }

    #[test]
    fn a_run_that_stops_and_continues_is_the_same_run() {
        let start = Tensor::from_vec((0..40_000).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>(), (200, 200), &Device::Cpu).unwrap();
        let run = |stop_after: usize| {
            let parameters = parameters(std::slice::from_ref(&start));
            let mut optimiser = AdamW::new(AdamWSettings::default(), Moments::zeros(&parameters), &parameters).unwrap();
            for s in 0..4 {
                if s == stop_after {
                    optimiser = AdamW::new(AdamWSettings::default(), optimiser.moments().clone(), &parameters).unwrap();
                }
                set_gradient(&parameters[0], |i| ((i * (s + 1)) as f32 * 0.11).cos());
                optimiser.update(&parameters, 1e-3, 1.0).unwrap();
            }
            (values(&parameters[0]), optimiser.moments().clone())
        };
        assert_eq!(run(9), run(2));
    }

    #[test]
    fn only_matrices_decay() {
        let parameters = parameters(&[Tensor::new(&[[1f32]], &Device::Cpu).unwrap(), Tensor::new(&[1f32], &Device::Cpu).unwrap()]);
        let settings = AdamWSettings { weight_decay: 0.5, ..Default::default() };
        AdamW::new(settings, Moments::zeros(&parameters), &parameters).unwrap().update(&parameters, 0.1, 1.0).unwrap();
        assert_eq!((values(&parameters[0])[0], values(&parameters[1])[0]), (0.95, 1.0));
    }

    #[test]
    fn settings_and_moments_are_checked() {
        let parameters = parameters(&[Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap()]);
        let refused = |settings, moments| AdamW::new(settings, moments, &parameters).unwrap_err().to_string();
        let settings = AdamWSettings::default();
        let zeros = Moments::zeros(&parameters);
        assert!(refused(AdamWSettings { beta_2: 1.0, ..settings }, zeros.clone()).starts_with("beta_2"));
        assert!(refused(AdamWSettings { epsilon: 0.0, ..settings }, zeros.clone()).starts_with("epsilon"));
        assert!(refused(AdamWSettings { weight_decay: -1.0, ..settings }, zeros.clone()).starts_with("weight_decay"));
        assert!(
            refused(settings, Moments { first: vec![vec![0.0]], ..zeros }).starts_with("first moments of parameter 0: expected 2 numbers")
        );
        assert!(refused(settings, Moments::default()).starts_with("first moments: expected one for each of 1 parameters"));
    }
}
