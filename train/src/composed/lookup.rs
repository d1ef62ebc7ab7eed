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
    numbers: Arc<[u32]>,
    /// The same on the device.
    uploaded: Tensor,
}

impl Lookup {
    /// Row `numbers[i]` of a table becomes row i.
    pub(super) fn new(numbers: Vec<u32>, device: &Device) -> Result<Self> {
        let uploaded = Tensor::from_slice(&numbers, numbers.len(), device)?;
        Ok(Self { numbers: numbers.into(), uploaded })
    }

    /// `[count, width]` of `table` `[rows, width]`.
    pub(super) fn of(&self, table: &Tensor) -> Result<Tensor> {
        table.apply_op2(&self.uploaded, LookUp { numbers: self.numbers.clone() })
    }
}

struct LookUp {
    numbers: Arc<[u32]>,
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

    fn bwd(&self, table: &Tensor, _numbers: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(Halvings::new(&self.numbers, table.dim(0)?)?.sums(gradient)?), None))
    }
}

/// How the gradients of rows are added up.
struct Halvings {
    /// Each a halving: rows of what the one before left, then as many rows that are added to them, [`NONE`] where one is left alone.
    halvings: Vec<Vec<u32>>,
    /// `[rows]` of the table: where its sum is in the end, [`NONE`] where it was not looked up.
    places: Vec<u32>,
}

impl Halvings {
    fn new(numbers: &[u32], rows: usize) -> Result<Self> {
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
            order = (0..kept.len() as u32).collect();
            kept.append(&mut added);
            halvings.push(kept);
        }
        Ok(Self { halvings, places })
    }

    /// `[rows, width]` from `gradient` `[count, width]`.
    fn sums(self, gradient: &Tensor) -> Result<Tensor> {
        let mut left = gradient.detach().contiguous()?;
        for halving in self.halvings {
            let half = halving.len() / 2;
            let halving = Tensor::from_vec(halving, (2, half), left.device())?;
            left = (left.index_select(&halving.get(0)?, 0)? + left.index_select(&halving.get(1)?, 0)?)?;
        }
        let count = self.places.len();
        left.index_select(&Tensor::from_vec(self.places, count, left.device())?, 0)
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
            let lookup = Lookup::new(looked_up.clone(), &device).unwrap();
            let (found, expected) = (run(&|table| lookup.of(table)), run(&|table| table.index_select(&lookup.uploaded, 0)));
            assert_eq!(found.0, expected.0);
            assert_close("gradient", &found.1, &expected.1, 1e-12, 1e-13);
        }
    }

    #[test]
    fn few_halvings_add_many_rows_and_none_is_left_out() {
        let Halvings { halvings, places } = Halvings::new(&[[2; 1000].as_slice(), &[0, 4, 4]].concat(), 6).unwrap();
        assert_eq!(halvings.len(), 10);
        assert_eq!(places, [0, NONE, 1, NONE, 2, NONE]);
        assert_eq!(halvings.last().unwrap().len(), 6, "one row of each of three, and one or none that is added to it");
        let ones = Tensor::ones((1003, 2), DType::F32, &Device::Cpu).unwrap();
        let sums = Halvings { halvings, places }.sums(&ones).unwrap();
        assert_eq!(numbers(&sums), [1.0, 1.0, 0.0, 0.0, 1000.0, 1000.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0]);
        assert!(Halvings::new(&[6], 6).is_err());
    }
}
