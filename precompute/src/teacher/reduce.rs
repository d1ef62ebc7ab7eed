//! Targets made inside the graph: top-k, log Z and the rounding to float16 follow the logits as nodes of their own, so that on another device than the
//! processor the logits, a thousand times larger than what is stored of them, are never copied from it.
//!
//! The formulas are those of [`crate::topk`], in float32: with z the logits of a position and m the largest, (z_i - m) / T for the k largest at the
//! first temperature, and ln sum_j exp((z_j - m) / T) at each. The smallest logit is answered too, to see whether all of them are finite.

use super::outputs::tensor;
use super::prepare::Prepared;
use crate::topk::Targets;
use half::f16;
use logitcache::error::{Error, Result};
use logitcache::onnx::builder::{FLOAT32, INT64};
use logitcache::onnx::messages::TensorProto;
use logitcache::onnx::written::{Attribute, Node};
use logitcache::onnx::{Edit, Model};
use ort::session::SessionOutputs;
use std::borrow::Cow;
use std::path::Path;

/// ONNX's numbers for int32 and float16.
const INT32: i64 = 6;
const FLOAT16: i64 = 10;
/// The first version of the standard operations with this TopK.
const OLDEST_OPSET: i64 = 11;
const TOP_IDS: &str = "logitcache.top_ids";
const TOP_LOGITS: &str = "logitcache.top_logits";
const MAX_LOGIT: &str = "logitcache.max_logit";
const MIN_LOGIT: &str = "logitcache.min_logit";
const LOG_Z: &str = "logitcache.log_z";
/// Inner tensors: the logits in float32, the k largest, and a constant.
const WIDE: &str = "logitcache.wide";
const VALUES: &str = "logitcache.values";
const LAST_AXIS: &str = "logitcache.last_axis";
const REMEDY: &str = "use --provider cpu, where the targets are made outside the graph";
/// Everything that is answered in place of logits.
pub(super) const OUTPUTS: [&str; 5] = [TOP_IDS, TOP_LOGITS, MAX_LOGIT, MIN_LOGIT, LOG_Z];

/// What is kept of a position's logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduction {
    /// Ids a position; cut to the vocabulary's.
    pub k: usize,
    /// In stored order; the first scales the logits that are kept.
    pub temperatures: Vec<f32>,
    /// Whether these are rounded to float16.
    pub half: bool,
}

/// A reduction of logits of a known length.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FittingReduction {
    pub reduction: Reduction,
    /// Length of a row of logits.
    pub width: usize,
}

impl Prepared {
    /// Has the graph answer targets, not logits.
    ///
    /// # Errors
    /// [`Error::Data`] for a graph of operations that are too old, and where neither it nor config.json says how long a row of logits is.
    pub fn reduce(&mut self, reduction: Reduction) -> Result<()> {
        let opset = self.graph.as_ref().map_or(0, Model::opset);
        let refuse = |field: &str, expected: String, found: String| Err(Error::data(&self.model, field, expected, found, REMEDY));
        if opset < OLDEST_OPSET {
            let expected = format!("version {OLDEST_OPSET} or newer, since the targets are made in the graph");
            return refuse("opset", expected, opset.to_string());
        }
        let outputs = self.graph.iter().flat_map(|model| &model.graph().outputs);
        let declared = outputs.into_iter().find(|output| output.name == self.output).and_then(|output| *output.shape()?.last()?);
        let Some(width) = declared.or(self.config.vocabulary_size.map(u64::from)).and_then(|width| usize::try_from(width).ok()) else {
            return refuse("output logits", "a length that it or config.json says".to_owned(), "none".to_owned());
        };
        let reduction = Reduction { k: reduction.k.min(width), ..reduction };
        self.reduction = Some(FittingReduction { reduction, width });
        Ok(())
    }
}

/// Nodes after a graph's last.
struct Tail<'e> {
    edit: &'e mut Edit,
    opset: i64,
}

impl Tail<'_> {
    fn named(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<Attribute>, outputs: &[&str]) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let name = format!("logitcache/reduce/{}", outputs[0]);
        self.edit.append(Node {
            inputs: owned(inputs),
            outputs: owned(outputs),
            name,
            op_type: op_type.to_owned(),
            attributes,
            ..Node::default()
        });
    }

    /// A node of one output; gives its name.
    fn node(&mut self, op_type: &str, inputs: &[&str], output: &str) -> String {
        let output = format!("logitcache.{output}");
        self.named(op_type, inputs, Vec::new(), &[&output]);
        output
    }

    /// `tensor` over its last axis, which stays with length 1. The axes are an input from version `since` on, an attribute before.
    fn over_last(&mut self, op_type: &str, since: i64, tensor: &str, output: &str) {
        match self.opset >= since {
            true => self.named(op_type, &[tensor, LAST_AXIS], Vec::new(), &[output]),
            false => self.named(op_type, &[tensor], vec![Attribute::of_ints("axes", &[-1])], &[output]),
        }
    }

    fn cast(&mut self, tensor: &str, element: i64, output: &str) {
        self.named("Cast", &[tensor], vec![Attribute::of_int("to", element)], &[output]);
    }

    fn integers(&mut self, name: &str, values: &[i64]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, INT64, vec![values.len() as i64], bytes);
    }

    fn number(&mut self, name: &str, value: f32) {
        self.constant(name, FLOAT32, Vec::new(), value.to_le_bytes().to_vec());
    }

    fn constant(&mut self, name: &str, data_type: i32, dims: Vec<i64>, bytes: Vec<u8>) {
        self.edit.constant(TensorProto { name: name.to_owned(), data_type, dims, raw_data: bytes.into(), ..TensorProto::default() });
    }
}

