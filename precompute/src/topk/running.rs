//! What is kept of a row of logits that comes a tile at a time and is never there as a whole.
//!
//! The sums of exponentials are relative to the largest logit so far, and scaled anew where a tile has a larger one (M. Milakov and N. Gimelshein,
//! "Online normalizer calculation for softmax", 2018). Of the logits those are kept that reach the k-th largest so far; once they have become several
//! times k, they are cut to k, which raises what the next have to reach.

use super::exponentials::{Chain, LONGEST};
use super::lanes::Lanes;
use super::selection::{block_maxima, collect_row, id_of, value_of};
use super::{NotFinite, Targets};

/// Logits whose maximum decides whether they are looked at one by one.
const BLOCK: usize = 64;
/// Candidates that are kept before they are cut, at least and in multiples of k.
const FEWEST_KEPT: usize = 192;
const KEPT: usize = 3;

/// A row under way.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// The largest logit so far.
    maximum: f32,
    /// For each chain the sums so far, relative to `maximum`.
    totals: Vec<[f64; LONGEST]>,
    /// What a logit has to reach to be one of the k largest, as far as is known.
    threshold: f32,
    candidates: Vec<u64>,
    maxima: Vec<f32>,
    refused: Option<NotFinite>,
}

impl Running {
    /// A row of which nothing has come yet.
    pub(super) fn new(chains: &[Chain]) -> Self {
        Self {
            maximum: f32::NEG_INFINITY,
            totals: vec![[0.0; LONGEST]; chains.len()],
            threshold: f32::NEG_INFINITY,
            candidates: Vec::new(),
            maxima: Vec::new(),
            refused: None,
        }
    }

    /// The same again, with the memory of the row before.
    pub(super) fn restart(&mut self) {
        (self.maximum, self.threshold, self.refused) = (f32::NEG_INFINITY, f32::NEG_INFINITY, None);
        self.totals.fill([0.0; LONGEST]);
        self.candidates.clear();
    }

    /// Takes in the logits of the ids from `first` on.
    #[inline(always)]
    pub(super) fn take<L: Lanes>(&mut self, logits: &[f32], first: usize, k: usize, chains: &[Chain]) {
        let Some(maximum) = block_maxima::<L, BLOCK, false>(logits, &[], &mut [], &mut self.maxima) else {
            if self.refused.is_none() {
                self.refused = first_not_finite(logits, first);
            }
            return;
        };
        if maximum > self.maximum {
            self.raise(maximum, chains);
        }
        let next = logits.as_ptr().wrapping_add(logits.len());
        for (chain, totals) in chains.iter().zip(&mut self.totals) {
            chain.add::<L>(logits, next, self.maximum, totals);
        }
        collect_row::<L, BLOCK>(logits, &self.maxima, first, self.threshold, &mut self.candidates);
        if self.candidates.len() >= (KEPT * k).max(FEWEST_KEPT) {
            self.cut(k);
        }
    }

    /// Makes the sums relative to a larger logit.
    fn raise(&mut self, maximum: f32, chains: &[Chain]) {
        if self.maximum > f32::NEG_INFINITY {
            let difference = f64::from(self.maximum) - f64::from(maximum);
            for (chain, totals) in chains.iter().zip(&mut self.totals) {
                chain.scale(difference, totals);
            }
        }
        self.maximum = maximum;
    }

    /// Leaves the k largest.
    fn cut(&mut self, k: usize) {
        if self.candidates.len() > k {
            let (_, last, _) = self.candidates.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            // Ids ascend, so that one as large as the k-th does not come before it any more.
            self.threshold = value_of(*last).next_up();
            self.candidates.truncate(k);
        }
    }

    /// The targets of the row, where all of it has been taken in.
    pub(super) fn targets(&mut self, k: usize, temperatures: &[f32], chains: &[Chain]) -> Result<Targets, NotFinite> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        self.cut(k);
        self.candidates.sort_unstable_by(|a, b| b.cmp(a));
        let mut log_z = vec![0.0; temperatures.len()];
        for (chain, totals) in chains.iter().zip(&self.totals) {
            chain.finish(totals, &mut log_z);
        }
        let relative = |key: &u64| ((value_of(*key) - self.maximum) / temperatures[0]).max(f32::MIN);
        Ok(Targets {
            top_ids: self.candidates.iter().map(|key| id_of(*key)).collect(),
            top_logits: self.candidates.iter().map(relative).collect(),
            max_logit: vec![self.maximum],
            log_z,
        })
    }
}

#[cold]
fn first_not_finite(logits: &[f32], first: usize) -> Option<NotFinite> {
    let found = logits.iter().position(|logit| !logit.is_finite())?;
    Some(NotFinite { id: (first + found) as u32, value: logits[found] })
}
