//! The kernels against the plain reference, on rows that are hard.

use super::*;
use logitcache::seed::{Purpose, RandomStream};

/// Sorting everything, and sums in f64.
fn plain(logits: &[f32], k: usize, temperatures: &[f32]) -> (Vec<u32>, Vec<f64>) {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|a, b| f64::from(logits[*b as usize]).partial_cmp(&f64::from(logits[*a as usize])).unwrap().then(a.cmp(b)));
    ids.truncate(k);
    let maximum = f64::from(logits[ids[0] as usize]);
    let log_z = |t: &f32| logits.iter().map(|z| ((f64::from(*z) - maximum) / f64::from(*t)).exp()).sum::<f64>().ln();
    (ids, temperatures.iter().map(log_z).collect())
}

fn check(name: &str, logits: &[f32], k: usize, temperatures: &[f32]) {
    let (ids, log_z) = plain(logits, k, temperatures);
    for kernel in Kernel::available() {
        let mut targets = Targets::default();
        let mut top_k = TopK::with_kernel(kernel, k, temperatures);
        // Twice: the second row must not see what the first one left in the scratch memory.
        top_k.append(logits, &mut targets).unwrap();
        top_k.append(logits, &mut targets).unwrap();
        let place = format!("{name}, {} logits, k = {k}, {kernel:?}", logits.len());
        assert_eq!(targets.top_ids, [&ids[..], &ids[..]].concat(), "{place}");
        let maximum = logits[ids[0] as usize];
        assert_eq!(targets.max_logit, [maximum; 2], "{place}");
        for (id, relative) in ids.iter().zip(&targets.top_logits) {
            let expected = ((f64::from(logits[*id as usize]) - f64::from(maximum)) / f64::from(temperatures[0])).max(f64::from(f32::MIN));
            assert!((f64::from(*relative) - expected).abs() <= 1e-6 * expected.abs(), "{place}: {relative} for id {id}, not {expected}");
        }
        for (column, (found, expected)) in targets.log_z.iter().zip(log_z.iter().chain(&log_z)).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-6 * expected.abs().max(1.0), "{place}: log Z {column} is {found}, not {expected}: {error:e} off");
        }
    }
}

fn random(length: usize, seed: u64, draw: impl Fn(&mut RandomStream) -> f32) -> Vec<f32> {
    let mut stream = RandomStream::new(seed, Purpose::Dropout, &[length as u64]);
    (0..length).map(|_| draw(&mut stream)).collect()
}

#[test]
fn every_kernel_gives_what_sorting_gives() {
    for (length, ks) in [
        (1, vec![1, 5]),
        (7, vec![1, 7]),
        (64, vec![64]),
        (591, vec![1, 64, 591]),
        (1025, vec![16, 300]),
        (30_522, vec![1, 64, 400, 3000, 30_522]),
    ] {
        for k in ks {
            let seed = k as u64;
            check("normal", &random(length, seed, |s| (s.normal() * 3.0) as f32), k, &[2.0, 1.0]);
            check("few values, many ties", &random(length, seed, |s| s.below(5) as f32 - 2.0), k, &[1.0, 2.0, 4.0]);
            check("peaked", &random(length, seed, |s| (s.normal() * 40.0) as f32), k, &[1.0]);
            check("huge", &random(length, seed, |s| (s.normal() * 1e30) as f32), k, &[3.0, 1.0]);
            check("equal", &vec![-7.25; length], k, &[2.0, 1.0, 1.5]);
            check("zeros of both signs", &random(length, seed, |s| if s.below(2) == 0 { -0.0 } else { 0.0 }), k, &[2.0, 1.0]);
        }
    }
    let ends = [f32::MIN, 0.0, f32::MAX, f32::MIN_POSITIVE, -f32::MIN_POSITIVE];
    check("the ends of the range", &ends, 5, &[1.0]);
    check("ascending", &(0..30_522).map(|i| i as f32 * 1e-3).collect::<Vec<_>>(), 64, &[2.0, 1.0]);
    check("descending", &(0..30_522).map(|i| i as f32 * -1e-3).collect::<Vec<_>>(), 64, &[2.0, 1.0]);
}

#[test]
fn a_bias_is_added_before_anything_else() {
    for length in [1, 7, 591, 1025, 30_522] {
        let draw = |seed| random(length, seed, |s| (s.normal() * 3.0) as f32);
        let (logits, bias) = (draw(1), draw(2));
        let sums: Vec<f32> = logits.iter().zip(&bias).map(|(logit, bias)| logit + bias).collect();
        for kernel in Kernel::available() {
            let [mut plain, mut biased] = [Targets::default(), Targets::default()];
            TopK::with_kernel(kernel, 16, &[2.0, 1.0]).append(&sums, &mut plain).unwrap();
            let mut top_k = TopK::with_kernel(kernel, 16, &[2.0, 1.0]).with_bias(Some(bias.clone().into()));
            top_k.append(&logits, &mut biased).unwrap();
            assert_eq!(plain, biased, "{length} logits, {kernel:?}");
            let mut broken = logits.clone();
            broken[length / 2] = f32::INFINITY;
            assert_eq!(top_k.append(&broken, &mut biased).unwrap_err().id as usize, length / 2);
        }
    }
}

#[test]
fn what_is_not_finite_is_refused_wherever_it_stands() {
    for kernel in Kernel::available() {
        let mut top_k = TopK::with_kernel(kernel, 8, &[2.0, 1.0]);
        for length in [1, 40, 591, 30_522] {
            for id in [0, length / 2, length - 1] {
                for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut logits = random(length, 3, |s| s.normal() as f32);
                    logits[id] = value;
                    let mut targets = Targets::default();
                    let refused = top_k.append(&logits, &mut targets).unwrap_err();
                    assert_eq!(refused.id as usize, id, "{kernel:?}: {refused}");
                    assert_eq!(targets, Targets::default(), "{kernel:?}: nothing is appended on refusal");
                }
            }
        }
        let refused = top_k.append(&[f32::NAN; 100], &mut Targets::default()).unwrap_err();
        assert_eq!(refused.to_string(), "NaN for id 0");
    }
}

#[test]
fn the_widest_kernel_the_processor_has_is_taken() {
    let first = Kernel::available().next().unwrap();
    assert_eq!(TopK::new(1, &[1.0]).kernel, first);
    assert!(Kernel::available().any(|kernel| kernel == Kernel::Portable));
}
