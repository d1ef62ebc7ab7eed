//! Every refusal of a flag, and what the accepted ones mean.

use super::*;
use crate::task::TeacherTask;
use clap::Parser;
use logitcache::target::{Pooling, Problem};
use std::path::Path;

fn check(line: &str) -> Result<Config> {
    let line = format!("precompute --teacher t --corpus c --out o {line}");
    Config::check(Arguments::try_parse_from(line.split_whitespace()).expect("a line of the right form"), 3)
}

/// The flag, and the whole message, of a refusal.
fn refusal(result: Result<Config>) -> (String, String) {
    let error = result.expect_err("a refusal");
    assert_eq!(error.exit_code(), 2, "{error}");
    let message = error.to_string();
    match error {
        Error::Usage { flag, .. } => (flag, message),
        other => panic!("not a usage error: {other}"),
    }
}

#[test]
fn defaults_mean_what_the_help_says() {
    let config = check("").expect("the defaults run");
    assert_eq!((&config.temperatures, config.top_k, config.positions, config.purpose), (&None, None, None, Purpose::default()));
    assert_eq!(config.threads, 3);
    assert_eq!((config.windows.max_length, config.windows.min_tokens), (128, None));
    assert_eq!((config.mask_probability, config.precision), (0.15, Precision::Float16));
    assert_eq!(config.hidden_layers, HiddenLayers::ByTask);
    assert_eq!((config.passes, config.seed, config.shard_sequences), (1, 0, 512));
    assert_eq!((config.batch_tokens, config.memory), (None, None), "measured, and a share of the machine's");
    assert_eq!(config.mask_smoothing, None);
}

#[test]
fn each_refusal_names_its_flag_and_what_was_found() {
    let refused = [
        ("--document page", "--document", "found page"),
        ("--format xml", "--format", "`xml`"),
        ("--delimiter ab", "--delimiter", "\"ab\""),
        ("--delimiter ; --quote ;", "--delimiter", "\";\" for both"),
        ("--quote no", "--quote", "\"no\""),
        ("--limit 0", "--limit", "found 0"),
        ("--max-length 2", "--max-length", "found 2"),
        ("--max-length 70000 --batch-tokens 70000", "--max-length", "found 70000"),
        ("--min-tokens 129", "--min-tokens", "found 129"),
        ("--mask-probability 0", "--mask-probability", "found 0"),
        ("--mask-probability 1.5", "--mask-probability", "found 1.5"),
        ("--mask-probability NaN", "--mask-probability", "found NaN"),
        ("--mask-smoothing 0", "--mask-smoothing", "found 0"),
        ("--passes 0", "--passes", "found 0"),
        ("--provider tpu", "--provider", "`tpu`"),
        ("--threads 0", "--threads", "found 0"),
        ("--batch-tokens 100", "--batch-tokens", "found 100"),
        ("--memory lots", "--memory", "`lots`"),
        ("--memory 0", "--memory", "`0`"),
        ("--top-k 0", "--top-k", "found 0"),
        ("--temperature 2,x", "--temperature", "`x`"),
        ("--temperature 2,2", "--temperature", "`2` in `2,2`"),
        ("--temperature 0", "--temperature", "`0`"),
        ("--temperature inf", "--temperature", "`inf`"),
        ("--hidden-layers first", "--hidden-layers", "`first`"),
        ("--hidden-layers 3,1,3", "--hidden-layers", "3 twice"),
        ("--hidden-tensor six=x", "--hidden-tensor", "`six=x`"),
        ("--hidden-tensor 6=", "--hidden-tensor", "`6=`"),
        ("--hidden-tensor 6=x --hidden-tensor 6=y", "--hidden-tensor", "6 twice"),
        ("--hidden-layers none --hidden-tensor 6=x", "--hidden-tensor", "--hidden-layers none"),
        ("--positions some", "--positions", "`some`"),
        ("--positions 0", "--positions", "`0`"),
        ("--positions 1.01", "--positions", "`1.01`"),
        ("--task ner", "--task", "`ner`"),
        ("--pooling sum", "--pooling", "`sum`"),
        ("--precision float64", "--precision", "`float64`"),
        ("--shard-sequences 0", "--shard-sequences", "found 0"),
    ];
    for (line, flag, found) in refused {
        let (named, message) = refusal(check(line));
        assert_eq!(named, flag, "for `{line}`");
        assert!(message.contains(found), "`{line}` gave: {message}");
    }
}

