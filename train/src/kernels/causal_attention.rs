//! A decoder's attention: projections to queries, keys and values, turned by their positions or not, causal attention, the projection back.
//!
//! The projections are as many as the model has: GPT-2 has one for all three, Llama one for each. Between the products, rows become heads and back
//! in the pass that turns them.

use super::causal::{CausalAttention, Heads};
use super::dropout::DropoutPlan;
use super::element::Element;
use super::level::Level;
use super::linear::{Columns, keep, taken};
use super::packing::Packing;
use super::projection::Projection;
use super::rotary::{Rotary, RotaryTable, turn};
use super::storage::{failure, for_dtype, rows_and_width, slice_of, tensor_of, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::{Arc, Mutex};

/// One layer's maps and heads.
#[derive(Clone)]
pub struct CausalParameters {
    /// To the queries of all heads, then the keys, then the values, side by side.
    pub inputs: Vec<Projection>,
    /// Back to the hidden states.
    pub output: Projection,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and of values, a divisor of `heads`: query heads 0 to `heads / key_value_heads - 1` share the first, and so on.
    pub key_value_heads: usize,
    /// Width of every head.
    pub head_width: usize,
    /// How queries and keys are turned; `None` leaves them.
    pub rotary: Option<Arc<Rotary>>,
}

/// `[rows, width]` from `x` `[rows, width]`: the output projection of attention in which a row sees the rows of its own sequence up to itself.
/// Positions count from 0 in each sequence. Dropout acts on the probabilities, with the plan's attention probability, at this `layer`'s site.
pub fn causal_attention(
    x: &Tensor,
    parameters: &CausalParameters,
    packing: &Arc<Packing>,
    plan: &DropoutPlan,
    layer: u32,
) -> Result<Tensor> {
    let operation = "causal_attention";
    let (rows, width) = rows_and_width(operation, x)?;
    if rows != packing.rows() {
        return Err(failure(operation, format!("{rows} rows for a packing of {}", packing.rows())));
    }
    let heads = checked_heads(parameters)?;
    let outputs = parameters.inputs.iter().map(|map| map.check(operation, x, width)).sum::<Result<usize>>()?;
    if outputs != heads.all() * heads.width {
        return Err(failure(operation, format!("projections to {outputs} columns for {} heads of width {}", heads.all(), heads.width)));
    }
    let back = parameters.output.check(operation, x, heads.query_width())?;
    if back != width {
        return Err(failure(operation, format!("{} gives {back} columns instead of {width}", parameters.output.weight.name())));
    }
    if let Some(rotary) = &parameters.rotary {
        if rotary.head_width() != heads.width {
            return Err(failure(operation, format!("angles for heads of width {} instead of {}", rotary.head_width(), heads.width)));
        }
        if rotary.positions() < packing.longest() {
            return Err(failure(operation, format!("a sequence of {} tokens for {} positions", packing.longest(), rotary.positions())));
        }
    }
    for_dtype!(operation, x.dtype(), T => x.apply_op1(Causal::<T> {
        parameters: parameters.clone(),
        heads,
        packing: packing.clone(),
        plan: *plan,
        layer,
        tracked: x.track_op(),
        saved: Mutex::new(None),
    }))
}

fn checked_heads(parameters: &CausalParameters) -> Result<Heads> {
    let CausalParameters { heads, key_value_heads, head_width, .. } = *parameters;
    if key_value_heads == 0 || heads == 0 || heads % key_value_heads != 0 || head_width == 0 {
        return Err(failure("causal_attention", format!("{heads} heads of width {head_width} cannot share {key_value_heads} keys")));
    }
    Ok(Heads { queries: heads, keys: key_value_heads, width: head_width })
}

struct Causal<T> {
    parameters: CausalParameters,
    heads: Heads,
    packing: Arc<Packing>,
    plan: DropoutPlan,
    layer: u32,
    tracked: bool,
    saved: Mutex<Option<Saved<T>>>,
}

struct Saved<T> {
    /// Head-major, turned.
    qkv: Vec<T>,
    /// `[rows, query width]`.
    context: Vec<T>,
    normalisers: Vec<T>,
}

/// Which way rows and heads are exchanged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToHeads,
    /// Turned heads are turned back.
    ToRows,
}

