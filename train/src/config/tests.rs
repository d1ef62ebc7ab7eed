//! What is refused, what is resolved.

use super::*;
use crate::small_cache::{SmallCache, arguments};
use logitcache::target::{Problem, Task};

fn check(cache: &Path, extra: &[&str]) -> Result<Config> {
    Config::check(&arguments(cache, Path::new("out"), extra))
}

/// The refusal of a run on `cache`, whose exit code is `code`.
fn refusal(cache: &SmallCache, extra: &[&str], code: u8) -> String {
    let directory = tempfile::tempdir().unwrap();
    let error = check(&cache.write(directory.path(), "cache"), extra).unwrap_err();
    assert_eq!(error.exit_code(), code, "{error}");
    error.to_string()
}

fn assert_names(refusal: &str, words: &[&str]) {
    assert!(words.iter().all(|word| refusal.contains(word)), "not all of {words:?} in: {refusal}");
}

#[test]
fn defaults_come_from_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let config = check(&SmallCache::default().write(directory.path(), "cache"), &[]).unwrap();
    assert_eq!(
        (config.temperature, config.student.hidden_size, config.student.num_attention_heads, config.student.num_hidden_layers),
        (2.0, 16, 2, 1)
    );
    assert_eq!((config.duration, config.settings["hidden-map"].as_str()), (Duration::Epochs(3), "1:2"));
    assert_eq!(config.settings["loss"], "ce=5,mlm=2,cos=1");
    assert!(matches!(config.evaluation, EvaluationSource::HeldOut(share) if share == DEFAULT_EVAL_FRACTION));
}

#[test]
fn settings_name_what_makes_a_run_another_one() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let settings = |extra: &[&str]| check(&cache, extra).unwrap().settings;
    assert_eq!(settings(&[]), settings(&["--temperature", "2"]), "a default and the same value typed");
    for extra in
        [&["--seed", "1"], &["--clip", "1"], &["--steps", "3"], &["--eval-fraction", "0"], &["--loss", "ce=1"], &["--hidden-map", "0:2"]]
    {
        assert_ne!(settings(&[]), settings(extra), "{extra:?}");
    }
}

#[test]
fn a_refusal_of_other_contents_names_where_they_lie() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let [cache, other] = [("cache", "corpus"), ("other", "another")]
        .map(|(name, corpus)| SmallCache { corpus, ..SmallCache::default() }.write(directory.path(), name));
    let with_cache = check(&cache, &["--eval-cache", &other.display().to_string()]).unwrap();
    std::fs::create_dir(&out).unwrap();
    crate::output::RunRecord::new(&with_cache.settings, 1, false).write(&out).unwrap();
    let config = check(&other, &[]).unwrap();
    let error = config.name_files(crate::output::examine(&out, &config.settings).unwrap_err());
    let place = format!("now {} with the content of SHA-256 {}", other.display(), config.settings["cache"]);
    let was = format!("--cache was the content of SHA-256 {}", with_cache.settings["cache"]);
    assert_names(&error.to_string(), &[&place, &was, "what is held out together was not given, now document"]);
    assert!(!error.to_string().contains("--held-out-by"), "{error}");
}

#[test]
fn a_temperature_that_the_cache_lacks_is_refused() {
    assert_names(
        &refusal(&SmallCache::default(), &["--temperature", "4"], 2),
        &["--temperature", "2, 1", "found 4", "precompute --temperature 4"],
    );
    for impossible in ["0", "nan", "inf"] {
        let message = refusal(&SmallCache::default(), &["--temperature", impossible], 2);
        assert!(message.contains("choose one of these") && !message.contains("precompute"), "{message}");
    }
}

#[test]
fn a_shape_beyond_the_machine_is_refused_before_it_is_made() {
    assert_names(&refusal(&SmallCache::default(), &["--hidden-size", "100000000"], 2), &["--hidden-size: ", "memory", "smaller student"]);
    assert_names(&refusal(&SmallCache::default(), &["--layers", "4294967295"], 2), &["--layers: ", "memory"]);
}

