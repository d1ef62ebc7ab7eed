//! Speed of the top-k with its log-normalisers beside a plain sum of the same rows, and of the head with its targets: `cargo bench -p precompute --bench topk`.
//!
//! One thread, 1,024 rows of a BERT vocabulary, k = 64. What a line names is timed in turn; each figure is the median of the rounds.

use logitcache::seed::{Purpose, RandomStream};
use precompute::topk::{Head, Layout, Targets, TopK};
use std::time::Instant;

const ROWS: usize = 1024;
const VOCABULARY: usize = 30_522;
const ROUNDS: usize = 11;

fn main() {
    println!("{ROWS} rows of {VOCABULARY}, k = 64, one thread, median of {ROUNDS} rounds");
    top_k();
    head();
}

fn normal(length: usize, seed: u64) -> Vec<f32> {
    let mut stream = RandomStream::new(seed, Purpose::Initialisation, &[]);
    (0..length).map(|_| stream.normal() as f32).collect()
}

fn top_k() {
    let logits: Vec<f32> = normal(ROWS * VOCABULARY, 1).into_iter().map(|logit| logit * 2.0).collect();
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

/// The head with k = 64 at two temperatures beside the same with k = 1 at one, whose time is next to nothing but the product's.
fn head() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for depth in [256, 768] {
        let (weights, bias) = (normal(depth * VOCABULARY, 2), normal(VOCABULARY, 3));
        let head = Head::new(depth, &weights, Layout::ByDepth, &bias).expect("a matrix");
        let states = normal(ROWS * depth, 4);
        let states: Vec<&[f32]> = states.chunks(depth).collect();
        let (mut whole, mut least) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (k, temperatures, times) in [(64, &[2.0, 1.0][..], &mut whole), (1, &[1.0], &mut least)] {
                times.push(seconds(|| {
                    std::hint::black_box(pool.install(|| head.targets(&states, k, temperatures)));
                }));
            }
        }
        let (whole, least) = (median(whole), median(least));
        let rate = 2.0 * (ROWS * depth * VOCABULARY) as f64 / whole / 1e9;
        println!("head of {depth}: {:.1} ms, {rate:.0} GFLOP/s; with k = 1 at one temperature {:.1} ms", whole * 1e3, least * 1e3);
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
