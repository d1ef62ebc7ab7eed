//! Rows of a table, looked up by number: embeddings.
//!
//! A row may be looked up often, and its gradient is then a sum. candle's `index_add` makes it number after number, on as few threads as a row is
//! wide: on a GPU that takes longer than a layer. Here every two gradients of the same row are added at once, then every two of the sums, until one
//! is left of each row: choices of rows and sums of rows, which every device is fast at, in an order that depends on the numbers alone.

use super::rows::{NONE, choose};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// What is looked up.
#[derive(Clone)]
pub(super) struct Lookup {
    /// `[count]`: rows of the table.
    numbers: Tensor,
    /// The way back, where there is one.
    back: Option<Arc<Halvings>>,
}

impl Lookup {
    /// Row `numbers[i]` of a table becomes row i. `differentiated`: the rows of the table, where its gradient will be asked for; all that the way back
    /// needs is then uploaded, since a device that has work queued makes an upload wait for it.
    pub(super) fn new(numbers: &[u32], differentiated: Option<usize>, device: &Device) -> Result<Self> {
        let back = differentiated.map(|rows| Halvings::new(numbers, rows, device)).transpose()?;
        Ok(Self { numbers: Tensor::from_slice(numbers, numbers.len(), device)?, back: back.map(Arc::new) })
    }

    /// `[count, width]` of `table` `[rows, width]`.
    pub(super) fn of(&self, table: &Tensor) -> Result<Tensor> {
        table.apply_op2(&self.numbers, LookUp { back: self.back.clone() })
    }
}

struct LookUp {
    back: Option<Arc<Halvings>>,
}

impl CustomOp2 for LookUp {
    fn name(&self) -> &'static str {
        "look up rows"
    }

    fn cpu_fwd(&self, table: &CpuStorage, of_table: &Layout, numbers: &CpuStorage, of_numbers: &Layout) -> Result<(CpuStorage, Shape)> {
        choose(table, of_table, numbers, of_numbers)
    }

    fn cuda_fwd(&self, table: &CudaStorage, of_table: &Layout, numbers: &CudaStorage, of_numbers: &Layout) -> Result<(CudaStorage, Shape)> {
        choose(table, of_table, numbers, of_numbers)
    }

    fn bwd(&self, _table: &Tensor, _numbers: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(back) = &self.back else { candle_core::bail!("a lookup that was not to be differentiated") };
        Ok((Some(back.sums(gradient)?), None))
    }
}

/// How the gradients of rows are added up.
struct Halvings {
    /// Each a halving, `[2, left]`: rows of what the one before left, then rows that are added to them, [`NONE`] where one is left alone.
    halvings: Vec<Tensor>,
    /// `[rows]` of the table: where its sum is in the end, [`NONE`] where it was not looked up.
    places: Tensor,
}

impl Halvings {
    fn new(numbers: &[u32], rows: usize, device: &Device) -> Result<Self> {
        let mut places = vec![NONE; rows];
        let mut order: Vec<u32> = (0..numbers.len() as u32).collect();
        order.sort_by_key(|place| numbers[*place as usize]);
        // Runs of equal numbers; each is a range of what is left.
        let runs: Vec<&[u32]> = order.chunk_by(|a, b| numbers[*a as usize] == numbers[*b as usize]).collect();
        for (place, run) in runs.iter().enumerate() {
            let number = numbers[run[0] as usize];
            *places.get_mut(number as usize).ok_or_else(|| candle_core::Error::Msg(format!("row {number} of {rows}")))? = place as u32;
        }
        let mut lengths: Vec<usize> = runs.iter().map(|run| run.len()).collect();
        let mut halvings = Vec::new();
        while halvings.is_empty() || lengths.iter().any(|length| *length > 1) {
            let (mut kept, mut added, mut first) = (Vec::new(), Vec::new(), 0);
            for length in &mut lengths {
                for place in (first..first + *length).step_by(2) {
                    kept.push(order[place]);
                    added.push(if place + 1 < first + *length { order[place + 1] } else { NONE });
                }
                first += *length;
                *length = length.div_ceil(2);
            }
            let left = kept.len();
            order = (0..left as u32).collect();
            kept.append(&mut added);
            halvings.push(Tensor::from_vec(kept, (2, left), device)?);
        }
        Ok(Self { halvings, places: Tensor::from_vec(places, rows, device)? })
    }

    /// `[rows, width]` from `gradient` `[count, width]`.
    fn sums(&self, gradient: &Tensor) -> Result<Tensor> {
        let mut left = gradient.detach().contiguous()?;
        for halving in &self.halvings {
            left = (left.index_select(&halving.get(0)?, 0)? + left.index_select(&halving.get(1)?, 0)?)?;
        }
        left.index_select(&self.places, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{assert_close, numbers, random};
    use candle_core::{DType, Var};
    use logitcache::seed::{Purpose, RandomStream};

    #[test]
    fn rows_and_their_sums_are_candles() {
        let mut stream = RandomStream::new(5, Purpose::Shuffling, &[]);
        let often = (0..300).map(|_| stream.below(7).pow(2) as u32);
        for looked_up in [vec![0], vec![40; 65], vec![3, 9, 3, 3, 0, 9], (0..50).collect(), often.collect::<Vec<_>>()] {
            let device = Device::cuda_if_available(0).unwrap();
            let table = random(1, &[50, 6], 1.0).to_device(&device).unwrap();
            let weights = random(2, &[looked_up.len(), 6], 1.0).to_device(&device).unwrap();
            let run = |of: &dyn Fn(&Tensor) -> Result<Tensor>| {
                let table = Var::from_tensor(&table).unwrap();
                let y = of(&table).unwrap();
                let gradients = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
                (numbers(&y), numbers(gradients.get(&table).unwrap()))
            };
            let lookup = Lookup::new(&looked_up, Some(50), &device).unwrap();
            let (found, expected) = (run(&|table| lookup.of(table)), run(&|table| table.index_select(&lookup.numbers, 0)));
            assert_eq!(found.0, expected.0);
            assert_close("gradient", &found.1, &expected.1, 1e-12, 1e-13);
        }
    }

    #[test]
    fn few_halvings_add_many_rows_and_none_is_left_out() {
        let added = Halvings::new(&[[2; 1000].as_slice(), &[0, 4, 4]].concat(), 6, &Device::Cpu).unwrap();
        assert_eq!(added.halvings.len(), 10);
        assert_eq!(added.places.to_vec1::<u32>().unwrap(), [0, NONE, 1, NONE, 2, NONE]);
        assert_eq!(added.halvings.last().unwrap().dims(), [2, 3], "one row of each of three, and one or none that is added to it");
        let ones = Tensor::ones((1003, 2), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(numbers(&added.sums(&ones).unwrap()), [1.0, 1.0, 0.0, 0.0, 1000.0, 1000.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0]);
        assert!(Halvings::new(&[6], 6, &Device::Cpu).is_err());
        let table = Var::from_tensor(&random(1, &[5, 2], 1.0)).unwrap();
        let read = Lookup::new(&[1, 1], None, &Device::Cpu).unwrap().of(&table).unwrap();
        assert!(read.sum_all().unwrap().backward().unwrap_err().to_string().contains("not to be differentiated"));
    }
}
