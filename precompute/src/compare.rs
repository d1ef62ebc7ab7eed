//! `precompute compare`: how far the answers of one cache are from those of another, position by position, as of an int8 export of a teacher from
//! the float32 one. Both must hold the same rows and positions; they are read side by side, a row group at a time.
//!
//! What is measured, and why it is a lower bound, stands in `compare/divergence.rs`. Values that were rounded to float16 blur it by about 1e-4 nats.
//!
//! `--out` writes this JSON:
//!
//! | key | value |
//! | --- | --- |
//! | `format_version` | 1 |
//! | `caches` | the directories, A and B |
//! | `rows` | sequences, each pass for itself |
//! | `positions` | positions compared |
//! | `temperature` | the one the logits are divided by |
//! | `kl_nats` | KL(A \|\| B): `mean`, the quantiles `p50`, `p90` and `p99` (to 1 %), and the `largest` |
//! | `top1_agreement` | share of the positions where both have the same most likely id |
//! | `mass_outside` | mean mass of A outside the ids that both store |

mod divergence;
mod quantiles;

use crate::cli::CompareArguments;
use divergence::{Comparer, Reading};
use logitcache::atomic_file::{check_place, write_bytes_atomically};
use logitcache::cache::reader::{Cache, Projection, ShardReader};
use logitcache::cache::record::Record;
use logitcache::error::{Error, Result};
use logitcache::target::{Problem, TargetSpec, Task};
use quantiles::Quantiles;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;

const FORMAT_VERSION: u32 = 1;

/// What was found; see the module for the JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Grows with any change that an older reader would misread.
    pub format_version: u32,
    /// A and B.
    pub caches: [PathBuf; 2],
    /// Sequences, each pass for itself.
    pub rows: u64,
    /// Positions compared.
    pub positions: u64,
    /// What logits are divided by.
    pub temperature: f32,
    /// KL(A || B) in nats.
    pub kl_nats: Spread,
    /// Share in 0..=1.
    pub top1_agreement: f64,
    /// Mean mass of A, in 0..=1.
    pub mass_outside: f64,
}

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 90 % are no larger.
    pub p90: f64,
    /// 99 % are no larger.
    pub p99: f64,
    /// The largest.
    pub largest: f64,
}

/// Compares two caches and writes the JSON where it was asked for.
///
/// # Errors
/// [`Error::Usage`] for caches of other rows, positions, classes or temperatures, for answers that are no distribution over classes, and for an
/// `--out` that cannot be written; those of the caches.
pub fn run(arguments: &CompareArguments) -> Result<Comparison> {
    let CompareArguments { caches, temperature, out } = arguments;
    if let Some(out) = out {
        check_place("--out", out, "DIR/comparison.json")?;
    }
    let [path_a, path_b] = caches.as_slice() else {
        return Err(Error::usage("CACHE", "two caches", caches.len().to_string(), "name the directory of each"));
    };
    let (a, b) = (Cache::open(path_a)?, Cache::open(path_b)?);
    expect_distributions(a.spec())?;
    expect_alike(a.spec(), b.spec())?;
    let mut comparer = Comparer::new(reading(&a, "CACHE_A", *temperature)?, reading(&b, "CACHE_B", *temperature)?);
    let (mut kl, mut outside) = (Quantiles::default(), Quantiles::default());
    let (mut rows, mut positions, mut same_top) = (0, 0, 0);
    let (mut of_a, mut of_b) = (Rows::of(&a), Rows::of(&b));
    loop {
        let (record_a, record_b) = match (of_a.next()?, of_b.next()?) {
            (None, None) => break,
            (Some(a), Some(b)) => (a, b),
            (a, b) => return Err(other_rows(&place(a.as_ref()), &place(b.as_ref()))),
        };
        expect_same_row(&record_a, &record_b)?;
        rows += 1;
        for index in 0..record_a.positions.len() {
            let found = comparer.position(&record_a, &record_b, index);
            kl.add(found.kl);
            outside.add(found.outside);
            same_top += u64::from(found.same_top);
            positions += 1;
        }
    }
    let comparison = Comparison {
        format_version: FORMAT_VERSION,
        caches: [path_a.clone(), path_b.clone()],
        rows,
        positions,
        temperature: *temperature,
        kl_nats: Spread { mean: kl.mean(), p50: kl.quantile(0.5), p90: kl.quantile(0.9), p99: kl.quantile(0.99), largest: kl.largest() },
        top1_agreement: same_top as f64 / positions.max(1) as f64,
        mass_outside: outside.mean(),
    };
    if let Some(out) = out {
        let mut json = serde_json::to_vec_pretty(&comparison).map_err(Error::library("write", out))?;
        json.push(b'\n');
        write_bytes_atomically(out, &json)?;
    }
    Ok(comparison)
}

