//! From a row of logits to what is stored of it: the largest k, and the log-normaliser at every temperature.
//!
//! Finding the largest k of a row without sorting it: take the maximum of every block of 64 logits. At least k logits are no smaller than the k-th
//! largest of these maxima, so it is a lower bound of the k-th largest logit. Only blocks whose maximum reaches it are looked at again, the few logits
//! that reach it are collected, and an exact selection among them gives the answer, ties and all. The sums of exponentials are one more pass. Both
//! passes are compiled three times (AVX-512, AVX2 with FMA, and for any processor); what the machine has is asked at run time.

mod aligned;
mod exponentials;
mod head;
mod lanes;
mod product;
mod running;
mod selection;

use exponentials::Chain;
pub use head::{Head, Layout};
use lanes::{Lanes, Portable};
use std::sync::Arc;

/// Targets of a run of positions, flattened as in `logitcache::cache::record::Record`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// `[position, k]`: ids of the largest logits, descending, ties by the smaller id.
    pub top_ids: Vec<u32>,
    /// `[position, k]`: (z_i - z_max) / T at the first temperature, not rounded to float16; the first is 0.
    pub top_logits: Vec<f32>,
    /// `[position]`: z_max, not divided.
    pub max_logit: Vec<f32>,
    /// `[position, temperature]`: log of the sum over the whole vocabulary of exp((z - z_max) / T).
    pub log_z: Vec<f32>,
}

impl Targets {
    /// Appends those of other positions.
    pub fn extend(&mut self, other: &Self) {
        self.top_ids.extend_from_slice(&other.top_ids);
        self.top_logits.extend_from_slice(&other.top_logits);
        self.max_logit.extend_from_slice(&other.max_logit);
        self.log_z.extend_from_slice(&other.log_z);
    }
}

/// A logit that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{value} for id {id}")]
pub struct NotFinite {
    /// The id whose logit it is.
    pub id: u32,
    /// NaN or an infinity.
    pub value: f32,
}

/// Makes targets of rows. Owns its scratch memory: keep one per thread.
#[derive(Clone, Debug)]
pub struct TopK {
    k: usize,
    temperatures: Vec<f32>,
    chains: Vec<Chain>,
    /// What is added to every row; of the rows' length.
    bias: Option<Arc<[f32]>>,
    kernel: Kernel,
    scratch: Scratch,
}

/// Memory reused from row to row.
#[derive(Clone, Debug, Default)]
struct Scratch {
    /// The logits with their bias, where there is one.
    row: Vec<f32>,
    maxima: Vec<f32>,
    ranking: Vec<f32>,
    candidates: Vec<u64>,
}

/// Which of the compiled variants runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// Those this processor can run, the widest first.
    fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            [(Self::Avx512, avx2 && is_x86_feature_detected!("avx512f")), (Self::Avx2, avx2)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let wide: [(Self, bool); 0] = [];
        wide.into_iter().filter_map(|(kernel, has)| has.then_some(kernel)).chain([Self::Portable])
    }
}

impl TopK {
    /// For `k` ids a row (cut to the row's length) and temperatures in stored order, the first of which scales `top_logits`.
    ///
    /// # Panics
    /// If `k` is 0, or `temperatures` is empty or holds one that is not finite and above 0: `TargetSpec` refuses them before.
    pub fn new(k: usize, temperatures: &[f32]) -> Self {
        let kernel = Kernel::available().next().expect("the portable kernel is always available");
        Self::with_kernel(kernel, k, temperatures)
    }

    fn with_kernel(kernel: Kernel, k: usize, temperatures: &[f32]) -> Self {
        assert!(k > 0, "TopK needs k of at least 1");
        let valid = !temperatures.is_empty() && temperatures.iter().all(|t| t.is_finite() && *t > 0.0);
        assert!(valid, "TopK needs finite temperatures above 0");
        Self { k, temperatures: temperatures.to_vec(), chains: Chain::plan(temperatures), bias: None, kernel, scratch: Scratch::default() }
    }

