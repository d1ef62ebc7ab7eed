//! `precompute time` on real models.

use e2e::{Program, data};

#[test]
fn two_models_are_timed_side_by_side() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (teacher, out) = (data("teacher"), folder.path().join("speed.json"));
    let copy = folder.path().join("copy.onnx");
    std::fs::copy(teacher.join("model.onnx"), &copy).expect("the teacher is part of the repository");
    let weights = folder.path().join("model.safetensors");
    std::fs::copy(data("golden/student-small/model.safetensors"), &weights).expect("any will do: its size is told, and its values counted");
    let program = Program::precompute().arg("time").arg(&teacher).arg(&copy).arg("--out").arg(&out);
    program.args("--batch 1,3 --length 12 --threads 1 --rounds 3").run().success().says("copy.onnx").says("3 rounds");
    let text = std::fs::read_to_string(&out).expect("the figures were asked for");
    let speed: serde_json::Value = serde_json::from_str(&text).expect("they are JSON");
    assert_eq!((&speed["length"], &speed["threads"], &speed["rounds"]), (&12.into(), &1.into(), &3.into()));
    let models = speed["models"].as_array().expect("a list");
    assert_eq!(models.len(), 2);
    assert!(models[0]["safetensors_bytes"].is_null() && models[1]["safetensors_bytes"].is_u64(), "{text}");
    for model in models {
        assert!(model["onnx_bytes"].as_u64().is_some_and(|bytes| bytes > 1_000_000), "{text}");
        let times = model["times"].as_array().expect("a list");
        assert_eq!(times.iter().map(|time| time["batch"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
        for time in times {
            let read = |key: &str| time[key].as_f64().unwrap_or_else(|| panic!("{time} lacks {key}"));
            assert!(0.0 < read("min_ms") && read("min_ms") <= read("median_ms") && read("median_ms") <= read("max_ms"), "{time}");
        }
    }
}

#[test]
fn a_length_beyond_a_model_is_refused() {
    let program = Program::precompute().arg("time").arg(data("teacher")).args("--length 100000");
    program.run().refused(2, &["--length: expected at most the", "found 100000"]);
}
