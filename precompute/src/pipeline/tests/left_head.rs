//! Caches of a teacher with so many ids that its head is computed outside the session.

use super::*;
use logitcache::onnx::builder::{FLOAT32, INT64};
use logitcache::onnx::written::Dimension;
use logitcache::onnx::{GraphBuilder, write_model};
use logitcache::seed::{Purpose, RandomStream};

const IDS: usize = 4105;
const WIDTH: usize = 16;

/// A teacher that foretells from each token alone, with the tokenizer of another; the row of embeddings `not_finite` is too large for its logits.
fn write_teacher(directory: &Path, not_finite: Option<usize>) {
    let source = teacher("xlm-roberta");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(source.join(name), directory.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let wide = config.replace("\"vocab_size\": 64", &format!("\"vocab_size\": {IDS}"));
    assert_ne!(wide, config);
    std::fs::write(directory.join("config.json"), wide).unwrap();
    let mut graph = GraphBuilder::new("wide");
    let tokens = || vec![Dimension::open("batch"), Dimension::open("sequence")];
    let (ids, mask) = (graph.input("input_ids", INT64, tokens()), graph.input("attention_mask", INT64, tokens()));
    let (table, weights, bias) =
        (graph.weight("table", &[IDS, WIDTH]), graph.weight("weights", &[WIDTH, IDS]), graph.weight("bias", &[IDS]));
    let states = graph.node("/m", "Gather", &[&table, &ids], vec![]);
    let product = graph.node("/m", "MatMul", &[&states, &weights], vec![]);
    graph.named_node("/m", "Add", &[&product, &bias], vec![], "logits");
    graph.named_node("/m", "Identity", &[&mask], vec![], "unused");
    graph.output("logits", FLOAT32, [tokens(), vec![Dimension::fixed(IDS)]].concat());
    let values = |weight: usize| {
        let mut stream = RandomStream::new(weight as u64, Purpose::Initialisation, &[]);
        let mut values: Vec<f32> = (0..graph.weights()[weight].elements()).map(|_| stream.normal() as f32 * 0.4).collect();
        if let (0, Some(id)) = (weight, not_finite) {
            values[id * WIDTH..][..WIDTH].fill(3e38);
        }
        Ok(values)
    };
    write_model(&directory.join("model.onnx"), &graph, u64::MAX, values).unwrap();
}

/// A run of that teacher over the sentences, in shards of three.
fn run_of(directory: &Path, not_finite: Option<usize>, more: &str) -> Config {
    let files = directory.join("teacher");
    std::fs::create_dir_all(&files).unwrap();
    write_teacher(&files, not_finite);
    Config { teacher: files, ..config("xlm-roberta", directory, &format!("--top-k 8 --hidden-layers none {more}")) }
}

#[test]
fn a_head_that_is_left_makes_the_cache_that_the_whole_graph_would() {
    for more in ["", "--positions masked", "--positions 0.3", "--threads 3"] {
        let directory = tempfile::tempdir().unwrap();
        let config = run_of(directory.path(), None, more);
        let wide = crate::topk::Head::pays(8, IDS);
        assert_eq!(opened(&config).lanes[0].teacher.head().is_some(), wide, "{more}");
        let spec = make(&config).unwrap().manifest.spec;
        assert_eq!((spec.top_k(), spec.vocabulary_size()), (8, IDS));
        let files = locate(&config.teacher, None).unwrap();
        let prepared = prepare(&files, &HiddenLayers::None, &BTreeMap::new()).unwrap();
        let mut teacher = Teacher::open(&runtime::load(None).unwrap(), prepared, 1, "cpu").unwrap();
        let records = records(&directory.path().join("cache"));
        assert!(records.len() >= SENTENCES.len() - 1 && records.iter().any(|record| !record.positions.is_empty()), "{more}");
        for record in &records {
            let batch = TeacherBatch {
                rows: 1,
                length: record.input_ids.len(),
                input_ids: record.input_ids.iter().map(|id| i64::from(*id)).collect(),
                attention_mask: vec![1; record.input_ids.len()],
                token_type_ids: Vec::new(),
            };
            let rows: Vec<Vec<f32>> =
                teacher.run(&batch, |answer| Ok(answer.states(0).chunks(answer.width()).map(<[f32]>::to_vec).collect())).unwrap();
            check_targets(&format!("{more}, sequence {}", record.sequence_id), record, &spec, &rows);
        }
    }
}

#[test]
fn an_answer_that_is_not_finite_is_refused_by_its_sequence_after_the_shards_before_it() {
    for threads in 1..=3 {
        let directory = tempfile::tempdir().unwrap();
        let sound = run_of(directory.path(), None, &format!("--threads {threads} --mask-probability 0.01"));
        make(&sound).unwrap();
        let records = records(&directory.path().join("cache"));
        // The first token of sequence 3, and so of the second shard, that no earlier sequence has.
        let earlier: Vec<u32> = records[..3].iter().flat_map(|record| record.input_ids.clone()).collect();
        let id = *records[3].input_ids.iter().find(|id| !earlier.contains(id)).unwrap();
        std::fs::remove_dir_all(directory.path().join("cache")).unwrap();
        let config = run_of(directory.path(), Some(id as usize), &format!("--threads {threads} --mask-probability 0.01"));
        let error = make(&config).unwrap_err().to_string();
        assert!(error.contains("of sequence 3 ") && error.contains("inf"), "{threads} threads: {error}");
        let manifest = Manifest::read(&directory.path().join("cache")).unwrap();
        assert_eq!(manifest.shards.len(), 1, "{threads} threads");
    }
}