/// Adds the nodes and outputs that make targets of the output `logits`, `[..., vocabulary]`, float16 or float32.
pub(super) fn reduce(reduction: &Reduction, opset: i64, logits: &str, edit: &mut Edit) {
    let mut tail = Tail { edit, opset };
    let along_last = || vec![Attribute::of_int("axis", -1)];
    tail.integers(LAST_AXIS, &[-1]);
    tail.integers("logitcache.k", &[reduction.k as i64]);
    tail.integers("logitcache.first", &[0]);
    tail.integers("logitcache.second", &[1]);
    tail.cast(logits, i64::from(FLOAT32), WIDE);
    // The largest first, and of equal ones the smaller id, as the operation promises.
    tail.named("TopK", &[WIDE, "logitcache.k"], along_last(), &[VALUES, "logitcache.ids"]);
    tail.cast("logitcache.ids", INT32, TOP_IDS);
    tail.named("Slice", &[VALUES, "logitcache.first", "logitcache.second", LAST_AXIS], Vec::new(), &[MAX_LOGIT]);
    tail.over_last("ReduceMin", 18, WIDE, MIN_LOGIT);

    let centred = tail.node("Sub", &[WIDE, MAX_LOGIT], "centred");
    let mut parts = Vec::new();
    for (place, temperature) in reduction.temperatures.iter().enumerate() {
        tail.number(&temperature_name(place), *temperature);
        let tempered = tail.node("Div", &[&centred, &temperature_name(place)], &format!("tempered_{place}"));
        let exponentials = tail.node("Exp", &[&tempered], &format!("exponentials_{place}"));
        let sum = format!("logitcache.sum_{place}");
        tail.over_last("ReduceSum", 13, &exponentials, &sum);
        parts.push(tail.node("Log", &[&sum], &format!("log_z_{place}")));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    tail.named("Concat", &parts, along_last(), &[LOG_Z]);

    let kept = tail.node("Sub", &[VALUES, MAX_LOGIT], "kept");
    let divided = tail.node("Div", &[&kept, &temperature_name(0)], "divided");
    // Below what the type reaches the probability is 0 whatever is stored.
    tail.number("logitcache.lowest", if reduction.half { f16::MIN.to_f32() } else { f32::MIN });
    let bounded = tail.node("Max", &[&divided, "logitcache.lowest"], "bounded");
    tail.cast(&bounded, if reduction.half { FLOAT16 } else { i64::from(FLOAT32) }, TOP_LOGITS);
    OUTPUTS.iter().for_each(|output| tail.edit.output(output));
}

fn temperature_name(place: usize) -> String {
    format!("logitcache.temperature_{place}")
}

/// A batch's targets as the graph gave them; one answer per position, in the order of the answers.
#[derive(Debug)]
pub struct Reduced<'a> {
    k: usize,
    temperatures: usize,
    top_ids: &'a [i32],
    top_logits: Cow<'a, [f32]>,
    max_logit: Cow<'a, [f32]>,
    min_logit: Cow<'a, [f32]>,
    log_z: Cow<'a, [f32]>,
}

impl<'a> Reduced<'a> {
    /// Checks the outputs of a batch whose answers have the dimensions `outer`.
    pub(super) fn new(model: &Path, outputs: &'a SessionOutputs<'_>, outer: &[usize], reduction: &Reduction) -> Result<Self> {
        let floats = |name: &str, width: usize| tensor(model, outputs, name, outer, &mut width.clone(), REMEDY);
        let (mut k, temperatures) = (reduction.k, reduction.temperatures.len());
        let top_logits = tensor(model, outputs, TOP_LOGITS, outer, &mut k, REMEDY)?;
        let failed = |error: ort::Error| Error::library(format!("read output {TOP_IDS} of"), model)(error);
        let refuse = |found: String| Error::data(model, format!("output {TOP_IDS}"), "an int32 for each kept logit", found, REMEDY);
        let ids = outputs.get(TOP_IDS).ok_or_else(|| refuse("nothing".to_owned()))?;
        let (shape, top_ids) = ids.try_extract_tensor::<i32>().map_err(failed)?;
        if top_ids.len() != top_logits.len() {
            return Err(refuse(format!("shape {shape:?}")));
        }
        let (max_logit, min_logit, log_z) = (floats(MAX_LOGIT, 1)?, floats(MIN_LOGIT, 1)?, floats(LOG_Z, temperatures)?);
        Ok(Self { k, temperatures, top_ids, top_logits, max_logit, min_logit, log_z })
    }

    /// Appends the targets of answer number `place`.
    ///
    /// # Errors
    /// What is not finite among its logits, for messages; nothing is appended then.
    pub(super) fn append(&self, place: usize, targets: &mut Targets) -> std::result::Result<(), String> {
        let log_z = &self.log_z[place * self.temperatures..][..self.temperatures];
        let (largest, smallest) = (self.max_logit[place], self.min_logit[place]);
        if !(largest.is_finite() && smallest.is_finite() && log_z.iter().all(|value| value.is_finite())) {
            return Err(format!("logits from {smallest} to {largest} with log Z {log_z:?}"));
        }
        targets.top_ids.extend(self.top_ids[place * self.k..][..self.k].iter().map(|id| id.cast_unsigned()));
        targets.top_logits.extend_from_slice(&self.top_logits[place * self.k..][..self.k]);
        targets.max_logit.push(largest);
        targets.log_z.extend_from_slice(log_z);
        Ok(())
    }
}
