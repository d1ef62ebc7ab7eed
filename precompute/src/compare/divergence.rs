//! How far two teachers are apart at a position, from what two caches store of it. Pure.
//!
//! Let C be the ids that both store. There p (of A) and q (of B) are known exactly; what lies outside is known as one mass for each, 1 - p(C) and
//! 1 - q(C), and counted as one class:
//!
//! sum over C of p ln(p / q) + (1 - p(C)) ln((1 - p(C)) / (1 - q(C)))
//!
//! Putting classes together never makes a divergence larger, so KL(A || B) over the whole vocabulary is at least this, and the less mass lies outside,
//! the less is it more.

use logitcache::cache::record::Record;
use logitcache::target::TargetSpec;

/// A mass outside the common ids that is smaller is taken for this: float16 values leave no more of it than their rounding.
const SMALLEST_MASS: f64 = 1e-6;

/// How one cache stores its rows, and how log-probabilities at a temperature are read from them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    k: usize,
    temperatures: usize,
    /// Which stored temperature is read.
    column: usize,
    /// From logits at the first temperature to logits at that one.
    factor: f64,
}

impl Reading {
    /// At `temperature`; nothing where the cache does not store its log-normaliser.
    pub(super) fn of(spec: &TargetSpec, temperature: f32) -> Option<Self> {
        let column = spec.temperatures().iter().position(|stored| *stored == temperature)?;
        let factor = f64::from(spec.logits_temperature()) / f64::from(temperature);
        Some(Self { k: spec.top_k(), temperatures: spec.temperatures().len(), column, factor })
    }

    /// `[k]`: (id, log-probability) at the `index`-th position asked, the most likely first.
    fn position(self, record: &Record, index: usize) -> impl Iterator<Item = (u32, f64)> {
        let range = index * self.k..(index + 1) * self.k;
        let log_z = f64::from(record.log_z[index * self.temperatures + self.column]);
        let logits = record.top_logits[range.clone()].iter().map(move |logit| f64::from(*logit) * self.factor - log_z);
        record.top_ids[range].iter().copied().zip(logits)
    }
}

/// Two answers about a position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Divergence {
    /// KL(A || B) in nats, at least 0.
    pub(super) kl: f64,
    /// Mass of A outside the ids that both store.
    pub(super) outside: f64,
    /// Whether both find the same id the most likely.
    pub(super) same_top: bool,
}

/// Compares positions; owns its scratch memory.
#[derive(Clone, Debug)]
pub(super) struct Comparer {
    a: Reading,
    b: Reading,
    /// B's (id, log-probability), by id.
    sorted: Vec<(u32, f64)>,
}

impl Comparer {
    /// Of caches that are read in these ways.
    pub(super) fn new(a: Reading, b: Reading) -> Self {
        Self { a, b, sorted: Vec::new() }
    }

