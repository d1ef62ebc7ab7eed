//! Decoders' settings, first weights and dropout; `student::tests` proves their gradients, the goldens their numbers.

use super::super::init::FirstWeights;
use super::super::layout::layout;
use super::super::{Family, Overrides, ParameterSpec, Student, StudentConfig, TensorSource, at_random};
use super::*;
use crate::kernels::Activation;
use candle_core::DType;
use logitcache::error::Result as Outcome;
use logitcache::target::Task;
use std::collections::BTreeMap;
use std::path::Path;

/// A small student of each family: a Llama whose heads are grouped and wider than the hidden states, with biases and a head of its own, and a GPT-2.
pub(crate) fn decoders() -> [StudentConfig; 2] {
    let shape = StudentConfig {
        task: Task::CausalLm,
        vocab_size: 13,
        hidden_size: 8,
        embedding_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 12,
        max_position_embeddings: 7,
        type_vocab_size: 0,
        layer_norm_eps: 1e-5,
        dropout: 0.0,
        attention_dropout: 0.1,
        initializer_range: 0.3,
        pad_token_id: None,
        ..StudentConfig::default()
    };
    let llama = DecoderConfig {
        key_value_heads: 2,
        head_width: 6,
        rotary: Some(RotaryConfig { theta: 100.0, scaling: RotaryScaling::Linear { factor: 2.0 } }),
        tied: false,
        attention_bias: true,
        mlp_bias: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2, 3],
    };
    let gpt2 = DecoderConfig {
        key_value_heads: 4,
        head_width: 2,
        rotary: None,
        tied: true,
        attention_bias: false,
        mlp_bias: false,
        bos_token_id: None,
        eos_token_ids: vec![2],
    };
    [
        StudentConfig { family: Family::Llama, activation: Activation::Silu, decoder: Some(llama), ..shape.clone() },
        StudentConfig { family: Family::Gpt2, activation: Activation::GeluNew, dropout: 0.1, decoder: Some(gpt2), ..shape },
    ]
}

fn written(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn a_written_configuration_reads_back() {
    for config in decoders() {
        let (_directory, path) = written(&config.to_json());
        assert_eq!(StudentConfig::read(&path).unwrap(), config);
        let all = Overrides { family: config.family, num_hidden_layers: Some(2), ..Overrides::default() };
        assert_eq!(StudentConfig::from_teacher(&path, &all).unwrap(), config);
        let half = StudentConfig::from_teacher(&path, &Overrides { family: config.family, ..Overrides::default() }).unwrap();
        assert_eq!(half, StudentConfig { num_hidden_layers: 1, ..config });
    }
}

#[test]
fn one_family_teaches_the_others_shape() {
    let [llama, gpt2] = decoders();
    let (_directory, path) = written(&gpt2.to_json());
    let student = StudentConfig::from_teacher(&path, &Overrides { family: Family::Llama, ..Overrides::default() }).unwrap();
    let decoder = student.decoder.unwrap();
    assert_eq!((decoder.key_value_heads, decoder.head_width, student.activation), (4, 2, Activation::Silu));
    assert_eq!(decoder.rotary, Some(RotaryConfig { theta: settings::ROTARY_BASE, scaling: RotaryScaling::Default }));
    let (_directory, path) = written(&llama.to_json());
    let student = StudentConfig::from_teacher(&path, &Overrides { family: Family::Gpt2, ..Overrides::default() }).unwrap();
    assert_eq!((student.decoder.as_ref().unwrap().key_value_heads, student.activation), (4, Activation::GeluNew));
    let message = StudentConfig::from_teacher(&path, &Overrides::default()).unwrap_err().to_string();
    assert!(message.contains("model_type: expected an encoder, to teach one, found llama"), "{message}");
}

#[test]
fn older_keys_of_the_angles_are_read_and_unknown_ones_refused() {
    let text = |rope: &str| {
        format!(
            r#"{{"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 6, "max_position_embeddings": 5, "eos_token_id": 2, {rope}}}"#
        )
    };
    let read = |rope: &str| {
        let (_directory, path) = written(&text(rope));
        StudentConfig::read(&path)
    };
    let rotary = |rope: &str| read(rope).unwrap().decoder.unwrap().rotary.unwrap();
    assert_eq!(rotary("\"rope_theta\": 5000").theta, 5000.0);
    let scaled = rotary("\"rope_theta\": 500000.0, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 4.0}");
    assert_eq!(scaled, RotaryConfig { theta: 500000.0, scaling: RotaryScaling::Linear { factor: 4.0 } });
    let message = read("\"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 1.0}").unwrap_err().to_string();
    assert!(message.contains("rope_parameters: expected rope_type default, linear or llama3"), "{message}");
    let message = read("\"num_key_value_heads\": 3").unwrap_err().to_string();
    assert!(message.contains("num_key_value_heads: expected a divisor of num_attention_heads = 2, found 3"), "{message}");
}

/// `LlamaRotaryEmbedding.inv_freq` of transformers 5.24.0 for heads of width 16, base 500,000, factor 8, low 1, high 4, 8,192 positions first.
#[test]
fn llama_3s_frequencies_are_those_of_transformers() {
    let scaling = RotaryScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
    let found = RotaryConfig { theta: 500_000.0, scaling }.frequencies(16);
    let expected = [1.0, 1.939_227_6e-1, 3.760_603e-2, 7.292_665e-3, 5.248_460_2e-4, 3.428_102_3e-5, 6.647_869_7e-6, 1.289_173_2e-6];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6 * expected, "{found} instead of {expected}");
    }
}

