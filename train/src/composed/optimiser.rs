//! AdamW on the device, with the arithmetic of [`crate::optim::AdamW`].

#[cfg(feature = "cuda")]
use super::gpu;
use super::operations::total;
use super::values::Values;
use crate::kernels::ParameterRef;
use crate::optim::{AdamWSettings, Moments};
use candle_core::{DType, Device, Result, Tensor, Var};

/// The moments of everything that is trained, and the gradients of the step at hand.
pub(super) struct Optimiser {
    settings: AdamWSettings,
    step: u64,
    first: Vec<Var>,
    second: Vec<Var>,
    /// The sums over the micro-batches; nothing for what none of them reached.
    gradients: Vec<Option<Tensor>>,
}

impl Optimiser {
    /// One that goes on from `moments`, those of `values`.
    pub(super) fn new(settings: AdamWSettings, moments: &Moments, values: &Values) -> Result<Self> {
        let upload = |moments: &[Vec<f32>]| -> Result<Vec<Var>> {
            let each = moments.iter().zip(values.vars());
            each.map(|(moment, var)| Var::from_tensor(&Tensor::from_slice(moment, var.shape(), var.device())?.to_dtype(var.dtype())?))
                .collect()
        };
        let gradients = vec![None; values.vars().len()];
        Ok(Self { settings, step: moments.step, first: upload(&moments.first)?, second: upload(&moments.second)?, gradients })
    }

    /// The moments, on the host.
    pub(super) fn download(&self) -> Result<Moments> {
        let all = |vars: &[Var]| vars.iter().map(|var| var.flatten_all()?.to_dtype(DType::F32)?.to_vec1()).collect::<Result<Vec<_>>>();
        Ok(Moments { step: self.step, first: all(&self.first)?, second: all(&self.second)? })
    }

    /// Differentiates `loss` by everything that is trained and adds the gradients to the sums.
    pub(super) fn add_gradients(&mut self, loss: &Tensor, values: &Values) -> Result<()> {
        let mut found = loss.backward()?;
        for (sum, var) in self.gradients.iter_mut().zip(values.vars()) {
            if let Some(gradient) = found.remove(var) {
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient)?.detach(),
                    None => gradient.detach(),
                });
            }
        }
        Ok(())
    }

    /// The sum of squares of all gradients, a scalar in double precision.
    pub(super) fn squared_norm(&self, device: &Device) -> Result<Tensor> {
        let squares = self.gradients.iter().flatten().map(|gradient| {
            #[cfg(feature = "cuda")]
            if gpu::serves(gradient) {
                return gpu::sum_of_squares(gradient)?.sum_all();
            }
            let squares = gradient.sqr()?;
            // Rows are summed in the gradient's own precision, their sums in double.
            let rows = if squares.rank() > 1 { squares.sum(candle_core::D::Minus1)? } else { squares };
            total(&rows.to_dtype(DType::F64)?)
        });
        let squares = squares.collect::<Result<Vec<_>>>()?;
        if squares.is_empty() { Tensor::zeros((), DType::F64, device) } else { Tensor::stack(&squares, 0)?.sum_all() }
    }

    /// Forgets the gradients.
    pub(super) fn forget(&mut self) {
        self.gradients.iter_mut().for_each(|gradient| *gradient = None);
    }

    /// One step: see [`crate::optim::AdamW::update`].
    pub(super) fn update(&mut self, values: &Values, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        self.step += 1;
        let AdamWSettings { beta_1, beta_2, epsilon, weight_decay } = self.settings;
        let bias = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let (rate, root_correction) = (learning_rate / bias(beta_1), 1.0 / bias(beta_2).sqrt());
        for (index, var) in values.vars().iter().enumerate() {
            let decay = if var.rank() > 1 { weight_decay } else { 0.0 };
            let kept = 1.0 - learning_rate * decay;
            #[cfg(feature = "cuda")]
            if gpu::serves(var) {
                let gradient = self.gradients[index].take().map_or_else(|| var.zeros_like(), Ok)?;
                let step = gpu::Step { gradient_scale, new: [1.0 - beta_1, 1.0 - beta_2], rate, root: root_correction, epsilon, kept };
                gpu::adamw(var, [&self.first[index], &self.second[index]], &gradient, step)?;
                continue;
            }
            let gradient = match self.gradients[index].take() {
                Some(gradient) => (gradient * gradient_scale)?,
                None => var.zeros_like()?,
            };
            let (value, first, second) =
                (var.as_detached_tensor(), self.first[index].as_detached_tensor(), self.second[index].as_detached_tensor());
            let first = (&first + ((&gradient - &first)? * (1.0 - beta_1))?)?;
            let second = (&second + ((gradient.sqr()? - &second)? * (1.0 - beta_2))?)?;
            let root = ((second.sqrt()? * root_correction)? + epsilon)?;
            let moved = ((value * kept)? - ((&first * rate)? / root)?)?;
            var.set(&moved)?;
            self.first[index].set(&first)?;
            self.second[index].set(&second)?;
        }
        Ok(())
    }
}

/// For the tests of the gradients.
#[cfg(test)]
impl Optimiser {
    pub(super) fn gradients(&self) -> &[Option<Tensor>] {
        &self.gradients
    }
}

/// A check that the moments are those of what is trained, before anything is uploaded.
pub(super) fn check(moments: &Moments, parameters: &[ParameterRef]) -> Result<()> {
    let lengths = |moments: &[Vec<f32>]| moments.iter().map(Vec::len).collect::<Vec<_>>();
    let expected: Vec<usize> = parameters.iter().map(|each| each.elements()).collect();
    if lengths(&moments.first) != expected || lengths(&moments.second) != expected {
        candle_core::bail!("moments of {} and {} parameters for {}", moments.first.len(), moments.second.len(), expected.len());
    }
    Ok(())
}
