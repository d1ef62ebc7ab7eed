//! Whole runs of the composed student beside the kernels', on the processor, or in a build for a GPU there.

use super::*;
use crate::device::Placement;
use crate::output::RunRecord;
use candle_core::Device;

/// `config`, with the steps made by candle's operations. No flag says so: on the processor the kernels are there.
fn composed(config: Config) -> Config {
    config.with_placement(Placement::Composed { device: Device::cuda_if_available(0).unwrap(), name: "composed".to_owned() })
}

fn lines(out: &Path) -> Vec<Line> {
    let log = std::fs::read_to_string(out.join(crate::metrics::METRICS_FILE)).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn assert_near(what: &str, found: f64, expected: f64, relative: f64) {
    assert!((found - expected).abs() <= relative * expected.abs().max(1e-3), "{what}: {found} instead of {expected}");
}

#[test]
fn a_composed_run_is_the_kernels_run() {
    let sequence = |problem| SmallCache { problem, ..SmallCache::of(Task::SequenceClassification) };
    let caches = [
        (SmallCache::default(), "distilbert"),
        (SmallCache::default(), "albert"),
        (SmallCache::of(Task::CausalLm), "llama"),
        (SmallCache::of(Task::CausalLm), "gpt2"),
        (sequence(Problem::SingleLabel), "bert"),
        (sequence(Problem::MultiLabel), "roberta"),
        (sequence(Problem::Regression), "distilbert"),
        (SmallCache::of(Task::TokenClassification), "bert"),
        (SmallCache { embedding_size: 24, ..SmallCache::of(Task::SentenceEmbedding) }, "bert"),
    ];
    for (cache, family) in caches {
        let directory = tempfile::tempdir().unwrap();
        let (task, cache) = (cache.task, cache.write(directory.path(), "cache"));
        let extra = ["--family", family, "--steps", "30", "--learning-rate", "2e-3", "--dropout", "0", "--eval-fraction", "0.1"];
        let extra = [&extra[..], &["--log-every", "1", "--eval-every", "10", "--accumulate", "2", "--weight-decay", "0.01"]].concat();
        let (kernels, other) = (directory.path().join("kernels"), directory.path().join("composed"));
        crate::run(&config(&cache, &kernels, &extra), &StopSignal::default()).unwrap();
        crate::run(&composed(config(&cache, &other, &extra)), &StopSignal::default()).unwrap();
        let (expected, found) = (lines(&kernels), lines(&other));
        assert_eq!(found.len(), expected.len());
        assert_eq!(found.len(), 34, "30 steps, and 4 evaluations");
        for pair in found.iter().zip(&expected) {
            match pair {
                (Line::Step(found), Line::Step(expected)) => {
                    let what = format!("{family} for {task}, step {}", expected.step);
                    assert_near(&what, found.loss, expected.loss, 1e-4);
                    assert_near(&what, found.gradient_norm, expected.gradient_norm, 1e-3);
                    assert_eq!(found.learning_rate, expected.learning_rate);
                    for ((part, found), (other, expected)) in found.parts.iter().zip(expected.parts.iter()) {
                        assert_eq!(part, other);
                        assert_near(&format!("{what}, {}", part.key()), found, expected, 1e-3);
                    }
                }
                (Line::Evaluation(found), Line::Evaluation(expected)) => {
                    assert_near("evaluation", found.evaluation.divergence(), expected.evaluation.divergence(), 1e-3);
                }
                _ => panic!("{pair:?}"),
            }
        }
        let summary = |out: &Path| crate::summary::Summary::read(out).unwrap();
        assert_eq!([summary(&kernels).device.as_deref(), summary(&other).device.as_deref()], [Some("cpu"), Some("composed")]);
        let quality = |out: &Path| std::fs::read_to_string(out.join(crate::evaluate_student::EVALUATION_FILE)).unwrap();
        assert!(!quality(&other).is_empty());
        let (expected, found) = (crate::export::load(&kernels).unwrap(), crate::export::load(&other).unwrap());
        for (found, expected) in found.parameters().iter().zip(expected.parameters()) {
            let read = |parameter: &crate::kernels::ParameterRef| parameter.with_value(|values: &[f32]| values.to_vec()).unwrap();
            let (found, expected) = (read(found), read(expected));
            let distance = found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
            let length = expected.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            // A key's bias has no gradient but rounding, which AdamW takes for one.
            assert!(distance <= 1e-3 * length.max(1.0) || length < 0.2, "{family} for {task}: {distance} of {length}");
        }
    }
}

#[test]
fn a_composed_run_goes_on_as_if_it_had_never_stopped_and_either_way_between_devices() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let out = directory.path().join("out");
    let extra = ["--steps", "6", "--checkpoint-every", "3", "--dropout", "0", "--eval-fraction", "0.1", "--hidden-size", "8"];
    let kernels = || config(&cache, &out, &extra);
    let model = || std::fs::read(out.join("model.safetensors")).unwrap();
    let back_to_step_3 = || {
        RunRecord::new(&kernels().settings, 3, false).write(&out).unwrap();
        std::fs::remove_dir_all(out.join("checkpoints/step-00000006")).unwrap();
        std::fs::remove_file(out.join("model.safetensors")).unwrap();
    };
    let device = || Checkpoints::new(&kernels()).newest().unwrap().unwrap().state().device.clone();
    let values = || {
        let student = crate::export::load(&out).unwrap();
        let all = student.parameters().iter().map(|each| each.with_value(|values: &[f32]| values.to_vec()).unwrap());
        all.collect::<Vec<_>>().concat()
    };
    crate::run(&composed(kernels()), &StopSignal::default()).unwrap();
    let (whole, numbers) = (model(), values());
    assert!(out.join("checkpoints/step-00000003/projections.safetensors").is_file());
    assert_eq!(device(), "composed");
    back_to_step_3();
    crate::run(&composed(kernels()), &StopSignal::default()).unwrap();
    assert!(model() == whole, "byte for byte");
    back_to_step_3();
    crate::run(&kernels(), &StopSignal::default()).unwrap();
    assert_eq!(device(), "cpu");
    assert!(values().iter().zip(&numbers).all(|(a, b)| (a - b).abs() < 1e-4));
}

#[test]
fn a_loss_that_is_not_finite_is_seen_and_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let extra = ["--steps", "9", "--eval-fraction", "0", "--learning-rate", "1e30", "--warmup", "0", "--dropout", "0"];
    let run = |skip: &str| {
        let config = composed(config(&cache, &directory.path().join(skip), &[&extra[..], &["--skip-nonfinite", skip]].concat()));
        crate::run(&config, &StopSignal::default()).unwrap_err().to_string()
    };
    assert!(run("0").contains("a finite loss and gradient"));
    assert!(run("2").contains("2 such steps were skipped before"));
}

#[test]
fn what_the_kernels_alone_can_do_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let extra = ["--steps", "2", "--eval-fraction", "0", "--full-vocabulary-every", "2", "--dropout", "0"];
    let few = composed(config(&cache, &directory.path().join("few"), &extra));
    assert!(crate::run(&few, &StopSignal::default()).unwrap_err().to_string().contains("the kernels alone"));
}
