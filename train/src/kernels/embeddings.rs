//! The sum of rows of several embedding tables.

use super::element::Element;
use super::parameter::ParameterRef;
use super::storage::{failure, filled_by_chunks, for_dtype, with_slice};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, Var};
use rayon::prelude::*;
use std::marker::PhantomData;

/// A table `[entries, width]` and the entry that each token takes, `[tokens]`.
#[derive(Clone)]
pub struct Lookup {
    /// The table.
    pub table: ParameterRef,
    /// Rows of the table.
    pub indices: Vec<u32>,
}

/// `[tokens, width]`: row i is the sum over the lookups, in their order, of `table[indices[i]]`. There is at least one, and all have the same
/// width and number of tokens.
///
/// The result is tracked, so that gradients reach the tables; detach it to evaluate without keeping anything for a backward pass.
pub fn embeddings(lookups: Vec<Lookup>) -> Result<Tensor> {
    let Some(Lookup { table, indices }) = lookups.first() else { return Err(failure("embeddings", "no table")) };
    let (tokens, dtype) = (indices.len(), table.dtype());
    let (_, width) = table.shape().dims2()?;
    for Lookup { table, indices } in &lookups {
        let (entries, found) = table.shape().dims2()?;
        if found != width || table.dtype() != dtype {
            let found = format!("{} of {:?} {:?}", table.name(), table.dtype(), table.shape().dims());
            return Err(failure(
                "embeddings",
                format!("the tables differ in width or number type: {found} beside {dtype:?} of width {width}"),
            ));
        }
        if indices.len() != tokens {
            return Err(failure("embeddings", format!("{} ids for {tokens} tokens", indices.len())));
        }
        if let Some(id) = indices.iter().find(|id| **id as usize >= entries) {
            return Err(failure("embeddings", format!("id {id} in {} of {entries} rows", table.name())));
        }
    }
    // candle's graph needs a variable at its root; the tables themselves must not be in it.
    let root = Var::zeros((), dtype, &Device::Cpu)?;
    for_dtype!("embeddings", dtype, T => root.apply_op1(Embeddings::<T> { lookups, tokens, width, element: PhantomData }))
}

struct Embeddings<T> {
    lookups: Vec<Lookup>,
    tokens: usize,
    width: usize,
    element: PhantomData<T>,
}

impl<T: Element> CustomOp1 for Embeddings<T> {
    fn name(&self) -> &'static str {
        "embeddings"
    }

    fn cpu_fwd(&self, _storage: &CpuStorage, _layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (width, tokens) = (self.width, self.tokens);
        let mut y: Vec<T> = Vec::new();
        for Lookup { table, indices } in &self.lookups {
            table.with_value(|rows: &[T]| {
                let row = |index: &u32| &rows[*index as usize * width..][..width];
                if y.is_empty() {
                    y = filled_by_chunks(tokens * width, width, indices.par_iter(), |y, index| y.copy_from_slice(row(index)));
                } else {
                    let sums = y.par_chunks_mut(width).zip(indices.par_iter()).with_min_len(16);
                    sums.for_each(|(y, index)| y.iter_mut().zip(row(index)).for_each(|(y, value)| *y += *value));
                }
            })?;
        }
        Ok((T::to_cpu_storage_owned(y), (tokens, width).into()))
    }

    fn bwd(&self, _root: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        with_slice("embeddings", gradient, |gradient: &[T]| {
            self.lookups.iter().try_for_each(|Lookup { table, indices }| scatter_add(table, indices, gradient, self.width))
        })??;
        Ok(None)
    }
}

/// Adds row i of `gradient` to row `indices[i]` of the table's gradient. Each task owns rows of the table and adds in the order of i.
fn scatter_add<T: Element>(table: &ParameterRef, indices: &[u32], gradient: &[T], width: usize) -> Result<()> {
    // A counting sort: `sources[starts[row]..starts[row + 1]]` are the gradient rows of a table row.
    let mut starts = vec![0usize; table.elements() / width + 1];
    indices.iter().for_each(|index| starts[*index as usize + 1] += 1);
    (1..starts.len()).for_each(|row| starts[row] += starts[row - 1]);
    let mut sources = vec![0usize; indices.len()];
    let mut next = starts.clone();
    for (source, index) in indices.iter().enumerate() {
        sources[next[*index as usize]] = source;
        next[*index as usize] += 1;
    }
    table.with_gradient(|sink: &mut [T]| {
        sink.par_chunks_mut(width).enumerate().with_min_len(16).for_each(|(row, sink)| {
            for source in &sources[starts[row]..starts[row + 1]] {
                sink.iter_mut().zip(&gradient[source * width..][..width]).for_each(|(sink, value)| *sink += *value);
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Parameter;
    use crate::kernels::proof::{Proof, assert_close, numbers, random};

    const IDS: [u32; 7] = [4, 0, 4, 2, 4, 0, 1];
    const PLACES: [u32; 7] = [0, 1, 2, 0, 0, 1, 2];
    const TYPES: [u32; 7] = [0, 0, 0, 1, 0, 0, 1];

    fn lookups(tables: &[ParameterRef]) -> Vec<Lookup> {
        tables.iter().zip([IDS, PLACES, TYPES]).map(|(table, ids)| Lookup { table: table.clone(), indices: ids.to_vec() }).collect()
    }

    #[test]
    fn rows_are_sums_of_two_or_three_embeddings() {
        let tables = [random(1, &[5, 9], 1.0), random(2, &[4, 9], 1.0), random(3, &[2, 9], 1.0)];
        let parameters: Vec<ParameterRef> = tables.iter().map(|table| Parameter::new("table", table).unwrap()).collect();
        let values: Vec<Vec<f64>> = tables.iter().map(numbers).collect();
        for count in [1, 2, 3] {
            let y = numbers(&embeddings(lookups(&parameters[..count])).unwrap());
            for row in 0..7 {
                let rows = [IDS[row], PLACES[row], TYPES[row]];
                let sum = |j: usize| (0..count).map(|table| values[table][rows[table] as usize * 9 + j]).sum();
                assert_close("row", &y[row * 9..][..9], &(0..9).map(sum).collect::<Vec<f64>>(), 1e-15, 0.0);
            }
            let run = |_: &[Tensor], tables: &[ParameterRef]| embeddings(lookups(tables));
            Proof { inputs: &[], parameters: &tables[..count], run }.check();
        }
    }

    #[test]
    fn ids_widths_and_counts_are_checked() {
        let table = |rows, width| Parameter::new("table", &random(1, &[rows, width], 1.0)).unwrap();
        let message = |tables: &[ParameterRef]| embeddings(lookups(tables)).unwrap_err().to_string();
        assert!(message(&[table(4, 2), table(3, 2)]).contains("id 4 in table of 4 rows"));
        assert!(message(&[table(5, 2), table(2, 2)]).contains("id 2"));
        assert!(message(&[table(5, 2), table(3, 3)]).contains("differ in width"));
        let short = Lookup { table: table(5, 2), indices: vec![0; 6] };
        let full = Lookup { table: table(5, 2), indices: vec![0; 7] };
        assert!(embeddings(vec![full, short]).unwrap_err().to_string().contains("6 ids for 7 tokens"));
        assert!(embeddings(vec![]).is_err());
    }
}
