//! Students as ONNX graphs: ONNX Runtime computes what the student does, an exported student is a teacher again, and a teacher's graph gives the
//! weights that its safetensors file gives.

use crate::fixtures::CACHES;
use candle_core::DType;
use e2e::{Program, corpus_head, data, onnxruntime};
use logitcache::cache::reader::{Cache, Projection};
use logitcache::onnx::write::LARGEST_MODEL_BYTES;
use logitcache::target::Task;
use precompute::teacher::{HiddenLayers, Teacher, TeacherBatch, locate, prepare, runtime};
use std::collections::BTreeMap;
use std::path::Path;
use train::batcher::Batch;
use train::export;
use train::export_onnx::write_onnx;
use train::kernels::Activation;
use train::student::decoder::{DecoderConfig, RotaryConfig, RotaryScaling};
use train::student::{Family, ParameterSpec, Student, StudentConfig};

pub(crate) fn config(family: Family, activation: Activation) -> StudentConfig {
    let pad_token_id = 1;
    StudentConfig {
        task: if family.is_decoder() { Task::CausalLm } else { Task::MaskedLm },
        decoder: family.is_decoder().then(|| decoder(family)),
        family,
        vocab_size: 37,
        hidden_size: 16,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        intermediate_size: 24,
        embedding_size: if family == Family::Albert { 8 } else { 16 },
        max_position_embeddings: 12 + family.first_position(Some(pad_token_id)),
        type_vocab_size: if family.has_token_types() { 2 } else { 0 },
        activation,
        layer_norm_eps: if family == Family::DistilBert { 1e-12 } else { 1e-5 },
        pad_token_id: Some(pad_token_id),
        ..StudentConfig::default()
    }
}

/// A Llama whose heads are grouped, or a GPT-2.
fn decoder(family: Family) -> DecoderConfig {
    let llama = family == Family::Llama;
    DecoderConfig {
        key_value_heads: if llama { 2 } else { 4 },
        head_width: 4,
        rotary: llama.then_some(RotaryConfig { theta: 50.0, scaling: RotaryScaling::Linear { factor: 2.0 } }),
        tied: !llama,
        attention_bias: false,
        mlp_bias: llama,
        bos_token_id: None,
        eos_token_ids: vec![2],
    }
}

/// Every parameter different from every other, so that none can stand in another's place.
fn student(family: Family, activation: Activation) -> Student {
    student_of(config(family, activation))
}

pub(crate) fn student_of(config: StudentConfig) -> Student {
    let mut state = 7u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut values = |spec: &ParameterSpec| {
        let norm = !spec.bias && spec.shape.len() == 1;
        Ok((0..spec.shape.iter().product()).map(|_| next() + if norm { 1.0 } else { 0.0 }).collect())
    };
    Student::new(config, DType::F32, &mut values).expect("a small student")
}

fn open(model: &Path, layers: &HiddenLayers) -> Teacher {
    let runtime = runtime::load(Some(&onnxruntime())).expect("the pinned runtime loads");
    let files = locate(model, Some(&data("teacher/tokenizer.json"))).expect("an export");
    let prepared = prepare(&files, layers, &BTreeMap::new()).expect("its hidden states are found");
    Teacher::open(&runtime, prepared, 1, "cpu").expect("it opens")
}

/// Lengths 1, 5 and 12, the longest: packed for the student, padded for the runtime.
pub(crate) fn batches(config: &StudentConfig) -> (Batch, TeacherBatch) {
    let lengths = [1usize, 5, 12];
    let mut packed = Batch { offsets: vec![0], sequence_ids: vec![0, 1, 2], passes: vec![0; 3], ..Batch::default() };
    let mut padded = TeacherBatch { rows: 3, length: 12, ..TeacherBatch::default() };
    let types = matches!(config.family, Family::Bert | Family::Albert);
    for (row, length) in lengths.into_iter().enumerate() {
        for place in 0..12 {
            let inside = place < length;
            let id = 2 + (row * 11 + place * 5) % 35;
            let kind = usize::from(types && place > 2);
            padded.input_ids.push(if inside { id as i64 } else { 1 });
            padded.attention_mask.push(i64::from(inside));
            padded.token_type_ids.push(if inside { kind as i64 } else { 0 });
            if inside {
                packed.input_ids.push(id as u32);
                packed.token_type_ids.push(kind as u32);
            }
        }
        packed.offsets.push(packed.input_ids.len());
    }
    packed.asked = (0..packed.input_ids.len() as u32).collect();
    (packed, padded)
}

