//! The head against sums in float64 over every id, and its kernels against each other.

use super::*;
use crate::topk::TopK;
use logitcache::seed::{Purpose, RandomStream};

fn random(length: usize, seed: u64, scale: f64) -> Vec<f32> {
    let mut stream = RandomStream::new(seed, Purpose::Dropout, &[length as u64]);
    (0..length).map(|_| (stream.normal() * scale) as f32).collect()
}

/// `[ids]`: the logits of a state in float64.
fn plain(state: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f64> {
    let width = weights.len() / state.len();
    let product =
        |id: usize| state.iter().enumerate().map(|(inner, s)| f64::from(*s) * f64::from(weights[inner * width + id])).sum::<f64>();
    (0..width).map(|id| product(id) + bias.get(id).copied().map_or(0.0, f64::from)).collect()
}

fn transposed(weights: &[f32], depth: usize) -> Vec<f32> {
    let width = weights.len() / depth;
    (0..weights.len()).map(|index| weights[index % depth * width + index / depth]).collect()
}

fn targets(head: &Head, states: &[f32], k: usize, temperatures: &[f32]) -> Vec<Targets> {
    let rows: Vec<&[f32]> = states.chunks(head.depth()).collect();
    head.targets(&rows, k, temperatures).into_iter().map(|row| row.unwrap()).collect()
}

#[test]
fn every_kernel_gives_what_sums_in_float64_give() {
    // Below, at and above the sizes of strips, panels, tiles, runs of the loop and parts of the depth.
    for (rows, depth, width, k) in
        [(1, 1, 1, 1), (5, 3, 63, 7), (6, 4, 256, 64), (7, 131, 257, 64), (13, 33, 1025, 300), (131, 16, 5000, 16)]
    {
        for (bias, temperatures) in
            [(Vec::new(), &[1.0][..]), (random(width, 3, 2.0), &[2.0, 1.0]), (random(width, 4, 9.0), &[1.0, 3.0, 4.0, 2.0])]
        {
            let (states, weights) = (random(rows * depth, 1, 1.0), random(depth * width, 2, 4.0 / (depth as f64).sqrt()));
            let by_id = transposed(&weights, depth);
            let mut first: Option<Vec<Targets>> = None;
            for kernel in Kernel::available() {
                let at = format!("{rows} rows, {depth} x {width}, k = {k}, {kernel:?}");
                let head = Head::with_kernel(kernel, depth, &weights, Layout::ByDepth, &bias).unwrap();
                let found = targets(&head, &states, k, temperatures);
                let other = Head::with_kernel(kernel, depth, &by_id, Layout::ById, &bias).unwrap();
                assert_eq!(found, targets(&other, &states, k, temperatures), "{at}");
                assert_eq!(found.len(), rows, "{at}");
                for (state, found) in states.chunks(depth).zip(&found) {
                    check(&at, found, &plain(state, &weights, &bias), k.min(width), temperatures);
                }
                // The widths of registers change neither a logit nor an order.
                let first = first.get_or_insert_with(|| found.clone());
                if kernel != Kernel::Portable {
                    let logits = |rows: &[Targets]| {
                        rows.iter().map(|row| (row.top_ids.clone(), row.top_logits.clone(), row.max_logit.clone())).collect::<Vec<_>>()
                    };
                    assert_eq!(logits(&found), logits(first), "{at}");
                }
            }
        }
    }
}

/// `logits` are in float64; those that are closer than a sum in float32 is exact may change places.
fn check(at: &str, found: &Targets, logits: &[f64], k: usize, temperatures: &[f32]) {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let maximum = logits[ids[0] as usize];
    let near = |found: f32, expected: f64| (f64::from(found) - expected).abs() <= 2e-5 * expected.abs().max(1.0);
    assert!(near(found.max_logit[0], maximum), "{at}: the largest is {}, not {maximum}", found.max_logit[0]);
    assert_eq!((found.top_ids.len(), found.top_logits.len(), found.log_z.len()), (k, k, temperatures.len()), "{at}");
    for ((id, logit), expected) in found.top_ids.iter().zip(&found.top_logits).zip(&ids) {
        let (own, rank) = [*id, *expected].map(|id| (logits[id as usize] - maximum) / f64::from(temperatures[0])).into();
        assert!(near(*logit, own) && near(*logit, rank), "{at}: {logit} for id {id}, not {own}; {rank} of id {expected} has its rank");
    }
    for (found, temperature) in found.log_z.iter().zip(temperatures) {
        let expected = logits.iter().map(|logit| ((logit - maximum) / f64::from(*temperature)).exp()).sum::<f64>().ln();
        assert!(near(*found, expected), "{at}: log Z at {temperature} is {found}, not {expected}");
    }
}

#[test]
fn the_rows_beside_a_row_and_the_threads_do_not_change_it() {
    let (depth, width) = (24, 4500);
    let head = Head::new(depth, &random(depth * width, 2, 1.0), Layout::ByDepth, &random(width, 3, 1.0)).unwrap();
    let states = random(300 * depth, 1, 1.0);
    let alone: Vec<Targets> = states.chunks(depth).flat_map(|state| targets(&head, state, 64, &[2.0, 1.0])).collect();
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| targets(&head, &states, 64, &[2.0, 1.0])), alone, "{threads} threads");
    }
    assert_eq!(targets(&head, &[], 64, &[1.0]), []);
}

