//! Choosing rows by their numbers, backwards too: a packed batch padded and packed again, the asked rows of a state.
//!
//! candle differentiates `index_select` by an `index_add`, which on a GPU passes over all numbers with as few threads as a row is wide. Where every
//! row is chosen once at most, the way back is a choice of rows as well, by the inverse.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

/// Stands for no row: what is chosen there is zeros, forwards and backwards, on every device of candle.
pub(super) const NONE: u32 = u32::MAX;

/// A choice among rows, none of them twice.
#[derive(Clone)]
pub(super) struct Rows {
    /// `[chosen]`: the rows, [`NONE`] for one of zeros.
    chosen: Tensor,
    /// `[rows]`: where each went, [`NONE`] for nowhere.
    places: Tensor,
}

impl Rows {
    /// Row `chosen[i]` of `rows` becomes row i; `None` becomes zeros.
    pub(super) fn new(chosen: impl IntoIterator<Item = Option<usize>>, rows: usize, device: &Device) -> Result<Self> {
        let mut places = vec![NONE; rows];
        let chosen: Vec<u32> = chosen.into_iter().map(|row| row.map_or(NONE, |row| row as u32)).collect();
        for (place, row) in chosen.iter().enumerate().filter(|(_, row)| **row != NONE) {
            match places.get_mut(*row as usize) {
                Some(free) if *free == NONE => *free = place as u32,
                _ => candle_core::bail!("row {row} of {rows} is chosen twice or does not exist"),
            }
        }
        let count = chosen.len();
        Ok(Self { chosen: Tensor::from_vec(chosen, count, device)?, places: Tensor::from_vec(places, rows, device)? })
    }

    /// How many rows are chosen from.
    #[cfg(feature = "cuda")]
    pub(super) fn rows(&self) -> usize {
        self.places.dims()[0]
    }

    /// `[chosen]`: the row of each place, `u32::MAX` for one of zeros.
    #[cfg(feature = "cuda")]
    pub(super) fn chosen(&self) -> &Tensor {
        &self.chosen
    }

    /// `[rows]`: the place of each row, `u32::MAX` for one that is not chosen.
    #[cfg(feature = "cuda")]
    pub(super) fn places(&self) -> &Tensor {
        &self.places
    }

    /// The way back.
    pub(super) fn inverse(&self) -> Self {
        Self { chosen: self.places.clone(), places: self.chosen.clone() }
    }

    /// `[chosen, width]` of `x` `[rows, width]`.
    pub(super) fn of(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op2(&self.chosen, Choose { places: self.places.clone() })
    }
}

struct Choose {
    places: Tensor,
}

/// Every backend of candle chooses rows itself; what is of its own here is the way back.
pub(super) fn choose<S: BackendStorage>(x: &S, of_x: &Layout, chosen: &S, of_chosen: &Layout) -> Result<(S, Shape)> {
    let (_, width) = of_x.shape().dims2()?;
    Ok((x.index_select(chosen, of_x, of_chosen, 0)?, (of_chosen.dims()[0], width).into()))
}

impl CustomOp2 for Choose {
    fn name(&self) -> &'static str {
        "choose rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, of_x: &Layout, chosen: &CpuStorage, of_chosen: &Layout) -> Result<(CpuStorage, Shape)> {
        choose(x, of_x, chosen, of_chosen)
    }

    fn cuda_fwd(&self, x: &CudaStorage, of_x: &Layout, chosen: &CudaStorage, of_chosen: &Layout) -> Result<(CudaStorage, Shape)> {
        choose(x, of_x, chosen, of_chosen)
    }

    fn bwd(&self, _x: &Tensor, _chosen: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.contiguous()?.index_select(&self.places, 0)?), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::proof::{numbers, random};
    use candle_core::Var;

    #[test]
    fn rows_go_there_and_gradients_come_back() {
        let x = Var::from_tensor(&random(1, &[4, 3], 1.0)).unwrap();
        let rows = Rows::new([Some(2), None, Some(0)], 4, &Device::Cpu).unwrap();
        let (y, weights) = (rows.of(&x).unwrap(), random(2, &[3, 3], 1.0));
        let (from, to, given) = (numbers(&x), numbers(&y), numbers(&weights));
        assert_eq!([&to[..3], &to[3..6], &to[6..]], [&from[6..9], &[0.0; 3], &from[..3]]);
        let gradients = (y.clone() * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let found = numbers(gradients.get(&x).unwrap());
        assert_eq!([&found[..3], &found[3..6], &found[6..9], &found[9..]], [&given[6..], &[0.0; 3], &given[..3], &[0.0; 3]]);
        let back = numbers(&rows.inverse().of(&y).unwrap());
        assert_eq!([&back[..3], &back[3..6], &back[6..9]], [&from[..3], &[0.0; 3], &from[6..9]]);
    }

    #[test]
    fn a_row_cannot_be_chosen_twice() {
        assert!(Rows::new([Some(1), Some(1)], 2, &Device::Cpu).is_err());
        assert!(Rows::new([Some(2)], 2, &Device::Cpu).is_err());
    }
}