impl<T: Element> Causal<T> {
    fn attention(&self) -> CausalAttention<'_> {
        CausalAttention { packing: &self.packing, heads: self.heads, plan: self.plan, layer: self.layer }
    }

    /// Rows of `heads` heads side by side become head-major, or back; the first `turned` heads are turned by their positions.
    fn exchanged(&self, from: &[T], heads: usize, turned: usize, way: Way) -> Vec<T> {
        let (width, level) = (self.heads.width, Level::best());
        let table: Option<RotaryTable<T>> = self.parameters.rotary.as_ref().map(|rotary| rotary.table(self.packing.longest()));
        let mut to = vec![T::zero(); from.len()];
        let sequences: Vec<_> = self.packing.split(&mut to, heads * width).into_iter().enumerate().collect();
        sequences.into_par_iter().for_each(|(i, to)| {
            let range = self.packing.range(i);
            let from = &from[range.start * heads * width..range.end * heads * width];
            let length = range.len();
            // Neighbours in `to` are neighbours in memory that is written: rows of a head, or heads of a row.
            to.par_chunks_exact_mut(width).with_min_len(64).enumerate().for_each(|(place, to)| {
                let (head, position) = if way == Way::ToHeads { (place / length, place % length) } else { (place % heads, place / heads) };
                let source = if way == Way::ToHeads { position * heads + head } else { head * length + position };
                let from = &from[source * width..(source + 1) * width];
                match &table {
                    Some(table) if head < turned => {
                        let (cosines, sines) = table.at(position);
                        turn(level, from, to, cosines, sines, way == Way::ToRows);
                    }
                    _ => to.copy_from_slice(from),
                }
            });
        });
        to
    }

    /// Queries and keys.
    fn turned(&self) -> usize {
        self.heads.queries + self.heads.keys
    }
}

impl<T: Element> CustomOp1 for Causal<T> {
    fn name(&self) -> &'static str {
        "causal_attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x: &[T] = slice_of(self.name(), storage, layout)?;
        let stride = self.heads.all() * self.heads.width;
        let mut rows = vec![T::zero(); self.packing.rows() * stride];
        let mut first = 0;
        for projection in &self.parameters.inputs {
            projection.forward_into(x, &mut rows, first, stride)?;
            first += projection.outputs();
        }
        let qkv = self.exchanged(&rows, self.heads.all(), self.turned(), Way::ToHeads);
        drop(rows);
        let (context, normalisers) = self.attention().forward(&qkv)?;
        let context = self.exchanged(&context, self.heads.queries, 0, Way::ToRows);
        let y = self.parameters.output.forward(&context)?;
        keep(&self.saved, Saved { qkv, context, normalisers }, self.tracked);
        Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Saved { qkv, context, normalisers } = taken(self.name(), &self.saved)?;
        let slopes = with_slice(self.name(), gradient, |dy: &[T]| self.parameters.output.backward(dy, &context))??;
        let slopes = self.attention().backward(&qkv, &context, &normalisers, &slopes)?;
        let slopes = self.exchanged(&slopes, self.heads.all(), self.turned(), Way::ToRows);
        let row_stride = self.heads.all() * self.heads.width;
        let dx = with_slice(self.name(), x, |x: &[T]| {
            let mut dx = vec![T::zero(); x.len()];
            let mut first = 0;
            for projection in &self.parameters.inputs {
                let columns = Columns { values: &slopes, row_stride, first };
                projection.add_gradients(columns, x)?;
                projection.input_gradient(columns, &mut dx, first > 0)?;
                first += projection.outputs();
            }
            Ok::<_, candle_core::Error>(dx)
        })??;
        Ok(Some(tensor_of(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests;
