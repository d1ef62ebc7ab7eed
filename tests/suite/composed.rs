//! The student that a GPU would train, on the processor: a run on the demo's data beside the kernels'.

use crate::fixtures::CACHES;
use candle_core::Device;
use e2e::data;
use std::ffi::OsString;
use std::path::Path;
use train::cli::Request;
use train::config::Config;
use train::device::Placement;
use train::trainer::StopSignal;

const KEYS: [&str; 5] = ["loss", "ce_nats", "mlm_nats", "cos_distance", "gradient_norm"];

/// The steps of a run and the divergence that each of its evaluations found.
fn run(out: &Path, placement: Option<Placement>) -> (Vec<[f64; 5]>, Vec<f64>) {
    let words = "train --steps 8 --batch-tokens 1024 --accumulate 2 --dropout 0 --log-every 1 --eval-every 4 --threads 2 --quiet";
    let paths = [
        ("--cache", CACHES.train().to_owned()),
        ("--eval-cache", CACHES.heldout().to_owned()),
        ("--out", out.to_owned()),
        ("--init-from", data("teacher/model.onnx")),
    ];
    let typed = words.split(' ').map(OsString::from).chain(paths.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]));
    let Ok(Request::Train(arguments)) = train::cli::parse(typed) else { panic!("a command that the program takes") };
    let config = Config::check(&arguments).expect("flags that fit the cache");
    let config = placement.map_or(config.clone(), |placement| config.with_placement(placement));
    train::run(&config, &StopSignal::default()).expect("a run to its end");
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).expect("train writes metrics.jsonl");
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect();
    let number = |line: &serde_json::Value, key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{line} lacks {key}"));
    let of_kind = |kind: &'static str| lines.iter().filter(move |line| line["kind"] == kind);
    let steps = of_kind("step").map(|line| KEYS.map(|key| number(line, key))).collect();
    (steps, of_kind("evaluation").map(|line| number(line, "kl_nats")).collect())
}

#[test]
fn a_composed_run_on_the_demos_data_has_the_kernels_curve() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (steps, evaluations) = run(&folder.path().join("kernels"), None);
    let composed = Placement::Composed { device: Device::Cpu, name: "composed".to_owned() };
    let (found_steps, found_evaluations) = run(&folder.path().join("composed"), Some(composed));
    assert_eq!((steps.len(), found_steps.len(), evaluations.len(), found_evaluations.len()), (8, 8, 3, 3));
    let near = |what: &str, found: f64, expected: f64| {
        let difference = (found - expected).abs() / expected;
        eprintln!("{what}: {found} beside the kernels' {expected}: {difference:.1e}");
        assert!(difference < 1e-4, "{what} is {found}, the kernels' {expected}");
    };
    for (step, (found, expected)) in found_steps.iter().zip(&steps).enumerate() {
        KEYS.iter()
            .zip(found.iter().zip(expected))
            .for_each(|(key, (found, expected))| near(&format!("step {step}, {key}"), *found, *expected));
    }
    found_evaluations.iter().zip(&evaluations).for_each(|(found, expected)| near("kl_nats", *found, *expected));
    assert!(evaluations[2] < evaluations[0], "the student learns: {evaluations:?}");
}
