//! The sum of a word's and a position's embedding.

use super::element::Element;
use super::packing::Packing;
use super::parameter::ParameterRef;
use super::storage::{failure, filled_by_chunks, for_dtype, with_slice};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, Var};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::Arc;

/// `[tokens, width]`: row i is `word[input_ids[i]] + position[p]`, p counted from 0 within the row's sequence. `word` is
/// `[vocabulary, width]`, `position` `[longest, width]`.
///
/// The result is tracked, so that gradients reach both tables; detach it to evaluate without keeping anything for a backward pass.
pub fn embeddings(word: &ParameterRef, position: &ParameterRef, input_ids: &[u32], packing: &Arc<Packing>) -> Result<Tensor> {
    let (vocabulary, width) = word.shape().dims2()?;
    let (positions, position_width) = position.shape().dims2()?;
    if position_width != width || position.dtype() != word.dtype() {
        let found = format!("{:?} {:?} and {:?} {:?}", word.dtype(), word.shape().dims(), position.dtype(), position.shape().dims());
        return Err(failure("embeddings", format!("the two tables differ in width or number type: {found}")));
    }
    if input_ids.len() != packing.rows() {
        return Err(failure("embeddings", format!("{} ids for {} rows", input_ids.len(), packing.rows())));
    }
    if packing.longest() > positions {
        return Err(failure("embeddings", format!("a sequence of {} tokens for {positions} positions", packing.longest())));
    }
    if let Some(id) = input_ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(failure("embeddings", format!("id {id} in a vocabulary of {vocabulary}")));
    }
    // candle's graph needs a variable at its root; the tables themselves must not be in it.
    let root = Var::zeros((), word.dtype(), &Device::Cpu)?;
    for_dtype!("embeddings", word.dtype(), T => root.apply_op1(Embeddings::<T> {
        word: word.clone(),
        position: position.clone(),
        input_ids: input_ids.to_vec(),
        packing: packing.clone(),
        width,
        element: PhantomData,
    }))
}

struct Embeddings<T> {
    word: ParameterRef,
    position: ParameterRef,
    input_ids: Vec<u32>,
    packing: Arc<Packing>,
    width: usize,
    element: PhantomData<T>,
}

impl<T: Element> Embeddings<T> {
    fn positions(&self) -> Vec<u32> {
        (0..self.packing.sequences()).flat_map(|i| 0..self.packing.range(i).len() as u32).collect()
    }
}

impl<T: Element> CustomOp1 for Embeddings<T> {
    fn name(&self) -> &'static str {
        "embeddings"
    }

    fn cpu_fwd(&self, _storage: &CpuStorage, _layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (width, tokens) = (self.width, self.input_ids.len());
        let positions = self.positions();
        let y = self.word.with_value(|words: &[T]| {
            self.position.with_value(|places: &[T]| {
                let indices = self.input_ids.par_iter().zip(&positions);
                filled_by_chunks(tokens * width, width, indices, |y, (id, place)| {
                    let (word, place) = (&words[*id as usize * width..][..width], &places[*place as usize * width..][..width]);
                    for ((y, word), place) in y.iter_mut().zip(word).zip(place) {
                        *y = *word + *place;
                    }
                })
            })
        })??;
        Ok((T::to_cpu_storage_owned(y), (tokens, width).into()))
    }

    fn bwd(&self, _root: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        with_slice("embeddings", gradient, |gradient: &[T]| {
            scatter_add(&self.word, &self.input_ids, gradient, self.width)?;
            scatter_add(&self.position, &self.positions(), gradient, self.width)
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

    fn packing() -> Arc<Packing> {
        Packing::new(&[0, 3, 4, 7], &[1, 2, 3], &[0, 0, 0]).unwrap()
    }

    #[test]
    fn rows_are_sums_of_two_embeddings() {
        let (word, position) = (random(1, &[5, 9], 1.0), random(2, &[4, 9], 1.0));
        let parameters = [Parameter::new("word", &word).unwrap(), Parameter::new("position", &position).unwrap()];
        let y = numbers(&embeddings(&parameters[0], &parameters[1], &IDS, &packing()).unwrap());
        let (word, position) = (numbers(&word), numbers(&position));
        for (row, place) in [0, 1, 2, 0, 0, 1, 2].into_iter().enumerate() {
            let expected: Vec<f64> = (0..9).map(|j| word[IDS[row] as usize * 9 + j] + position[place * 9 + j]).collect();
            assert_close("row", &y[row * 9..][..9], &expected, 0.0, 0.0);
        }
        let tables = [random(1, &[5, 9], 1.0), random(2, &[4, 9], 1.0)];
        let run = |_: &[Tensor], tables: &[ParameterRef]| embeddings(&tables[0], &tables[1], &IDS, &packing());
        Proof { inputs: &[], parameters: &tables, run }.check();
    }

    #[test]
    fn ids_positions_and_counts_are_checked() {
        let table = |rows| Parameter::new("table", &random(1, &[rows, 2], 1.0)).unwrap();
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        assert!(message(embeddings(&table(4), &table(3), &IDS, &packing())).contains("id 4"));
        assert!(message(embeddings(&table(5), &table(2), &IDS, &packing())).contains("2 positions"));
        assert!(message(embeddings(&table(5), &table(3), &IDS[..6], &packing())).contains("6 ids"));
    }
}