    /// The same of rows to which `bias` is added first, `[vocabulary]`.
    pub fn with_bias(self, bias: Option<Arc<[f32]>>) -> Self {
        Self { bias, ..self }
    }

    /// Appends one position's targets. `logits`: `[vocabulary]`, undivided.
    ///
    /// # Errors
    /// A logit is NaN or infinite; nothing is appended then.
    ///
    /// # Panics
    /// If `logits` is empty, longer than `u32` counts, or of another length than the bias.
    pub fn append(&mut self, logits: &[f32], targets: &mut Targets) -> Result<(), NotFinite> {
        assert!(!logits.is_empty() && u32::try_from(logits.len()).is_ok(), "a row holds 1 to 2^32 - 1 logits");
        let bias = self.bias.as_deref();
        assert!(bias.is_none_or(|bias| bias.len() == logits.len()), "a bias is as long as a row");
        let columns = targets.log_z.len();
        targets.log_z.resize(columns + self.temperatures.len(), 0.0);
        let log_z = &mut targets.log_z[columns..];
        let scratch = &mut self.scratch;
        let maximum = match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Kernel::available` has seen this processor's avx512f, avx2 and fma.
            Kernel::Avx512 => unsafe { row_avx512(logits, bias, self.k, &self.chains, scratch, log_z) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Kernel::available` has seen this processor's avx2 and fma.
            Kernel::Avx2 => unsafe { row_avx2(logits, bias, self.k, &self.chains, scratch, log_z) },
            Kernel::Portable => row::<Portable>(logits, bias, self.k, &self.chains, scratch, log_z),
        };
        let Some(maximum) = maximum else {
            targets.log_z.truncate(columns);
            return Err(first_not_finite(logits, bias));
        };
        let logits = if bias.is_some() { &scratch.row } else { logits };
        targets.max_logit.push(maximum);
        let ids = scratch.candidates.iter().map(|key| selection::id_of(*key));
        targets.top_ids.extend(ids.clone());
        // Two finite logits can lie further apart than f32 reaches; such a tail has probability 0 whatever is stored.
        let temperature = self.temperatures[0];
        targets.top_logits.extend(ids.map(|id| ((logits[id as usize] - maximum) / temperature).max(f32::MIN)));
        Ok(())
    }
}

/// One row: the k largest as sorted keys in `scratch.candidates`, `log_z` filled; the maximum, or nothing where a logit is not finite.
#[inline(always)]
fn row<L: Lanes>(
    logits: &[f32],
    bias: Option<&[f32]>,
    k: usize,
    chains: &[Chain],
    scratch: &mut Scratch,
    log_z: &mut [f32],
) -> Option<f32> {
    let maximum = selection::largest::<L>(logits, bias, k.min(logits.len()), scratch)?;
    let next = logits.as_ptr().wrapping_add(logits.len());
    let logits = if bias.is_some() { &scratch.row } else { logits };
    // A closure would be compiled on its own, without the wide instructions of the function it is in.
    for chain in chains {
        chain.log_z::<L>(logits, next, maximum, log_z);
    }
    Some(maximum)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn row_avx512(logits: &[f32], bias: Option<&[f32]>, k: usize, chains: &[Chain], scratch: &mut Scratch, log_z: &mut [f32]) -> Option<f32> {
    row::<lanes::Avx512>(logits, bias, k, chains, scratch, log_z)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn row_avx2(logits: &[f32], bias: Option<&[f32]>, k: usize, chains: &[Chain], scratch: &mut Scratch, log_z: &mut [f32]) -> Option<f32> {
    row::<lanes::Avx2>(logits, bias, k, chains, scratch, log_z)
}

#[cold]
fn first_not_finite(logits: &[f32], bias: Option<&[f32]>) -> NotFinite {
    let biased = |id: usize| logits[id] + bias.map_or(0.0, |bias| bias[id]);
    let mut values = (0..logits.len()).map(|id| (id, biased(id)));
    let (id, value) = values.find(|(_, value)| !value.is_finite()).expect("a refused row holds a logit that is not finite");
    NotFinite { id: id as u32, value }
}

#[cfg(test)]
mod tests;