#[test]
fn what_is_required_is_asked_for_by_name() {
    for (line, flag) in [
        ("precompute --corpus c --out o", "--teacher"),
        ("precompute --teacher t --out o", "--corpus"),
        ("precompute --teacher t --corpus c", "--out"),
    ] {
        let arguments = Arguments::try_parse_from(line.split_whitespace()).expect("a line of the right form");
        assert_eq!(refusal(Config::check(arguments, 1)).0, flag);
    }
    let dry = Arguments::try_parse_from("precompute --teacher t --corpus c --dry-run".split_whitespace()).expect("a line");
    assert!(Config::check(dry, 1).expect("a dry run needs no directory").out.is_none());
}

#[test]
fn lists_keep_their_meaning() {
    assert_eq!(check("--temperature 1,2,4").expect("three").temperatures, Some(vec![1.0, 2.0, 4.0]));
    assert_eq!(check("--temperature 4").expect("one").temperatures, Some(vec![4.0, 1.0]));
    assert_eq!(check("--hidden-layers 12,0,6").expect("three").hidden_layers, HiddenLayers::List(vec![0, 6, 12]));
    let config = check("--hidden-layers 6 --hidden-tensor 6=a=b").expect("a name with an equals sign");
    assert_eq!(config.hidden_tensors, BTreeMap::from([(6, "a=b".to_owned())]));
    let reading = check("--delimiter tab --quote none --no-header --format conll").expect("another dialect").reading;
    assert_eq!(reading.dialect, crate::corpus::Dialect { delimiter: Some('\t'), quote: None, header: false });
    assert_eq!(reading.format, Some(crate::corpus::Format::Conll));
    assert_eq!(check("--positions 0.15").expect("the masked share itself").positions, Some(PositionRule::Share(0.15)));
}

fn facts() -> TeacherFacts {
    TeacherFacts {
        vocabulary_size: 40,
        width: 40,
        maximum_length: Some(128),
        token_type_ids: true,
        hidden_layers: vec![12],
        hidden_size: 8,
        tokenizer_size: 38,
        tokenizer: PathBuf::from("tokenizer.json"),
        task: TeacherTask::of(Task::MaskedLm),
    }
}

#[test]
fn the_teacher_has_the_last_word() {
    let config = check("").expect("the defaults run");
    let spec = config.target_spec(&facts()).expect("a teacher that fits");
    assert_eq!((spec.top_k(), spec.vocabulary_size(), spec.hidden_layers()), (40, 40, &[12][..]), "k is cut to the vocabulary");

    assert_eq!((spec.temperatures(), spec.positions()), (&[2.0, 1.0][..], PositionRule::Tokens));

    let long = config.target_spec(&TeacherFacts { maximum_length: Some(64), ..facts() }).expect_err("too long for the teacher");
    assert_eq!(long.exit_code(), 2);
    assert!(long.to_string().contains("--max-length 64"), "{long}");

    let large = config.target_spec(&TeacherFacts { tokenizer_size: 41, ..facts() }).expect_err("ids the teacher does not know");
    assert_eq!(large.exit_code(), 1);
    assert!(large.to_string().contains("tokenizer.json") && large.to_string().contains("41 ids"), "{large}");
}

/// A teacher of a task with 3 classes, or vectors of width 8.
fn facts_of(task: Task) -> TeacherFacts {
    let mut of_task = TeacherTask::of(task);
    let width = match task {
        Task::MaskedLm | Task::CausalLm => 40,
        Task::SentenceEmbedding => 8,
        _ => 3,
    };
    if matches!(task, Task::SequenceClassification | Task::TokenClassification) {
        of_task.class_names = ["a", "b", "c"].map(str::to_owned).to_vec();
    }
    of_task.problem = (task == Task::SequenceClassification).then_some(Problem::SingleLabel);
    of_task.pooling = (task == Task::SentenceEmbedding).then_some(Pooling::Mean);
    TeacherFacts { task: of_task, width, hidden_layers: Vec::new(), hidden_size: 0, ..facts() }
}

