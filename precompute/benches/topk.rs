//! Speed of the top-k with its log-normalisers beside a plain sum of the same rows: `cargo bench -p precompute --bench topk`.
//!
//! One thread, 1,024 rows of a BERT vocabulary, k = 64. The two are timed in turn; each figure is the median of the rounds.

use logitcache::seed::{Purpose, RandomStream};
use precompute::topk::{Targets, TopK};
use std::time::Instant;

const ROWS: usize = 1024;
const VOCABULARY: usize = 30_522;
const ROUNDS: usize = 11;

fn main() {
    let mut stream = RandomStream::new(1, Purpose::Initialisation, &[]);
    let logits: Vec<f32> = (0..ROWS * VOCABULARY).map(|_| (stream.normal() * 2.0) as f32).collect();
    println!("{ROWS} rows of {VOCABULARY}, k = 64, one thread, median of {ROUNDS} rounds");
    for temperatures in [&[1.0][..], &[2.0, 1.0], &[1.0, 2.0, 4.0]] {
        let mut top_k = TopK::new(64, temperatures);
        let (mut kernel, mut sum) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            kernel.push(seconds(|| {
                let mut targets = Targets::default();
                logits.chunks_exact(VOCABULARY).for_each(|row| top_k.append(row, &mut targets).expect("finite logits"));
                std::hint::black_box(&targets);
            }));
            sum.push(seconds(|| {
                std::hint::black_box(logits.chunks_exact(VOCABULARY).map(plain_sum).sum::<f32>());
            }));
        }
        let (kernel, sum) = (median(kernel), median(sum));
        let rate = |seconds: f64| (logits.len() * size_of::<f32>()) as f64 / seconds / 1e9;
        println!("T = {temperatures:?}: {:.1} ms, {:.2} GB/s; a plain sum {:.2} GB/s", kernel * 1e3, rate(kernel), rate(sum));
    }
}

/// Sixteen partial sums, so that the compiler can use vectors.
fn plain_sum(row: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for values in row.chunks_exact(16) {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().sum()
}

fn seconds(run: impl FnOnce()) -> f64 {
    let started = Instant::now();
    run();
    started.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
