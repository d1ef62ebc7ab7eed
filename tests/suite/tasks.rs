//! Every task from one end to the other: a teacher is asked about a labelled corpus, a student trained, measured and exported, and the student asked
//! as a teacher, whose answers are those the student gives itself.

use candle_core::Tensor;
use e2e::{Program, data};
use logitcache::cache::reader::{Cache, Projection};
use logitcache::cache::record::Record;
use logitcache::target::Task;
use serde_json::{Value, json};
use std::path::Path;
use train::batcher::Batch;
use train::export;

/// Records of every corpus, enough for a few steps and an evaluation.
const RECORDS: usize = 60;

/// A teacher of `data/golden/teachers`, a corpus for it and a student.
struct Lesson {
    teacher: &'static str,
    task: Task,
    /// The n-th record.
    record: fn(usize) -> Value,
    /// Fields of the corpus.
    fields: &'static str,
    /// The student and what it is taught.
    student: &'static str,
}

/// Some letters that depend on `n`.
fn words(n: usize) -> Vec<String> {
    let letter = |at: usize| char::from(b'a' + ((n * 7 + at * at * 3) % 26) as u8);
    (0..3 + n % 5).map(|word| (0..1 + (n + word) % 3).map(|place| letter(word * 3 + place)).collect()).collect()
}

fn text(n: usize) -> String {
    words(n).join(" ")
}

const LESSONS: [Lesson; 10] = [
    Lesson {
        teacher: "bert-classifier",
        task: Task::SequenceClassification,
        record: |n| json!({"text": text(n), "other": text(n + 1), "label": (["negative", "neutral", "positive"][n % 3])}),
        fields: "--text-pair-field other --label-field label",
        student: "--family bert",
    },
    Lesson {
        teacher: "albert-classifier",
        task: Task::SequenceClassification,
        record: |n| json!({"text": text(n), "label": n % 3}),
        fields: "--label-field label",
        student: "--family distilbert",
    },
    Lesson {
        teacher: "roberta-multilabel",
        task: Task::SequenceClassification,
        record: |n| json!({"text": text(n), "label": (&["joy", "anger", "fear", "surprise"][n % 4..4])}),
        fields: "--label-field label",
        student: "--family roberta",
    },
    Lesson {
        teacher: "distilbert-regression",
        task: Task::SequenceClassification,
        record: |n| json!({"text": text(n), "label": n as f64 / 10.0}),
        fields: "--label-field label",
        student: "--family albert --embedding-size 16",
    },
    Lesson {
        teacher: "bert-tagger",
        task: Task::TokenClassification,
        record: |n| json!({"words": words(n), "tags": words(n).iter().enumerate().map(|(at, _)| (at + n) % 5).collect::<Vec<_>>()}),
        fields: "--words-field words --label-field tags",
        student: "--family bert",
    },
    Lesson {
        teacher: "roberta-tagger",
        task: Task::TokenClassification,
        record: |n| json!({"text": text(n)}),
        fields: "",
        student: "--family roberta",
    },
    Lesson {
        teacher: "bert-sentence",
        task: Task::SentenceEmbedding,
        record: |n| json!({"text": text(n), "other": text(n + 2), "score": (n % 6) as f64 / 5.0}),
        fields: "--text-pair-field other --label-field score",
        student: "--family bert --hidden-size 8 --heads 2",
    },
    Lesson {
        teacher: "mpnet-sentence",
        task: Task::SentenceEmbedding,
        record: |n| json!({"text": text(n)}),
        fields: "",
        student: "--family roberta",
    },
    Lesson { teacher: "llama", task: Task::CausalLm, record: |n| json!({"text": text(n)}), fields: "", student: "" },
    Lesson { teacher: "gpt2", task: Task::CausalLm, record: |n| json!({"text": text(n)}), fields: "--pack", student: "" },
];

fn ask(teacher: &Path, corpus: &Path, out: &Path, flags: &str) {
    let program = Program::precompute().arg("--teacher").arg(teacher).arg("--corpus").arg(corpus).arg("--out").arg(out);
    program.args("--max-length 32 --threads 2 --quiet").args(flags).run().success();
}

impl Lesson {
    fn give(&self) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let [corpus, cache, student, graph, again] = ["a.jsonl", "cache", "student", "graph", "again"].map(|name| folder.path().join(name));
        let lines: String = (0..RECORDS).map(|n| format!("{}\n", (self.record)(n))).collect();
        std::fs::write(&corpus, lines).expect("a temporary directory can be written");
        let teacher = data("golden/teachers").join(self.teacher);
        ask(&teacher, &corpus, &cache, self.fields);
        let spec = Cache::open(&cache).expect("a cache").spec().clone();
        assert_eq!(spec.task(), self.task, "{}", self.teacher);