    /// The `index`-th position asked of the same row of both caches.
    ///
    /// # Panics
    /// If a record has no such position.
    pub(super) fn position(&mut self, a: &Record, b: &Record, index: usize) -> Divergence {
        self.sorted.clear();
        self.sorted.extend(self.b.position(b, index));
        let top_of_b = self.sorted.first().map(|(id, _)| *id);
        self.sorted.sort_unstable_by_key(|(id, _)| *id);
        let (mut kl, mut mass_a, mut mass_b) = (0.0, 0.0, 0.0);
        let mut top_of_a = None;
        for (id, log_p) in self.a.position(a, index) {
            top_of_a = top_of_a.or(Some(id));
            let Ok(place) = self.sorted.binary_search_by_key(&id, |(id, _)| *id) else { continue };
            let log_q = self.sorted[place].1;
            let p = log_p.exp();
            kl += p * (log_p - log_q);
            mass_a += p;
            mass_b += log_q.exp();
        }
        let outside = |mass: f64| (1.0 - mass).max(SMALLEST_MASS);
        kl += outside(mass_a) * (outside(mass_a) / outside(mass_b)).ln();
        Divergence { kl: kl.max(0.0), outside: (1.0 - mass_a).max(0.0), same_top: top_of_a == top_of_b }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logitcache::oracle::{log_softmax, stored_targets};
    use logitcache::target::{Task, UncheckedTargetSpec};
    use proptest::prelude::*;

    fn spec(k: u32, temperatures: &[f32]) -> TargetSpec {
        let unchecked =
            UncheckedTargetSpec { top_k: k, temperatures: temperatures.to_vec(), ..UncheckedTargetSpec::new(Task::CausalLm, 12) };
        TargetSpec::try_from(unchecked).unwrap()
    }

    /// A record of two positions, of which the second is asked about.
    fn record(logits: &[f64], spec: &TargetSpec) -> Record {
        let temperatures: Vec<f64> = spec.temperatures().iter().map(|t| f64::from(*t)).collect();
        let mut record = Record::default();
        for logits in [&vec![0.0; logits.len()][..], logits] {
            let stored = stored_targets(logits, spec.top_k(), &temperatures);
            record.top_ids.extend(stored.top_ids.iter().map(|id| *id as u32));
            record.top_logits.extend(stored.top_logits.iter().map(|logit| *logit as f32));
            record.log_z.extend(stored.log_z.iter().map(|log_z| *log_z as f32));
        }
        record
    }

    fn compare(logits: [&[f64]; 2], specs: [&TargetSpec; 2], temperature: f32) -> Divergence {
        let [a, b] = [0, 1].map(|side| record(logits[side], specs[side]));
        let [of_a, of_b] = specs.map(|spec| Reading::of(spec, temperature).unwrap());
        Comparer::new(of_a, of_b).position(&a, &b, 1)
    }

    /// Over the whole vocabulary, in float64.
    fn exact(a: &[f64], b: &[f64], temperature: f64) -> f64 {
        let [a, b] = [a, b].map(|logits| log_softmax(logits, temperature));
        a.iter().zip(&b).map(|(p, q)| p.exp() * (p - q)).sum()
    }

    #[test]
    fn a_temperature_that_is_not_stored_is_not_read() {
        assert!(Reading::of(&spec(4, &[2.0, 1.0]), 1.0).is_some() && Reading::of(&spec(4, &[2.0, 1.0]), 3.0).is_none());
    }

    #[test]
    fn the_likeliest_id_is_that_of_each_cache() {
        let (a, b) = ([0.0, 3.0, 1.0, -1.0], [0.0, 3.0, 3.5, -1.0]);
        let full = spec(4, &[1.0]);
        assert!(!compare([&a, &b], [&full, &full], 1.0).same_top);
        assert!(compare([&a, &a], [&full, &spec(2, &[1.0])], 1.0).same_top);
    }

    proptest! {
        #[test]
        fn the_whole_vocabulary_gives_the_exact_divergence_and_a_part_no_more(
            a in prop::collection::vec(-6.0_f64..6.0, 12),
            b in prop::collection::vec(-6.0_f64..6.0, 12),
            k in 1_u32..12,
            temperature in prop::sample::select(vec![1.0_f32, 2.0]),
        ) {
            let full = spec(12, &[2.0, 1.0]);
            let exact = exact(&a, &b, f64::from(temperature));
            let whole = compare([&a, &b], [&full, &spec(12, &[1.0, 2.0])], temperature);
            prop_assert!((whole.kl - exact).abs() < 2e-5 * (1.0 + exact), "{} and {exact}", whole.kl);
            prop_assert!(whole.outside < 1e-5);
            let part = compare([&a, &b], [&full, &spec(k, &[2.0, 1.0])], temperature);
            // The stored float32 numbers leave an uncertain 1e-6 of the mass outside, which weighs more the less of it there is.
            let mut of_b: Vec<f64> = log_softmax(&b, f64::from(temperature)).into_iter().map(f64::exp).collect();
            of_b.sort_by(f64::total_cmp);
            let outside: f64 = of_b[..12 - k as usize].iter().sum();
            let rounding = 2e-5 * (1.0 + exact) + 1e-6 / outside.max(SMALLEST_MASS);
            prop_assert!(part.kl <= exact + rounding, "{} and {exact}", part.kl);
            let same = compare([&a, &a], [&full, &full], temperature);
            prop_assert!(same.kl < 1e-12 && same.same_top);
        }
    }
}
