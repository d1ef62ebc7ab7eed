//! Parameters out of the exports of `data/golden/onnx` and of the demo's teacher.

use super::super::layout::layout;
use super::super::{Family, FirstWeights, Overrides, StudentConfig, TeacherTensors};
use super::*;
use logitcache::fingerprint::Fingerprint;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(path)
}

fn teacher_config(path: &Path, family: Family) -> StudentConfig {
    StudentConfig::from_teacher(path, &Overrides { family, num_hidden_layers: Some(2), ..Overrides::default() }).unwrap()
}

#[test]
fn the_demo_teachers_tensors_are_the_published_ones_bit_for_bit() {
    let mut onnx = OnnxTensors::open(&data("teacher/model.onnx")).unwrap();
    let text = std::fs::read_to_string(data("golden/teacher-weights.json")).unwrap();
    let published: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(published.len(), 202);
    for (name, facts) in published {
        let shape: Vec<u64> = onnx.shape(&name).unwrap().iter().map(|size| *size as u64).collect();
        assert_eq!(serde_json::json!(shape), facts["shape"], "{name}");
        let bytes: Vec<u8> = onnx.read(&name).unwrap().iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(Some(Fingerprint::of_bytes(&bytes).to_string().as_str()), facts["sha256"].as_str(), "{name}");
    }
}

/// All of a student's first values from a model of `data/golden/onnx`, by parameter.
fn first_weights(family: Family, export: &str) -> Result<Vec<(String, Vec<f32>)>> {
    let config = teacher_config(&data(&format!("golden/onnx/{family}/config.json")), family);
    let source = OnnxTensors::open(&data(&format!("golden/onnx/{family}/{export}.onnx")))?;
    let first = FirstWeights { layers: Some(vec![0, 1]), ..FirstWeights::default() };
    let mut teacher = TeacherTensors::new(Box::new(source), &config, &first)?;
    layout(&config).into_iter().map(|spec| Ok((spec.name.clone(), teacher.values(&spec)?))).collect()
}

#[test]
fn every_exporter_gives_the_same_parameters() {
    let cases: [(Family, &[&str]); 3] = [
        (
            Family::Bert,
            &[
                "dynamo",
                "torchscript-14",
                "torchscript-11",
                "external",
                "runtime-basic",
                "runtime-extended",
                "half-logits",
                "hidden-outputs",
                "train-mode",
            ],
        ),
        (Family::DistilBert, &["dynamo"]),
        (Family::Roberta, &["dynamo"]),
    ];
    for (family, exports) in cases {
        let expected = first_weights(family, "torchscript-17").unwrap();
        for export in exports {
            let found = first_weights(family, export).unwrap_or_else(|error| panic!("{family}/{export}: {error}"));
            for ((name, found), (_, expected)) in found.iter().zip(&expected) {
                assert!(found == expected, "{family}/{export}: {name}");
            }
        }
    }
}

#[test]
fn half_precision_is_widened() {
    let expected = first_weights(Family::Bert, "torchscript-17").unwrap();
    let found = first_weights(Family::Bert, "half").unwrap();
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-3 * b.abs() + 1e-6), "{name}");
    }
}

#[test]
fn packed_and_missing_weights_are_refused_by_name() {
    let message = first_weights(Family::Bert, "runtime-fused").unwrap_err().to_string();
    assert!(message.contains("node Attention_0: expected linear layers as MatMul or Gemm of float weights"), "{message}");
    let message = first_weights(Family::Bert, "no-logits").unwrap_err().to_string();
    assert!(message.contains("tensor cls.predictions.transform.dense.weight") && message.contains("its head included"), "{message}");
    let mut other = OnnxTensors::open(&data("golden/onnx/distilbert/dynamo.onnx")).unwrap();
    let message = other.read_shaped("vocab_transfer.weight", &[4, 4]).unwrap_err().to_string();
    assert!(message.contains("tensor vocab_transfer.weight: expected an initialiser of this name, or a MatMul in the module"), "{message}");
    let directory = tempfile::tempdir().unwrap();
    let alone = directory.path().join("external.onnx");
    std::fs::copy(data("golden/onnx/bert/external.onnx"), &alone).unwrap();
    let mut alone = OnnxTensors::open(&alone).unwrap();
    let message = alone.read("bert.embeddings.word_embeddings.weight").unwrap_err().to_string();
    assert!(message.contains("cannot open") && message.contains("external.onnx_data"), "{message}");
}