        let program = Program::train().arg("--cache").arg(&cache).arg("--out").arg(&student);
        // An MPNet's layers are no student's.
        let program = if self.teacher.starts_with("mpnet") { program } else { program.arg("--init-from").arg(&teacher) };
        let program = program.args("--layers 2 --steps 4 --batch-tokens 128 --eval-fraction 0.25 --threads 2 --quiet").args(self.student);
        program.run().success().says("student");
        let figures = folder.path().join("figures.json");
        let evaluate =
            Program::train().arg("evaluate").arg("--student").arg(&student).arg("--cache").arg(&cache).arg("--out").arg(&figures);
        evaluate.args("--quiet").run().success();
        let export = Program::train().arg("export").arg("--student").arg(&student).arg("--onnx").arg("--out").arg(&graph);
        export.run().success().says("model.onnx");

        // Numbers and vectors know no temperature, and the flag is refused.
        let temperature = if spec.temperatures().len() > 1 { "--temperature 1" } else { "" };
        ask(&graph, &corpus, &again, &format!("{} {temperature} --precision float32", self.fields));
        let asked_again = Cache::open(&again).expect("a cache of the student's answers");
        assert_eq!(asked_again.spec().task(), self.task, "{}: the student's export", self.teacher);
        let projection = Projection { hidden_layers: Vec::new() };
        let records = asked_again.shard(0).and_then(|shard| shard.read(0, &projection)).expect("its rows");
        answers_are_the_students(self.teacher, &student, &records[..20.min(records.len())]);
    }
}

fn answers_are_the_students(name: &str, student: &Path, records: &[Record]) {
    let student = export::load(student).expect("a trained student");
    let rows = |tensor: candle_core::Result<Tensor>| tensor.and_then(|tensor| tensor.to_vec2::<f32>()).expect("a forward pass");
    let mut compared = 0;
    for record in records {
        let batch = Batch {
            offsets: vec![0, record.input_ids.len()],
            sequence_ids: vec![record.sequence_id],
            document_ids: vec![record.document_id],
            passes: vec![record.pass],
            input_ids: record.input_ids.clone(),
            token_type_ids: record.token_type_ids.iter().map(|kind| u32::from(*kind)).collect(),
            asked: record.positions.iter().map(|position| u32::from(*position)).collect(),
            ..Batch::default()
        };
        let mut check = |what: &str, found: f32, expected: f32| {
            assert!(
                (found - expected).abs() < 2e-4,
                "{name}, sequence {}: {what} {found}, the student's own {expected}",
                record.sequence_id
            );
            compared += 1;
        };
        if record.positions.is_empty() {
            let vector = &rows(student.embeddings(&batch))[0];
            assert_eq!(record.embedding.len(), vector.len(), "{name}");
            record.embedding.iter().zip(vector).for_each(|(found, expected)| check("embedding", *found, *expected));
            continue;
        }
        let logits = rows(student.logits(&batch));
        let stored = record.top_ids.len() / logits.len();
        for (row, logits) in logits.iter().enumerate() {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            check("largest logit", record.max_logit[row], largest);
            for entry in row * stored..(row + 1) * stored {
                check("logit", record.top_logits[entry], logits[record.top_ids[entry] as usize] - largest);
            }
        }
    }
    assert!(compared >= records.len(), "{name}: {compared} numbers of {} sequences", records.len());
}

#[test]
fn a_student_of_every_task_is_a_teacher_of_it() {
    LESSONS.iter().for_each(Lesson::give);
}

#[test]
fn gold_answers_asked_for_where_the_cache_holds_none_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let [corpus, cache, student] = ["a.jsonl", "cache", "student"].map(|name| folder.path().join(name));
    let lines: String = (0..RECORDS).map(|n| format!("{}\n", json!({"text": text(n)}))).collect();
    std::fs::write(&corpus, lines).expect("a temporary directory can be written");
    ask(&data("golden/teachers/roberta-tagger"), &corpus, &cache, "");
    let program =
        || Program::train().arg("--cache").arg(&cache).arg("--out").arg(&student).args("--layers 1 --steps 1 --eval-fraction 0.25");
    program().args("--loss ce=1,gold=1").run().refused(2, &["--loss", "no gold answer", "--label-field"]);
    assert!(!student.exists(), "nothing is left of a refused run");
    // What it is taught by default asks for none, and neither does the configuration that it writes.
    program().run().success();
    let again = Program::train().arg("--config").arg(student.join("run.toml")).arg("--out").arg(folder.path().join("again"));
    again.run().success();
}
