//! First weights: which tensor each parameter comes from, and what is refused.

use super::*;
use crate::batcher::Batch;
use crate::student::{FirstValues, LayerPart, Student, layout};
use candle_core::DType;
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::{Problem, Task};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn config(layers: usize) -> StudentConfig {
    StudentConfig {
        vocab_size: 11,
        hidden_size: 4,
        embedding_size: 4,
        num_hidden_layers: layers,
        num_attention_heads: 2,
        intermediate_size: 6,
        max_position_embeddings: 5,
        pad_token_id: Some(3),
        ..StudentConfig::default()
    }
}

/// The value that marks element `i` of a teacher's tensor. Layer 2 holds NaN, which reading it would refuse: no test here takes it.
fn mark(name: &str, i: usize) -> f32 {
    if name.contains("layer.2.") {
        return f32::NAN;
    }
    let hash = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    (hash % 4096) as f32 + i as f32 / 1024.0
}

/// Writes a teacher whose every tensor can be told from the others; `rename` may change or drop (empty) a name.
fn teacher(family: Family, layers: usize, rename: impl Fn(String) -> String) -> (tempfile::TempDir, PathBuf) {
    let mut tensors: Vec<(String, Vec<usize>)> = layout(&config(layers))
        .into_iter()
        .map(|parameter| {
            let name = format!("{}.{}", parameter.role.name(family), if parameter.bias { "bias" } else { "weight" });
            (name, parameter.shape)
        })
        .collect();
    if family == Family::Bert {
        tensors.push(("bert.embeddings.token_type_embeddings.weight".into(), vec![2, 4]));
    }
    let tensors: Vec<_> = tensors.into_iter().map(|(name, shape)| (rename(name), shape)).filter(|(name, _)| !name.is_empty()).collect();
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(name, shape)| (0..shape.iter().product()).flat_map(|i| mark(name, i).to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    (directory, path)
}

fn layers(layers: &[usize]) -> FirstWeights {
    FirstWeights { layers: Some(layers.to_vec()), ..FirstWeights::default() }
}

fn first_value(teacher: &mut TeacherTensors, config: &StudentConfig, name: &str) -> f32 {
    let parameter = layout(config).into_iter().find(|parameter| parameter.name == name).unwrap();
    teacher.values(&parameter).unwrap()[0]
}

#[test]
fn layers_are_evenly_spaced_and_the_papers_for_twelve() {
    assert_eq!(default_layers(12, 6).unwrap(), [0, 2, 4, 7, 9, 11]);
    assert_eq!(default_layers(6, 3).unwrap(), [0, 2, 5]);
    assert_eq!(default_layers(24, 12).unwrap(), [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]);
    assert_eq!(default_layers(12, 12).unwrap(), (0..12).collect::<Vec<_>>());
    assert_eq!(default_layers(12, 1).unwrap(), [0]);
    assert_eq!(default_layers(1, 1).unwrap(), [0]);
    assert_eq!(default_layers(4, 5).unwrap_err().exit_code(), 2);
    assert!(default_layers(4, 0).is_err());
}

#[test]
fn every_parameter_is_taken_from_where_bert_keeps_it_and_no_other_is_read() {
    let (_directory, path) = teacher(Family::Bert, 5, |name| name);
    let config = config(2);
    let mut teacher = TeacherTensors::open(&path, &config, &layers(&[1, 4])).unwrap();
    assert_eq!(teacher.layers(), [1, 4]);
    let pairs = [
        ("distilbert.embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        ("distilbert.embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.bias"),
        ("distilbert.transformer.layer.0.attention.q_lin.weight", "bert.encoder.layer.1.attention.self.query.weight"),
        ("distilbert.transformer.layer.1.attention.k_lin.bias", "bert.encoder.layer.4.attention.self.key.bias"),
        ("distilbert.transformer.layer.1.attention.v_lin.weight", "bert.encoder.layer.4.attention.self.value.weight"),
        ("distilbert.transformer.layer.1.attention.out_lin.weight", "bert.encoder.layer.4.attention.output.dense.weight"),
        ("distilbert.transformer.layer.1.sa_layer_norm.weight", "bert.encoder.layer.4.attention.output.LayerNorm.weight"),
        ("distilbert.transformer.layer.1.ffn.lin1.weight", "bert.encoder.layer.4.intermediate.dense.weight"),
        ("distilbert.transformer.layer.1.ffn.lin2.bias", "bert.encoder.layer.4.output.dense.bias"),
        ("distilbert.transformer.layer.1.output_layer_norm.bias", "bert.encoder.layer.4.output.LayerNorm.bias"),
        ("vocab_transform.weight", "cls.predictions.transform.dense.weight"),
        ("vocab_layer_norm.bias", "cls.predictions.transform.LayerNorm.bias"),
        ("vocab_projector.bias", "cls.predictions.bias"),
    ];
    for (student, source) in pairs {
        assert_eq!(first_value(&mut teacher, &config, student), mark(source, 0), "{student}");
    }
    for parameter in layout(&config) {
        assert_eq!(teacher.values(&parameter).unwrap().len(), parameter.shape.iter().product::<usize>(), "{}", parameter.name);
    }
}

#[test]
fn the_row_of_token_type_0_joins_the_position_embeddings() {
    let (_directory, path) = teacher(Family::Bert, 2, |name| name);
    let config = config(2);
    let positions = layout(&config).into_iter().find(|parameter| parameter.name.contains("position")).unwrap();
    let values = TeacherTensors::open(&path, &config, &FirstWeights::default()).unwrap().values(&positions).unwrap();
    let sum = |i| mark("bert.embeddings.position_embeddings.weight", i) + mark("bert.embeddings.token_type_embeddings.weight", i % 4);
    assert_eq!(values, (0..20).map(sum).collect::<Vec<_>>());
}

#[test]
fn a_distilbert_teacher_and_older_names_are_read() {
    let student = config(2);
    let (_directory, path) = teacher(Family::DistilBert, 4, |name| name);
    let mut file = TeacherTensors::open(&path, &student, &FirstWeights::default()).unwrap();
    assert_eq!(file.layers(), [0, 3]);
    let (name, source) = ("distilbert.transformer.layer.1.ffn.lin2.bias", "distilbert.transformer.layer.3.ffn.lin2.bias");
    assert_eq!(first_value(&mut file, &student, name), mark(source, 0));

    let older = |name: String| name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    let (_directory, path) = teacher(Family::Bert, 2, older);
    let mut file = TeacherTensors::open(&path, &student, &FirstWeights::default()).unwrap();
    let source = "bert.encoder.layer.1.attention.output.LayerNorm.gamma";
    assert_eq!(first_value(&mut file, &student, "distilbert.transformer.layer.1.sa_layer_norm.weight"), mark(source, 0));
}

#[test]
fn files_that_cannot_serve_are_refused_with_the_reason() {
    let open = |path: &Path, config: &StudentConfig, first: &FirstWeights| TeacherTensors::open(path, config, first);
    let refused = |path: &Path, config: &StudentConfig, first: &FirstWeights| open(path, config, first).err().unwrap();
    let (_directory, path) = teacher(Family::Bert, 3, |name| name.replace("cls.predictions.transform.dense.weight", ""));
    let (student, default) = (config(2), FirstWeights::default());
    let transform = layout(&student).into_iter().find(|parameter| parameter.name == "vocab_transform.weight").unwrap();
    let missing = open(&path, &student, &default).unwrap().values(&transform).unwrap_err().to_string();
    assert!(missing.contains("tensor cls.predictions.transform.dense.weight: expected shape [4, 4], found no such tensor"), "{missing}");

    let of = |change: fn(&mut StudentConfig)| {
        let mut changed = config(2);
        change(&mut changed);
        changed
    };
    let heads = FirstWeights { heads: Some(2), ..FirstWeights::default() };
    let cases: [(StudentConfig, &str); 7] = [
        (of(|c| (c.hidden_size, c.embedding_size) = (8, 8)), "--hidden-size: expected at most the 4"),
        (of(|c| c.num_attention_heads = 4), "--heads: expected at most the 2"),
        (of(|c| c.num_attention_heads = 1), "--heads: expected heads no wider than the 2"),
        (of(|c| c.intermediate_size = 7), "--feed-forward: expected at most the 6"),
        (
            of(|c| (c.family, c.type_vocab_size, c.num_hidden_layers, c.embedding_size) = (Family::Albert, 2, 2, 3)),
            "give --embedding-size 4",
        ),
        (of(|c| c.vocab_size = 10), "word_embeddings.weight: expected 10 rows to use, found 11"),
        (of(|c| c.max_position_embeddings = 6), "position_embeddings.weight: expected 6 rows to use, found 5"),
    ];
    for (student, expected) in cases {
        let found = refused(&path, &student, &heads).to_string();
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let narrow = of(|c| (c.hidden_size, c.embedding_size, c.num_attention_heads) = (2, 2, 1));
    assert!(refused(&path, &narrow, &default).to_string().contains("put the model's config.json beside it"));
    assert!(open(&path, &narrow, &heads).is_ok());

    let beyond = refused(&path, &student, &layers(&[0, 3]));
    assert!(beyond.exit_code() == 2 && beyond.to_string().contains("--init-layers: expected layers below 3"), "{beyond}");
    let count = refused(&path, &student, &layers(&[0])).to_string();
    assert!(count.contains("--init-layers: expected 2 layers"), "{count}");

    let (_directory, path) = teacher(Family::Bert, 1, |name| name.replace("word_embeddings", "wte"));
    let names = refused(&path, &config(1), &default).to_string();
    assert!(names.contains("found tensors such as bert."), "{names}");
}

/// A model's tensors without a file.
struct Memory(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl TensorSource for Memory {
    fn path(&self) -> &Path {
        Path::new("memory/model.safetensors")
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|(shape, _)| shape.clone())
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        Ok(self.0[name].1.clone())
    }
}

fn random_values(parameter: &ParameterSpec, scale: f64) -> Vec<f32> {
    let mut stream = RandomStream::new(4, Purpose::Initialisation, &[parameter.number as u64]);
    (0..parameter.shape.iter().product()).map(|_| (scale * stream.normal()) as f32).collect()
}

fn model(config: &StudentConfig) -> Memory {
    Memory(layout(config).into_iter().map(|spec| (spec.name.clone(), (spec.shape.clone(), random_values(&spec, 0.4)))).collect())
}

/// One of each family; RoBERTa's padding id is the others' too.
fn of_family(family: Family, layers: usize) -> StudentConfig {
    let types = if family.has_token_types() { 2 } else { 0 };
    let positions = 5 + family.first_position(Some(1));
    let pad_token_id = Some(1);
    StudentConfig { family, type_vocab_size: types, max_position_embeddings: positions, pad_token_id, ..config(layers) }
}

fn logits(student: &Student) -> Vec<f32> {
    let batch = Batch { sequence_ids: vec![0, 1], passes: vec![0, 0], offsets: vec![0, 5, 8], ..Batch::default() };
    let batch = Batch { input_ids: vec![4, 2, 10, 0, 3, 5, 6, 5], asked: (0..8).collect(), ..batch };
    student.logits(&batch).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn student_of(teacher: Memory, config: &StudentConfig, first: &FirstWeights) -> Student {
    let mut teacher = TeacherTensors::new(Box::new(teacher), config, first).unwrap();
    Student::new(config.clone(), DType::F32, &mut |parameter: &ParameterSpec| teacher.values(parameter)).unwrap()
}

fn as_it_is(teacher: &Memory, config: &StudentConfig) -> Student {
    Student::new(config.clone(), DType::F32, &mut |parameter: &ParameterSpec| Ok(teacher.0[&parameter.name].1.clone())).unwrap()
}

#[test]
fn a_student_of_the_teachers_shape_is_the_teacher_across_families() {
    for from in Family::ENCODERS {
        for to in Family::ENCODERS {
            let (teacher, student) = (of_family(from, 1), of_family(to, 1));
            let expected = logits(&as_it_is(&model(&teacher), &teacher));
            for widths in InitWidths::ALL {
                let found = logits(&student_of(model(&teacher), &student, &FirstWeights { widths, ..FirstWeights::default() }));
                if from == Family::Albert && to != Family::Albert {
                    // Only the layers and the tables come from there.
                    assert!(found.iter().all(|logit| logit.is_finite()));
                    continue;
                }
                let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-5, "from {from} to {to}: logits are {off} off");
            }
        }
    }
}

#[test]
fn an_alberts_one_layer_serves_every_layer_of_a_student() {
    let (teacher, student) = (of_family(Family::Albert, 4), of_family(Family::Bert, 3));
    let held = model(&teacher);
    let mut tensors = TeacherTensors::new(Box::new(model(&teacher)), &student, &FirstWeights::default()).unwrap();
    assert_eq!(tensors.layers(), [0, 0, 0]);
    for parameter in layout(&student).iter().filter(|parameter| matches!(parameter.role, Role::Layer(..))) {
        let Role::Layer(_, part) = parameter.role else { continue };
        let name = format!("{}.{}", Role::Layer(0, part).name(Family::Albert), if parameter.bias { "bias" } else { "weight" });
        assert_eq!(tensors.values(parameter).unwrap(), held.0[&name].1, "{}", parameter.name);
    }
    // The other way round, an ALBERT takes the one layer that is named.
    let mut tensors =
        TeacherTensors::new(Box::new(model(&of_family(Family::Bert, 3))), &of_family(Family::Albert, 5), &layers(&[2])).unwrap();
    let query = layout(&of_family(Family::Albert, 5)).into_iter().find(|spec| spec.role == Role::Layer(0, LayerPart::Query)).unwrap();
    let held = model(&of_family(Family::Bert, 3));
    assert_eq!(tensors.values(&query).unwrap(), held.0["bert.encoder.layer.2.attention.self.query.weight"].1);
}

/// Where a small model lies in a large one whose other weights hardly differ from 0.
struct Places {
    hidden: Vec<usize>,
    embedding: Vec<usize>,
    query_key: Vec<usize>,
    value: Vec<usize>,
    neurons: Vec<usize>,
}

impl Places {
    fn of(&self, role: Role) -> [Option<&[usize]>; 2] {
        use LayerPart::{AttentionNorm, AttentionOutput, Key, Narrow, OutputNorm, Query, Value, Widen};
        let (hidden, embedding) = (Some(self.hidden.as_slice()), Some(self.embedding.as_slice()));
        match role {
            Role::WordEmbeddings | Role::PositionEmbeddings | Role::TokenTypeEmbeddings => [None, embedding],
            Role::EmbeddingNorm | Role::HeadNorm => [embedding, None],
            Role::EmbeddingMapping => [hidden, embedding],
            Role::HeadDense => [embedding, hidden],
            Role::DecoderBias | Role::Decoder(_) => [None, None],
            Role::Pooler => [hidden, hidden],
            Role::SequenceClassifier | Role::TokenClassifier | Role::Projection => [None, hidden],
            Role::Layer(_, Query | Key) => [Some(&self.query_key), hidden],
            Role::Layer(_, Value) => [Some(&self.value), hidden],
            Role::Layer(_, AttentionOutput) => [hidden, Some(&self.value)],
            Role::Layer(_, AttentionNorm | OutputNorm) => [hidden, None],
            Role::Layer(_, Widen) => [Some(&self.neurons), hidden],
            Role::Layer(_, Narrow) => [hidden, Some(&self.neurons)],
        }
    }
}

#[test]
fn importance_finds_a_small_model_inside_a_large_one_and_order_takes_the_leading_places() {
    for family in Family::ENCODERS {
        // 2 heads of 2 out of 3 heads of 4; 3 neurons of 7; 4 hidden dimensions of 12.
        let shape = |hidden, embedding, heads, between| {
            let wide = of_family(family, 2);
            let embedding = if family == Family::Albert { embedding } else { hidden };
            let (hidden_size, embedding_size) = (hidden, embedding);
            StudentConfig { hidden_size, embedding_size, num_attention_heads: heads, intermediate_size: between, ..wide }
        };
        let (student, teacher) = (shape(4, 2, 2, 3), shape(12, 5, 3, 7));
        let hidden = vec![1, 5, 6, 11];
        let embedding = if family == Family::Albert { vec![0, 3] } else { hidden.clone() };
        let important = Places { hidden, embedding, query_key: vec![1, 2, 8, 11], value: vec![0, 3, 9, 10], neurons: vec![2, 4, 6] };
        let embedding = if family == Family::Albert { vec![0, 1] } else { (0..4).collect() };
        let leading =
            Places { hidden: (0..4).collect(), embedding, query_key: vec![0, 1, 4, 5], value: vec![0, 1, 4, 5], neurons: vec![0, 1, 2] };
        for (widths, places) in [(InitWidths::Importance, important), (InitWidths::Order, leading)] {
            let mut large = Memory(BTreeMap::new());
            for (wide, narrow) in layout(&teacher).into_iter().zip(layout(&student)) {
                let mut values = random_values(&wide, 1e-4);
                let small = random_values(&narrow, 1.0);
                let [rows, columns] = places.of(wide.role);
                let (width, narrow_width) = if wide.shape.len() == 1 { (1, 1) } else { (wide.shape[1], narrow.shape[1]) };
                for (i, value) in small.into_iter().enumerate() {
                    let (row, column) = (i / narrow_width, i % narrow_width);
                    let row = rows.map_or(row, |rows| rows[row]);
                    let column = columns.filter(|_| width > 1).map_or(column, |columns| columns[column]);
                    values[row * width + column] = value;
                }
                large.0.insert(wide.name, (wide.shape, values));
            }
            let own = (0..student.layers_with_parameters()).collect();
            let first = FirstWeights { layers: Some(own), widths, heads: Some(3), family: None, seed: 0 };
            let mut tensors = TeacherTensors::new(Box::new(large), &student, &first).unwrap();
            for parameter in layout(&student) {
                assert_eq!(tensors.values(&parameter).unwrap(), random_values(&parameter, 1.0), "{widths}: {}", parameter.name);
            }
        }
    }
}

/// A student with a head of each kind.
fn with_head(base: StudentConfig, task: Task) -> StudentConfig {
    let classes = if task == Task::SentenceEmbedding { 0 } else { 3 };
    StudentConfig {
        task,
        classes,
        class_names: (0..classes).map(|id| format!("LABEL_{id}")).collect(),
        problem: (task == Task::SequenceClassification).then_some(Problem::SingleLabel),
        ..base
    }
}

#[test]
fn a_classifier_of_the_teachers_wiring_is_the_teacher() {
    for (from, to) in [(Family::Bert, Family::Roberta), (Family::Roberta, Family::Bert), (Family::DistilBert, Family::DistilBert)] {
        for task in [Task::SequenceClassification, Task::TokenClassification] {
            let (teacher, student) = (with_head(of_family(from, 1), task), with_head(of_family(to, 1), task));
            let batch = Batch { sequence_ids: vec![0, 1], passes: vec![0, 0], offsets: vec![0, 5, 8], ..Batch::default() };
            let batch = Batch { input_ids: vec![4, 2, 10, 0, 3, 5, 6, 5], asked: vec![0, 5], ..batch };
            let rows = |student: &Student| student.logits(&batch).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let expected = rows(&as_it_is(&model(&teacher), &teacher));
            let found = rows(&student_of(model(&teacher), &student, &FirstWeights::default()));
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{from} {to} {task}: {found:?} {expected:?}");
            // Other classes: a classifier of its own.
            let other = StudentConfig { classes: 2, class_names: vec!["a".into(), "b".into()], ..student };
            let drawn = student_of(model(&teacher), &other, &FirstWeights::default());
            assert!(drawn.parameters().iter().all(|parameter| parameter.elements() > 0));
        }
    }
}

#[test]
fn models_without_a_head_or_in_a_wrapper_are_read_under_their_familys_names() {
    for family in Family::ENCODERS {
        let config = with_head(of_family(family, 1), Task::SentenceEmbedding);
        let held = model(&config);
        assert!(held.0.keys().all(|name| !name.starts_with(family.name())), "{family}");
        let expected: Vec<Vec<f32>> = layout(&config).iter().map(|spec| held.0[&spec.name].1.clone()).collect();
        for prefix in ["", "0.auto_model."] {
            let wrapped = Memory(model(&config).0.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect());
            // BERT and RoBERTa have the same names.
            let first = FirstWeights { family: Some(family), ..FirstWeights::default() };
            let mut tensors = TeacherTensors::new(Box::new(wrapped), &config, &first).unwrap();
            let found: Vec<Vec<f32>> = layout(&config).iter().map(|spec| tensors.values(spec).unwrap()).collect();
            assert_eq!(found, expected, "{family} {prefix}");
        }
    }
}

#[test]
fn the_digest_is_of_what_is_taken_alone() {
    let (_directory, path) = teacher(Family::Bert, 4, |name| name);
    let digest = |chosen: &[usize]| FirstValues::open(&path, &config(2), &layers(chosen)).unwrap().digest(&config(2));
    assert_eq!(digest(&[0, 3]).unwrap(), digest(&[0, 3]).unwrap(), "layer 2 cannot be read, and is not");
    assert_ne!(digest(&[0, 3]).unwrap(), digest(&[0, 1]).unwrap());
    assert!(digest(&[0, 2]).is_err());
}