/// A model in memory.
struct Memory(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl TensorSource for Memory {
    fn path(&self) -> &Path {
        Path::new("memory.safetensors")
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|(shape, _)| shape.clone())
    }

    fn read(&mut self, name: &str) -> Outcome<Vec<f32>> {
        Ok(self.0[name].1.clone())
    }
}

fn model(config: &StudentConfig) -> Memory {
    let tensor = |spec: ParameterSpec| (spec.name.clone(), (spec.shape.clone(), at_random(config, 3, &spec)));
    Memory(layout(config).into_iter().map(tensor).collect())
}

#[test]
fn layers_are_taken_by_number_and_a_longer_teachers_positions_are_cut() {
    for student in decoders() {
        let teacher = StudentConfig { num_hidden_layers: 5, max_position_embeddings: 11, ..student.clone() };
        let held = model(&teacher);
        let mut tensors = DecoderTensors::new(Box::new(model(&teacher)), &student, &FirstWeights::default()).unwrap();
        assert_eq!(tensors.layers(), [0, 4]);
        for spec in layout(&student) {
            let name = spec.name.replace(".layers.1.", ".layers.4.").replace(".h.1.", ".h.4.");
            let mut expected = held.0[&name].1.clone();
            expected.truncate(spec.shape.iter().product());
            assert_eq!(tensors.values(&spec).unwrap(), expected, "{}", spec.name);
        }
        let layers = |layers: &[usize]| FirstWeights { layers: Some(layers.to_vec()), ..FirstWeights::default() };
        let refused = |first: &FirstWeights| DecoderTensors::new(Box::new(model(&teacher)), &student, first).err().unwrap().to_string();
        assert!(refused(&layers(&[0, 5])).contains("--init-layers: expected layers below 5"), "{}", refused(&layers(&[0, 5])));
        assert!(refused(&layers(&[0])).contains("--init-layers: expected 2 layers"));
        let narrow = StudentConfig { intermediate_size: 6, ..student };
        let message = DecoderTensors::new(Box::new(model(&teacher)), &narrow, &FirstWeights::default()).err().unwrap().to_string();
        assert!(message.contains("--feed-forward: expected that of memory.safetensors"), "{message}");
    }
}

#[test]
fn a_head_of_ones_own_starts_as_a_tied_teachers_words() {
    let [student, _] = decoders();
    let tied = DecoderConfig { tied: true, ..student.decoder.clone().unwrap() };
    let teacher = StudentConfig { decoder: Some(tied), ..student.clone() };
    let mut tensors = DecoderTensors::new(Box::new(model(&teacher)), &student, &FirstWeights::default()).unwrap();
    let head = layout(&student).pop().unwrap();
    assert_eq!(head.name, "lm_head.weight");
    assert_eq!(tensors.values(&head).unwrap(), model(&teacher).0["model.embed_tokens.weight"].1);
}