/// Asserts that the runtime's logits and last hidden states at `model` are the student's.
fn agrees(what: &str, student: &Student, model: &Path) {
    let mut teacher = open(model, &HiddenLayers::All);
    assert_eq!(teacher.hidden_layers(), [0, 1, 2, 3], "{what}");
    let (packed, padded) = batches(student.config());
    let rows = |tensor: candle_core::Result<candle_core::Tensor>| tensor.and_then(|t| t.to_vec2::<f32>()).expect("a forward pass");
    let (logits, hidden) = (rows(student.logits(&packed)), rows(student.hidden_states(&packed)));
    let largest =
        |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |most, (a, b)| if (a - b).is_nan() { f32::NAN } else { most.max((a - b).abs()) });
    let check = |what: String, found: &[f32], expected: &[f32]| {
        let off = largest(found, expected);
        assert!(found.len() == expected.len() && off < 1e-4, "{what}: off by {off}");
    };
    let answered = teacher.run(&padded, |answer| {
        for row in 0..3 {
            let first = packed.offsets[row];
            for place in 0..packed.offsets[row + 1] - first {
                let at = format!("{what}, row {row}, position {place}");
                check(format!("{at}, logits"), answer.logits(row, place), &logits[first + place]);
                check(format!("{at}, hidden"), &answer.hidden(3, row)[place * 16..(place + 1) * 16], &hidden[first + place]);
            }
            assert!((0..12).all(|place| answer.logits(row, place).iter().all(|logit| logit.is_finite())), "{what}: padding is finite");
        }
        Ok(())
    });
    answered.expect("the runtime answers");
    // A batch of one sequence of one token.
    let single = TeacherBatch { rows: 1, length: 1, input_ids: vec![2], attention_mask: vec![1], token_type_ids: vec![0] };
    let expected = &logits[0];
    let answered = teacher.run(&single, |answer| {
        check(format!("{what}, one token"), answer.logits(0, 0), expected);
        Ok(())
    });
    answered.expect("the runtime answers");
}

#[test]
fn the_runtime_computes_what_the_student_does_for_every_family_and_activation() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("model.onnx");
    for family in Family::ALL {
        for activation in Activation::ALL {
            let student = student(family, activation);
            std::fs::write(folder.path().join("config.json"), student.config().to_json()).expect("a temporary directory can be written");
            let bytes = write_onnx(&student, &path, LARGEST_MODEL_BYTES).expect("an export");
            agrees(&format!("{family}, {activation}"), &student, &path);
            // The tied decoder is stored once: weights and some 60 KB of graph.
            assert!(bytes < 4 * student.parameter_count() + 60_000, "{family}: {bytes} bytes for {} numbers", student.parameter_count());
        }
    }
}

#[test]
fn weights_beside_the_model_are_found_by_the_runtime() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("model.onnx");
    let student = student(Family::Bert, Activation::Gelu);
    std::fs::write(folder.path().join("config.json"), student.config().to_json()).expect("a temporary directory can be written");
    write_onnx(&student, &path, 20_000).expect("an export");
    assert!(folder.path().join("model.onnx_data").is_file());
    agrees("beside", &student, &path);
}

/// A DistilBERT of the demo's teacher, trained for two steps.
fn train(cache: &Path, out: &Path, init_from: &Path) -> Program {
    let program = Program::train().arg("--cache").arg(cache).arg("--out").arg(out).arg("--init-from").arg(init_from);
    program.args("--steps 2 --batch-tokens 512 --dropout 0 --threads 2 --quiet")
}

