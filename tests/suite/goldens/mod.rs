//! Our numbers against those of PyTorch and transformers: the teacher's answers, the students of every family, every objective, gradients, and
//! ten steps of the optimiser. `data/golden/README.md` says how the references were made.

mod decoders;
mod families;
mod heads;
mod objectives;
mod student;
mod teacher;

use candle_core::DType;
use e2e::data;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::PathBuf;
use train::batcher::Batch;
use train::kernels::{DropoutPlan, Element, Parameter, ParameterRef};
use train::loss::{Normalisers, Objective, Part, StepObjective};
use train::optim::{AdamW, AdamWSettings, Moments, Schedule, measure};
use train::student::tensor_file::TensorFile;
use train::student::{ParameterSpec, Student, StudentConfig};

const TEMPERATURE: f64 = 2.0;

/// Relative and absolute limits of one pass in double and in single precision against a reference in double precision.
const DOUBLE: (f64, f64) = (1e-9, 1e-10);
const SINGLE: (f64, f64) = (2e-4, 2e-5);

/// A file of reference tensors.
struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = data("golden").join(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, bytes }
    }

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).is_ok_and(|file| file.tensor(name).is_ok())
    }

    /// A tensor's numbers as float64, row-major, whatever it is stored as.
    fn floats(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{}: {name}: {error}", self.path.display()));
        let bytes = tensor.data();
        match tensor.dtype() {
            Dtype::F64 => bytes.as_chunks().0.iter().map(|value| f64::from_le_bytes(*value)).collect(),
            Dtype::F32 => bytes.as_chunks().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect(),
            Dtype::I64 => bytes.as_chunks().0.iter().map(|value| i64::from_le_bytes(*value) as f64).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn singles(&self, name: &str) -> Vec<f32> {
        self.floats(name).into_iter().map(|value| value as f32).collect()
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        self.floats(name).into_iter().map(|value| value as i64).collect()
    }

    /// The packed batch whose tensors' names begin with `prefix`, without log-probabilities and hidden states.
    fn batch(&self, prefix: &str, k: usize) -> Batch {
        let integers = |part: &str| self.integers(&format!("{prefix}{part}"));
        let unsigned = |part: &str| integers(part).into_iter().map(|id| id as u32).collect::<Vec<_>>();
        let offsets: Vec<usize> = integers("offsets").into_iter().map(|offset| offset as usize).collect();
        Batch {
            sequence_ids: (0..offsets.len() as u64 - 1).collect(),
            passes: vec![0; offsets.len() - 1],
            offsets,
            input_ids: unsigned("input_ids"),
            token_type_ids: if self.has(&format!("{prefix}token_type_ids")) { unsigned("token_type_ids") } else { Vec::new() },
            asked: unsigned("asked"),
            k,
            top_ids: unsigned("top_ids"),
            labels: integers("labels").into_iter().map(|label| label as i32).collect(),
            ..Batch::default()
        }
    }

    /// A tensor that holds the elements of all `parameters`, in the alphabetical order of their names: each one's by its name.
    fn by_parameter(&self, name: &str, parameters: &[ParameterRef]) -> BTreeMap<String, Vec<f64>> {
        let mut sizes: Vec<(&str, usize)> = parameters.iter().map(|parameter| (parameter.name(), parameter.elements())).collect();
        sizes.sort_unstable();
        let all = self.floats(name);
        assert_eq!(all.len(), sizes.iter().map(|(_, size)| size).sum::<usize>(), "{name}: another number of values");
        let mut rest = all.into_iter();
        sizes.into_iter().map(|(name, size)| (name.to_owned(), rest.by_ref().take(size).collect())).collect()
    }
}

/// Asserts |found - expected| <= absolute + relative |expected| everywhere; a failure shows the first positions that differ.
fn close(what: &str, found: &[f64], expected: &[f64], (relative, absolute): (f64, f64)) {
    assert_eq!(found.len(), expected.len(), "{what}: another number of values");
    let limit = |expected: f64| absolute + relative * expected.abs();
    // Anything but a finite difference within the limit is off, a NaN too.
    let off = |(found, expected): (&f64, &f64)| (found - expected).is_nan() || (found - expected).abs() > limit(*expected);
    let wrong: Vec<String> = (0..found.len())
        .filter(|i| off((&found[*i], &expected[*i])))
        .map(|i| format!("  [{i}] found {}, expected {} (limit {:.1e})", found[i], expected[i], limit(expected[i])))
        .collect();
    assert!(wrong.is_empty(), "{what}: {} of {} differ:\n{}", wrong.len(), found.len(), wrong[..wrong.len().min(5)].join("\n"));
}

/// The student of a folder of `data/golden`.
fn open_student(folder: &str, dtype: DType) -> Student {
    let folder = data("golden").join(folder);
    let config = StudentConfig::read(&folder.join("config.json")).expect("the reference student's settings");
    let mut file = TensorFile::open(&folder.join("model.safetensors")).expect("the reference student's weights");
    let source = &mut |parameter: &ParameterSpec| file.read(&parameter.name, &parameter.shape);
    Student::new(config, dtype, source).expect("the reference student")
}

fn normalisers(batch: &Batch) -> Normalisers {
    let masked = batch.labels.iter().filter(|label| **label >= 0).count();
    Normalisers { asked: batch.asked.len(), labelled: masked, tokens: batch.input_ids.len(), sequences: batch.sequence_ids.len() }
}

/// One forward and backward pass of the default objective: total, ce, mlm, cos.
fn default_pass(student: &Student, batch: &Batch) -> Vec<f64> {
    pass(student, batch, &Objective::default(), &[Part::Ce, Part::Mlm, Part::Cos])
}

/// One forward and backward pass of an objective: total, then these parts.
fn pass(student: &Student, batch: &Batch, objective: &Objective, named: &[Part]) -> Vec<f64> {
    let objective = StepObjective::new(objective, (0, 1), TEMPERATURE, normalisers(batch));
    let (loss, parts) = student.loss(batch, &objective, &DropoutPlan::off()).expect("a loss");
    loss.backward().expect("a backward pass");
    std::iter::once(parts.total).chain(named.iter().map(|part| parts.get(*part))).collect()
}

fn gradient<T: Element>(parameter: &Parameter) -> Vec<f64> {
    parameter.with_gradient(|gradient: &mut [T]| gradient.iter().map(|value| value.to_f64()).collect()).expect("a gradient of this type")
}

fn flattened(tensor: candle_core::Result<candle_core::Tensor>) -> Vec<f64> {
    tensor.and_then(|tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()).expect("numbers")
}

/// What ten steps went through.
#[derive(Default)]
struct Steps {
    losses: Vec<f64>,
    norms: Vec<f64>,
    rates: Vec<f64>,
}

/// Ten steps of the default optimiser on `parameters`; `pass` adds a step's gradients and gives its losses.
fn ten_steps(parameters: &[ParameterRef], mut pass: impl FnMut(u64) -> Vec<f64>) -> Steps {
    let mut optimiser = AdamW::new(AdamWSettings::default(), Moments::zeros(parameters), parameters).expect("DistilBERT's settings");
    let schedule = Schedule::new(0.005, 2, 10).expect("the reference's schedule");
    let mut steps = Steps::default();
    for step in 0..10 {
        steps.losses.extend(pass(step));
        let clipped = measure(parameters, 5.0).expect("a norm");
        let rate = schedule.learning_rate(step);
        optimiser.update(parameters, rate, clipped.scale).expect("an update");
        steps.norms.push(clipped.norm);
        steps.rates.push(rate);
    }
    steps
}

/// Asserts that `parameters` are what the reference has after ten steps.
fn close_after(what: &str, parameters: &[ParameterRef], expected: impl Fn(&Parameter) -> Vec<f64>) {
    for parameter in parameters {
        // A bias of keys has a gradient of rounding errors alone, which AdamW blows up to whole steps.
        if ["k_lin.bias", "key.bias", "c_attn.bias"].iter().any(|end| parameter.name().ends_with(end)) {
            continue;
        }
        let found = parameter.with_value(|value: &[f32]| value.iter().map(|value| f64::from(*value)).collect::<Vec<_>>());
        let what = format!("{what}: {} after ten steps", parameter.name());
        close(&what, &found.expect("single precision"), &expected(parameter), (1e-3, 1e-3));
    }
}
