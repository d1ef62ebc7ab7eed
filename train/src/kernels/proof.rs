//! What every operation's tests have in common: gradients against finite differences, single against double precision, and each instruction
//! level against the others.

use super::level::{Level, with_level};
use super::{Affine, Parameter, ParameterRef};
use candle_core::{DType, Device, Result, Tensor, Var};
use logitcache::seed::{Purpose, RandomStream};

/// A tensor of standard normal draws times `scale`, in double precision.
pub(crate) fn random(seed: u64, shape: &[usize], scale: f64) -> Tensor {
    let mut stream = RandomStream::new(seed, Purpose::Initialisation, &[]);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| stream.normal() * scale).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A weight and a bias of these shapes.
pub(crate) fn random_affine(seed: u64, weight: &[usize], scale: f64) -> [Tensor; 2] {
    [random(seed, weight, scale), random(seed + 1, &weight[..1], scale)]
}

/// Consecutive pairs of parameters.
pub(crate) fn affines(parameters: &[ParameterRef]) -> Vec<Affine> {
    parameters.chunks_exact(2).map(|pair| Affine { weight: pair[0].clone(), bias: pair[1].clone() }).collect()
}

/// The numbers of a tensor, row-major.
pub(crate) fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails with the first positions that differ by more than `absolute + relative * |expected|`.
pub(crate) fn assert_close(what: &str, found: &[f64], expected: &[f64], relative: f64, absolute: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let within = |found: f64, expected: f64| (found - expected).abs() <= absolute + relative * expected.abs();
    let wrong: Vec<String> = found
        .iter()
        .zip(expected)
        .enumerate()
        .filter(|(_, (found, expected))| !within(**found, **expected))
        .take(5)
        .map(|(i, (found, expected))| format!("[{i}] {found:e} instead of {expected:e}"))
        .collect();
    assert!(wrong.is_empty(), "{what}: limits {absolute:e} + {relative:e} x: {}", wrong.join(", "));
}

/// An operation under test: activations and parameters, in double precision, and the forward pass.
pub(crate) struct Proof<'a, F> {
    pub(crate) inputs: &'a [Tensor],
    pub(crate) parameters: &'a [Tensor],
    pub(crate) run: F,
}

/// Output, then the gradient of every input, then of every parameter.
type Answers = Vec<Vec<f64>>;

impl<F: Fn(&[Tensor], &[ParameterRef]) -> Result<Tensor>> Proof<'_, F> {
    /// All of it. Gradients are those of the sum of the output times fixed random numbers.
    pub(crate) fn check(&self) {
        let exact = self.answers(DType::F64, self.inputs, self.parameters);
        self.check_finite_differences(&exact);
        let size_of = |values: &[f64]| values.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        let largest = exact.iter().map(|part| size_of(part)).fold(0.0, f64::max);
        for (index, level) in Level::available().into_iter().enumerate() {
            let single = with_level(level, || self.answers(DType::F32, self.inputs, self.parameters));
            for (part, (single, exact)) in single.iter().zip(&exact).enumerate() {
                // Some gradients are exactly 0 (softmax does not see a key's bias): the last term allows for the terms that cancelled.
                let absolute = 1e-5 * size_of(exact) + 1e-6 * largest;
                assert_close(&format!("part {part} in single precision, {}", level.name()), single, exact, 1e-5, absolute);
            }
            let portable = with_level(Level::available()[0], || self.answers(DType::F32, self.inputs, self.parameters));
            assert_eq!(single, portable, "level {index}, {}, gives other bits than portable code", level.name());
        }
    }

    fn answers(&self, dtype: DType, inputs: &[Tensor], parameters: &[Tensor]) -> Answers {
        let inputs: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(&input.to_dtype(dtype).unwrap()).unwrap()).collect();
        let parameters = wrap(dtype, parameters);
        let tensors: Vec<Tensor> = inputs.iter().map(|input| input.as_tensor().clone()).collect();
        let output = (self.run)(&tensors, &parameters).unwrap();
        let weights = self.output_weights(&output);
        let gradients = (&output * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let mut answers = vec![numbers(&output)];
        answers.extend(inputs.iter().map(|input| numbers(gradients.get(input).expect("a gradient for every input"))));
        answers.extend(parameters.iter().map(|parameter| numbers(&parameter.gradient_tensor().unwrap())));
        answers
    }

    fn output_weights(&self, output: &Tensor) -> Tensor {
        random(99, output.dims(), 1.0).to_dtype(output.dtype()).unwrap()
    }

    fn objective(&self, inputs: &[Tensor], parameters: &[Tensor]) -> f64 {
        let output = (self.run)(inputs, &wrap(DType::F64, parameters)).unwrap();
        let weights = self.output_weights(&output);
        numbers(&(output * weights).unwrap()).iter().sum()
    }

    /// Central differences at up to 24 places of every input and parameter.
    fn check_finite_differences(&self, answers: &Answers) {
        const STEP: f64 = 1e-5;
        let operands = self.inputs.len() + self.parameters.len();
        for operand in 0..operands {
            let original = if operand < self.inputs.len() { &self.inputs[operand] } else { &self.parameters[operand - self.inputs.len()] };
            let values = numbers(original);
            for place in (0..values.len()).step_by(values.len().div_ceil(24)) {
                let moved = |step: f64| {
                    let mut values = values.clone();
                    values[place] += step;
                    let tensor = Tensor::from_vec(values, original.shape(), &Device::Cpu).unwrap();
                    let (mut inputs, mut parameters) = (self.inputs.to_vec(), self.parameters.to_vec());
                    if operand < inputs.len() {
                        inputs[operand] = tensor
                    } else {
                        parameters[operand - inputs.len()] = tensor
                    }
                    self.objective(&inputs, &parameters)
                };
                let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                assert_close(&format!("slope of operand {operand} at {place}"), &[answers[1 + operand][place]], &[slope], 1e-6, 1e-7);
            }
        }
    }
}

fn wrap(dtype: DType, parameters: &[Tensor]) -> Vec<ParameterRef> {
    let parameter = |(i, tensor): (usize, &Tensor)| Parameter::new(format!("p{i}"), &tensor.to_dtype(dtype).unwrap()).unwrap();
    parameters.iter().enumerate().map(parameter).collect()
}