#[test]
fn a_loss_of_hidden_states_needs_those_it_compares_and_no_width() {
    let without = SmallCache { hidden_layers: vec![], ..SmallCache::default() };
    assert_names(&refusal(&without, &[], 2), &["--loss", "no hidden states", "precompute --hidden-layers last"]);
    let another = SmallCache { hidden_layers: vec![0, 1], ..SmallCache::default() };
    assert_names(&refusal(&another, &[], 2), &["0,1 of 2", "precompute --hidden-layers last"]);
    let directory = tempfile::tempdir().unwrap();
    assert!(check(&without.write(directory.path(), "cache"), &["--loss", "ce=5,mlm=2", "--hidden-size", "8"]).is_ok());
    assert!(check(&SmallCache::default().write(directory.path(), "hidden"), &["--hidden-size", "8"]).is_ok());
}

#[test]
fn a_map_of_hidden_states_is_resolved_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let all = SmallCache { hidden_layers: vec![0, 1, 2], ..SmallCache::default() };
    let cache = all.write(directory.path(), "cache");
    let resolved = |map: &str| check(&cache, &["--layers", "2", "--hidden-map", map]).unwrap().settings["hidden-map"].clone();
    assert_eq!(["last", "first", "even", "2:0,0:1"].map(resolved), ["2:2", "1:1", "1:1,2:2", "0:1,2:0"]);
    let plain = check(&cache, &["--loss", "ce=1"]).unwrap();
    assert!(plain.hidden_pairs.is_empty() && !plain.settings.contains_key("hidden-map"));
    for (extra, words) in [
        (&["--hidden-map", "2:2"][..], &["--hidden-map", "the student's states 0 (embeddings) to 1", "found 2:2"][..]),
        (&["--hidden-map", "1:3"], &["--hidden-map", "the teacher's states 0 (embeddings) to 2", "found 1:3"]),
        (&["--hidden-map", "1:2,1:2"], &["--hidden-map", "1:2 twice"]),
        (&["--hidden-map", "1-2"], &["--hidden-map", "STUDENT:TEACHER", "1-2"]),
        (&["--hidden-map", "last", "--loss", "ce=1"], &["--hidden-map", "cos or hidden-mse in --loss", "--loss ce=1"]),
    ] {
        assert_names(&refusal(&all, extra, 2), words);
    }
    let last = SmallCache::default();
    let lacking = refusal(&last, &["--hidden-map", "0:0,1:1,1:2"], 2);
    assert_names(&lacking, &["--hidden-map", "hidden states 0,1,2", "layers 2 of 2", "precompute --hidden-layers 0,1,2"]);
    let mse = refusal(&SmallCache { hidden_layers: vec![], ..last }, &["--loss", "ce=1,hidden-mse=1"], 2);
    assert_names(&mse, &["--loss", "hidden-mse", "no hidden states", "precompute --hidden-layers last"]);
}

#[test]
fn a_changed_tokenizer_and_absent_first_weights_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let absent = directory.path().join("nope").display().to_string();
    let error = check(&cache, &["--init-from", &absent]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert_names(&error.to_string(), &["--init-from: expected a model.safetensors", "nope: no such file"]);
    for text in ["", "{ }"] {
        std::fs::write(cache.join("teacher/tokenizer.json"), text).unwrap();
        let error = check(&cache, &[]).unwrap_err().to_string();
        let found = Fingerprint::of_bytes(text.as_bytes()).to_string();
        assert_names(&error, &["tokenizer.json: SHA-256: expected", "as manifest.json notes", &found, "run precompute again"]);
    }
}

#[test]
fn flags_out_of_range_are_named() {
    let cases: [(&[&str], &str); 11] = [
        (&["--batch-tokens", "0"], "--batch-tokens"),
        (&["--accumulate", "0"], "--accumulate"),
        (&["--learning-rate", "nan"], "--learning-rate"),
        (&["--warmup", "1.5"], "--warmup"),
        (&["--clip", "0"], "--clip"),
        (&["--dropout", "1"], "--dropout"),
        (&["--heads", "3"], "--heads"),
        (&["--epochs", "0"], "--epochs"),
        (&["--eval-fraction", "1"], "--eval-fraction"),
        (&["--eval-every", "0"], "--eval-every"),
        (&["--device", "cuda:63"], "--device"),
    ];
    for (extra, flag) in cases {
        assert_names(&refusal(&SmallCache::default(), extra, 2), &[flag]);
    }
}