#[test]
fn a_gpt2_without_its_head_is_read_too() {
    let [_, student] = decoders();
    let bare = Memory(model(&student).0.into_iter().map(|(name, tensor)| (name.replace("transformer.", ""), tensor)).collect());
    let mut tensors = DecoderTensors::new(Box::new(bare), &student, &FirstWeights::default()).unwrap();
    for spec in layout(&student) {
        assert_eq!(tensors.values(&spec).unwrap(), model(&student).0[&spec.name].1);
    }
    let [llama, _] = decoders();
    let message = DecoderTensors::new(Box::new(model(&student)), &llama, &FirstWeights::default()).err().unwrap().to_string();
    assert!(message.contains("expected model.embed_tokens.weight, of a llama"), "{message}");
}

#[test]
fn a_sequence_that_is_too_long_is_refused() {
    for config in decoders() {
        let student = Student::new(config.clone(), DType::F32, &mut |spec| Ok(at_random(&config, 1, spec))).unwrap();
        let batch = Batch { sequence_ids: vec![0], passes: vec![0], offsets: vec![0, 8], input_ids: vec![1; 8], ..Batch::default() };
        assert!(student.hidden_states(&batch).unwrap_err().to_string().contains("8 tokens for 7 positions"));
    }
}

/// The teachers of `data/golden/teachers`, from every way they are exported.
#[test]
fn a_student_of_all_layers_is_its_teacher_from_every_export() {
    let exports = [
        ("llama", Family::Llama, &["model", "dynamo", "past", "opset-21", "external", "half-past"][..]),
        ("gpt2", Family::Gpt2, &["model", "dynamo", "past", "half-past"][..]),
    ];
    for (name, family, exports) in exports {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/golden/teachers").join(name);
        let overrides = Overrides { family, num_hidden_layers: Some(2), ..Overrides::default() };
        let config = StudentConfig::from_teacher(&folder.join("config.json"), &overrides).unwrap();
        let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let expected = |tensor: &str| {
            let view = golden.tensor(tensor).unwrap();
            let rows: Vec<f32> = view.data().as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
            // Padded rows of three sequences of 9, 5 and 1 tokens.
            let width = rows.len() / 27;
            [9, 5, 1].iter().enumerate().flat_map(|(i, length)| rows[i * 9 * width..][..length * width].to_vec()).collect::<Vec<f32>>()
        };
        let ids: Vec<i64> = golden.tensor("input_ids").unwrap().data().as_chunks().0.iter().map(|id| i64::from_le_bytes(*id)).collect();
        let ids = [9, 5, 1].iter().enumerate().flat_map(|(i, length)| ids[i * 9..][..*length].iter().map(|id| *id as u32));
        let batch = Batch {
            sequence_ids: vec![0, 1, 2],
            passes: vec![0; 3],
            offsets: vec![0, 9, 14, 15],
            input_ids: ids.collect(),
            asked: (0..15).collect(),
            ..Batch::default()
        };
        for export in exports {
            let mut tensors = DecoderTensors::open(&folder.join(format!("{export}.onnx")), &config, &FirstWeights::default()).unwrap();
            let student = Student::new(config.clone(), DType::F32, &mut |spec| tensors.values(spec)).unwrap();
            let limit = if export.starts_with("half") { 2e-2 } else { 1e-5 };
            let close = |what: &str, found: &Tensor| {
                let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
                let off = found.iter().zip(expected(what)).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
                assert!(off < limit, "{name}/{export}: {what} is {off} off");
            };
            close("logits", &student.logits(&batch).unwrap());
            for (i, state) in student.forward_states(&batch, &DropoutPlan::off()).unwrap().iter().enumerate() {
                close(&format!("hidden_{i}"), state);
            }
        }
    }
}