#[test]
fn defaults_follow_the_task() {
    let config = check("").expect("the defaults run");
    for (task, rule, top_k, temperatures) in [
        (Task::MaskedLm, PositionRule::Tokens, 40, &[2.0, 1.0][..]),
        (Task::CausalLm, PositionRule::Next, 40, &[2.0, 1.0]),
        (Task::TokenClassification, PositionRule::Tokens, 3, &[2.0, 1.0]),
        (Task::SequenceClassification, PositionRule::Sequence, 3, &[2.0, 1.0]),
        (Task::SentenceEmbedding, PositionRule::Sequence, 0, &[1.0]),
    ] {
        let spec = config.target_spec(&facts_of(task)).expect("defaults that fit");
        assert_eq!((spec.positions(), spec.top_k(), spec.temperatures()), (rule, top_k, temperatures), "{task}");
        assert_eq!(spec.vocabulary_size(), 40);
        let classes = if task == Task::SentenceEmbedding { 0 } else { facts_of(task).width };
        assert_eq!((spec.classes(), spec.embedding_size()), (classes, if classes == 0 { 8 } else { 0 }));
    }
}

#[test]
fn flags_without_a_use_for_the_task_are_refused() {
    let others = [Task::SequenceClassification, Task::TokenClassification, Task::SentenceEmbedding, Task::CausalLm];
    for task in others {
        for line in ["--mask-probability 0.15", "--mask-smoothing 0.7", "--whole-word", "--passes 2", "--positions masked"] {
            let (flag, message) = refusal_of_task(line, task);
            assert!(line.starts_with(&flag) && message.contains(task.name()), "{line} for {task}: {message}");
        }
        for line in if task == Task::CausalLm { &["--positions tokens"][..] } else { &["--top-k 3", "--positions next"] } {
            assert!(line.starts_with(&refusal_of_task(line, task).0), "{line} for {task}");
        }
    }
    for line in ["--positions all", "--positions 0.5", "--positions tokens"] {
        assert_eq!(refusal_of_task(line, Task::SentenceEmbedding).0, "--positions");
    }
    assert_eq!(refusal_of_task("--temperature 2", Task::SentenceEmbedding).0, "--temperature");
    assert!(refusal_of_task("--positions 0.1", Task::MaskedLm).1.contains("found 0.1"));
    assert_eq!(refusal_of_task("--positions next", Task::MaskedLm).0, "--positions");
}

fn refusal_of_task(line: &str, task: Task) -> (String, String) {
    let refused = check(line).expect("flags that agree with each other").check_task(&facts_of(task).task);
    let error = refused.expect_err("a refusal");
    assert_eq!(error.exit_code(), 2);
    let message = error.to_string();
    match error {
        Error::Usage { flag, .. } => (flag, message),
        other => panic!("not a usage error: {other}"),
    }
}

#[test]
fn a_cache_within_the_corpus_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let corpus = folder.path().join("texts");
    std::fs::create_dir(&corpus).expect("a writable directory");
    let config = |out: &Path| {
        let line = ["precompute", "--teacher", "t", "--corpus"].map(std::ffi::OsString::from);
        let paths = [corpus.as_os_str(), "--out".as_ref(), out.as_os_str()].map(ToOwned::to_owned);
        Config::check(Arguments::try_parse_from(line.into_iter().chain(paths)).expect("a line"), 2)
    };
    for out in ["", "cache", "a/b/../cache"] {
        let (_, message) = refusal(config(&corpus.join(out)));
        assert!(message.contains("--out") && message.contains("texts"), "{message}");
    }
    for out in ["texts/.cache", "texts-cache", "cache"] {
        config(&folder.path().join(out)).expect("outside of what is read");
    }
}