#[test]
fn an_evaluation_cache_must_be_the_same_teachers_on_other_documents() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let with = |name: &str, other: SmallCache| {
        let other = SmallCache { corpus: "held out", ..other }.write(directory.path(), name);
        check(&cache, &["--eval-cache", &other.display().to_string()])
    };
    assert!(with("good", SmallCache::default()).is_ok());
    let error = with("other", SmallCache { teacher: "another", ..SmallCache::default() }).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_names(&error.to_string(), &["other", "teacher", "training cache"]);
    let same = check(&cache, &["--eval-cache", &cache.display().to_string()]).unwrap_err();
    assert_names(&same.to_string(), &["--eval-cache", "--eval-fraction"]);
}

#[test]
fn a_cache_without_its_tokenizer_or_manifest_is_refused_before_training() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    std::fs::remove_file(cache.join("teacher/tokenizer.json")).unwrap();
    assert_names(&check(&cache, &[]).unwrap_err().to_string(), &["tokenizer.json", "precompute"]);
    std::fs::remove_file(cache.join("teacher/config.json")).unwrap();
    assert_names(
        &check(&cache, &[]).unwrap_err().to_string(),
        &["teacher: config.json: expected the teacher's configuration", "precompute"],
    );
    assert_eq!(check(&directory.path().join("absent"), &[]).unwrap_err().exit_code(), 1);
}

#[test]
fn bf16_makes_another_run_where_the_processor_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SmallCache::default().write(directory.path(), "cache");
    let single = check(&cache, &["--dtype", "fp32"]).unwrap();
    assert_eq!((single.precision, single.settings.get("dtype")), (Precision::Single, None));
    assert_names(&refusal(&SmallCache::default(), &["--dtype", "half"], 2), &["--dtype", "fp32 or bf16", "half"]);
    match check(&cache, &["--dtype", "bf16"]) {
        Ok(config) => {
            assert_eq!((config.precision, config.settings["dtype"].as_str()), (Precision::Bf16, "bf16"));
            assert!(config.resolved().contains("dtype = \"bf16\"\n"));
        }
        Err(error) => assert_names(&error.to_string(), &["--dtype", "AVX512-BF16", "use --dtype fp32"]),
    }
}

#[test]
fn a_missing_initial_file_is_named() {
    assert_names(&refusal(&SmallCache::default(), &["--init-from", "nowhere.safetensors"], 2), &["nowhere.safetensors"]);
}

#[test]
fn head_and_loss_follow_from_the_caches_task() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = [
        (Task::SequenceClassification, "ce=1,gold=0.5", ["O", "B-X", "I-X"].as_slice()),
        (Task::TokenClassification, "ce=1,gold=0.5", &["O", "B-X", "I-X"]),
        (Task::SentenceEmbedding, "embedding-cos=1", &[]),
    ];
    for (task, loss, names) in tasks {
        let cache = SmallCache::of(task).write(directory.path(), task.name());
        let check = |extra: &[&str]| Config::check(&arguments(&cache, Path::new("out"), extra));
        let refused = |extra: &[&str]| {
            let error = check(extra).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            error.to_string()
        };
        let config = check(&[]).unwrap();
        assert_eq!((config.student.task, config.objective.to_string().as_str()), (task, loss));
        assert_eq!(config.student.class_names, names);
        assert_eq!(config.settings["task"], task.name());
        assert!(refused(&["--loss", "mlm=1"]).contains("--loss: expected parts of "), "{task}");
        assert!(refused(&["--top-k", "1"]).contains("--top-k: expected a cache of a language model"), "{task}");
        if task == Task::SentenceEmbedding {
            assert_eq!((config.student.embedding_output, config.student.normalized), (0, true));
            assert_eq!(check(&["--hidden-size", "8"]).unwrap().student.embedding_output, 16);
            assert_eq!(check(&["--pooling", "cls"]).unwrap().settings["pooling"], "cls");
            assert!(refused(&["--pooling", "sum"]).contains("--pooling: expected one of mean, cls, max"));
        } else {
            assert!(refused(&["--pooling", "cls"]).contains("--pooling: expected a cache for sentence-embedding"), "{task}");
        }
    }
    let cache =
        SmallCache { problem: Problem::Regression, ..SmallCache::of(Task::SequenceClassification) }.write(directory.path(), "numbers");
    let config = Config::check(&arguments(&cache, Path::new("out"), &[])).unwrap();
    assert_eq!((config.student.classes, config.objective.to_string().as_str()), (1, "logit-mse=1,gold=0.5"));
}