/// A head whose logits are the one number of a state times these.
fn scaled(kernel: Kernel, weights: &[f32]) -> Head {
    Head::with_kernel(kernel, 1, weights, Layout::ByDepth, &[]).unwrap()
}

#[test]
fn hard_rows_come_out_as_those_of_the_top_k_over_whole_rows() {
    let stream = |seed| RandomStream::new(seed, Purpose::Dropout, &[]);
    let draws = |seed, draw: fn(&mut RandomStream) -> f32| -> Vec<f32> {
        let mut stream = stream(seed);
        (0..5000).map(|_| draw(&mut stream)).collect()
    };
    let rows = [
        ("equal", vec![-7.25; 5000]),
        ("few values", draws(1, |s| s.below(5) as f32 - 2.0)),
        ("zeros of both signs", draws(2, |s| if s.below(2) == 0 { -0.0 } else { 0.0 })),
        ("peaked", draws(3, |s| (s.normal() * 40.0) as f32)),
        ("huge", draws(4, |s| (s.normal() * 1e30) as f32)),
        ("ascending", (0..5000).map(|id| id as f32 * 0.01).collect()),
        ("descending", (0..5000).map(|id| id as f32 * -0.01).collect()),
        ("largest last", (0..5000).map(|id| if id == 4999 { f32::MAX } else { f32::MIN }).collect()),
    ];
    for (name, row) in rows {
        for kernel in Kernel::available() {
            for k in [1, 64, 300] {
                let found = targets(&scaled(kernel, &row), &[1.0], k, &[2.0, 1.0]).remove(0);
                let mut whole = Targets::default();
                TopK::new(k, &[2.0, 1.0]).append(&row, &mut whole).unwrap();
                assert_eq!(
                    (&found.top_ids, &found.top_logits, &found.max_logit),
                    (&whole.top_ids, &whole.top_logits, &whole.max_logit),
                    "{name}"
                );
                let off = found.log_z.iter().zip(&whole.log_z).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
                assert!(off <= 1e-6, "{name}, k = {k}, {kernel:?}: {:?}, not {:?}", found.log_z, whole.log_z);
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_refused_for_its_row_alone() {
    for kernel in Kernel::available() {
        for id in [0, 63, 256, 4998, 4999] {
            let mut weights = random(2 * 5000, 1, 1.0);
            weights[5000 + id] = 1e30;
            let head = Head::with_kernel(kernel, 2, &weights, Layout::ByDepth, &[]).unwrap();
            let rows = [[1.0, 1.0], [1.0, 1e30], [f32::NAN, 0.0], [0.5, 0.0]];
            let found = head.targets(&rows.each_ref().map(|row| &row[..]), 8, &[1.0]);
            let ids: Vec<Option<u32>> = found.iter().map(|row| row.as_ref().err().map(|refused| refused.id)).collect();
            assert_eq!(ids, [None, Some(id as u32), Some(0), None], "{kernel:?}");
            assert_eq!(found[1].as_ref().unwrap_err().value, f32::INFINITY);
        }
    }
}

#[test]
fn weights_that_are_no_matrix_are_none() {
    let refused = [(0, 0, 0), (3, 7, 0), (2, 8, 3), (4, 0, 0)];
    assert!(
        refused.iter().all(|(depth, weights, bias)| Head::new(*depth, &vec![0.0; *weights], Layout::ById, &vec![0.0; *bias]).is_none())
    );
}

#[test]
fn it_pays_for_many_ids_and_few_of_them_kept() {
    let wide = Kernel::available().count() > 1;
    assert_eq!([Head::pays(64, 30_522), Head::pays(64, 591), Head::pays(4000, 30_522)], [wide, false, false]);
}

#[test]
fn blocks_are_whole_strips_and_shared_evenly() {
    for (rows, threads, expected) in [(1, 2, 6), (12, 2, 6), (154, 2, 78), (1024, 2, 258), (1024, 16, 66), (264, 1, 264), (0, 2, 6)] {
        assert_eq!(block_rows(rows, threads), expected, "{rows} rows, {threads} threads");
    }
}