#[test]
fn a_graph_gives_the_weights_that_its_safetensors_file_gives() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let [parent, bare] = ["parent", "bare"].map(|name| folder.path().join(name));
    train(&CACHES.train(), &parent, &data("teacher/model.onnx")).run().success();
    Program::train().arg("export").arg("--student").arg(&parent).arg("--onnx").run().success();
    std::fs::create_dir(&bare).expect("a temporary directory can be written");
    std::fs::copy(parent.join("model.onnx"), bare.join("model.onnx")).expect("a copy");
    let sources = [("a", parent.join("model.safetensors")), ("b", parent.join("model.onnx")), ("c", bare)];
    let students = sources.map(|(name, source)| {
        let out = folder.path().join(name);
        train(&CACHES.train(), &out, &source).args("--layers 2").run().success();
        std::fs::read(out.join("model.safetensors")).expect("a student has weights")
    });
    assert!(students[0] == students[1], "the weights of model.onnx are not those of model.safetensors");
    assert!(students[0] == students[2], "a directory with only model.onnx gives other weights");
}

#[test]
fn a_student_is_the_next_teacher() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let [student, export_to, cache, grandchild] = ["student", "export", "cache", "grandchild"].map(|name| folder.path().join(name));
    train(&CACHES.train(), &student, &data("teacher/model.onnx")).run().success();
    let exported = Program::train().arg("export").arg("--student").arg(&student).arg("--onnx").arg("--out").arg(&export_to);
    exported.run().success().says("model.onnx");
    for name in ["model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(export_to.join(name).is_file(), "the export lacks {name}");
    }
    let corpus = folder.path().join("corpus.txt");
    corpus_head("train.txt", 60, &corpus);
    let asked = Program::precompute().arg("--teacher").arg(&export_to).arg("--corpus").arg(&corpus).arg("--out").arg(&cache);
    asked.args("--temperature 2 --hidden-layers last --threads 2 --quiet").run().success();
    log_probabilities_are_the_students(&student, &cache);
    train(&cache, &grandchild, &export_to).args("--layers 2 --eval-fraction 0.2").run().success();
    assert!(grandchild.join("model.safetensors").is_file());
}

fn log_probabilities_are_the_students(student: &Path, cache: &Path) {
    let student = export::load(student).expect("a trained student");
    let cache = Cache::open(cache).expect("a cache");
    let shard = cache.shard(0).expect("a shard");
    let records: Vec<_> = shard.read(0, &Projection { hidden_layers: Vec::new() }).expect("its rows");
    let (column, columns) = (cache.spec().temperature_index(2.0).expect("the temperature asked for"), cache.spec().temperatures().len());
    let mut compared = 0;
    for record in records.into_iter().take(20) {
        let length = record.input_ids.len();
        let batch = Batch {
            offsets: vec![0, length],
            sequence_ids: vec![record.sequence_id],
            passes: vec![record.pass],
            input_ids: record.input_ids.clone(),
            asked: record.positions.iter().map(|position| u32::from(*position)).collect(),
            ..Batch::default()
        };
        let logits = student.logits(&batch).and_then(|logits| logits.to_vec2::<f32>()).expect("a forward pass");
        let k = record.top_ids.len() / logits.len().max(1);
        for (row, logits) in logits.iter().enumerate() {
            let tempered = |logit: f32| f64::from(logit) / 2.0;
            let log_z = logits.iter().map(|logit| tempered(*logit).exp()).sum::<f64>().ln();
            for entry in row * k..(row + 1) * k {
                let expected = tempered(logits[record.top_ids[entry] as usize]) - log_z;
                let found = f64::from(record.top_logits[entry]) - f64::from(record.log_z[row * columns + column]);
                // The cache keeps logits relative to the largest with 11 significant bits.
                let limit = 1e-3 + f64::from(record.top_logits[entry]).abs() / 1024.0;
                assert!((found - expected).abs() < limit, "row {row}: {found}, the student's own {expected}");
                compared += 1;
            }
        }
    }
    assert!(compared > 1000, "{compared} values");
}