fn expect_distributions(spec: &TargetSpec) -> Result<()> {
    let one_of_several = spec.problem().is_none_or(|problem| problem == Problem::SingleLabel);
    if spec.task() != Task::SentenceEmbedding && one_of_several {
        return Ok(());
    }
    let found = spec.problem().map_or_else(|| spec.task().to_string(), |problem| format!("{problem:?} of {}", spec.task()));
    Err(Error::usage("CACHE_A", "answers that are one class of several", found, "compare caches of language models or of such classifiers"))
}

fn expect_alike(a: &TargetSpec, b: &TargetSpec) -> Result<()> {
    let describe = |spec: &TargetSpec| format!("{} over {} classes, {} ids", spec.task(), spec.classes(), spec.vocabulary_size());
    if (a.task(), a.problem(), a.classes(), a.vocabulary_size()) == (b.task(), b.problem(), b.classes(), b.vocabulary_size()) {
        return Ok(());
    }
    let remedy = "compare caches of teachers with the same vocabulary and classes";
    Err(Error::usage("CACHE_B", format!("{}, as CACHE_A has it", describe(a)), describe(b), remedy))
}

fn reading(cache: &Cache, name: &str, temperature: f32) -> Result<Reading> {
    Reading::of(cache.spec(), temperature).ok_or_else(|| {
        let expected = format!("a temperature that {name} stores: {:?}", cache.spec().temperatures());
        Error::usage("--temperature", expected, temperature.to_string(), "type one that both caches store")
    })
}

fn other_rows(a: &str, b: &str) -> Error {
    let remedy = "compare caches of the same corpus, made with the same seed, lengths and --positions";
    Error::usage("CACHE_B", format!("the rows and positions of CACHE_A: {a}"), b, remedy)
}

fn place(record: Option<&Record>) -> String {
    record.map_or("no more rows".to_owned(), |record| format!("sequence {} of pass {}", record.sequence_id, record.pass))
}

fn expect_same_row(a: &Record, b: &Record) -> Result<()> {
    let place_of_a = place(Some(a));
    if (a.sequence_id, a.pass) != (b.sequence_id, b.pass) {
        return Err(other_rows(&place_of_a, &place(Some(b))));
    }
    if a.input_ids != b.input_ids {
        return Err(other_rows(&format!("the tokens of {place_of_a}"), "other tokens there"));
    }
    if a.positions != b.positions {
        let found = format!("{} positions there, not the same", b.positions.len());
        return Err(other_rows(&format!("{} positions of {place_of_a}", a.positions.len()), &found));
    }
    Ok(())
}

/// The rows of a cache in order, a row group in memory at a time.
struct Rows<'a> {
    cache: &'a Cache,
    shard: Option<ShardReader>,
    /// Those that come next.
    next_shard: usize,
    next_group: usize,
    read: VecDeque<Record>,
}

impl<'a> Rows<'a> {
    fn of(cache: &'a Cache) -> Self {
        Self { cache, shard: None, next_shard: 0, next_group: 0, read: VecDeque::new() }
    }

    /// The next row; nothing after the last.
    fn next(&mut self) -> Result<Option<Record>> {
        while self.read.is_empty() {
            let shard = match self.shard.take() {
                Some(shard) if self.next_group < shard.row_groups() => shard,
                _ if self.next_shard == self.cache.shards() => return Ok(None),
                _ => {
                    (self.next_shard, self.next_group) = (self.next_shard + 1, 0);
                    self.cache.shard(self.next_shard - 1)?
                }
            };
            self.read = shard.read(self.next_group, &Projection::default())?.into();
            self.next_group += 1;
            self.shard = Some(shard);
        }
        Ok(self.read.pop_front())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, positions, temperature, kl_nats, top1_agreement, mass_outside, .. } = self;
        let Spread { mean, p50, p90, p99, largest } = kl_nats;
        writeln!(formatter, "compared    {positions} positions of {rows} sequences, at T = {temperature}")?;
        writeln!(formatter, "KL(A || B)  mean {mean:.3e} nats; median {p50:.2e}, 90 % {p90:.2e}, 99 % {p99:.2e}, largest {largest:.2e}")?;
        writeln!(formatter, "top-1       {:.2} % the same", 100.0 * top1_agreement)?;
        write!(
            formatter,
            "outside     {:.3} % of A's mass lies outside the ids that both store, and counts as one class",
            100.0 * mass_outside
        )
    }
}

#[cfg(test)]
mod tests;
