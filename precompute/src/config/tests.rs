//! Every refusal of a flag, and what the accepted ones mean.

use super::*;
use clap::Parser;
use logitcache::target::Task;

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
    assert_eq!(config.temperatures, [2.0, 1.0]);
    assert_eq!(config.threads, 3);
    assert_eq!((config.top_k, config.max_length, config.min_tokens), (64, 128, 12));
    assert_eq!((config.positions, config.precision), (PositionRule::Tokens, Precision::Float16));
    assert_eq!(config.hidden_layers, HiddenLayers::Last);
    assert_eq!((config.passes, config.seed, config.shard_sequences, config.batch_tokens), (1, 0, 512, 4096));
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
        ("--provider cuda", "--provider", "`cuda`"),
        ("--threads 0", "--threads", "found 0"),
        ("--batch-tokens 100", "--batch-tokens", "found 100"),
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
        ("--positions 0.1", "--positions", "found 0.1"),
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
    assert_eq!(check("--temperature 1,2,4").expect("three").temperatures, [1.0, 2.0, 4.0]);
    assert_eq!(check("--temperature 4").expect("one").temperatures, [4.0, 1.0]);
    assert_eq!(check("--hidden-layers 12,0,6").expect("three").hidden_layers, HiddenLayers::List(vec![0, 6, 12]));
    let config = check("--hidden-layers 6 --hidden-tensor 6=a=b").expect("a name with an equals sign");
    assert_eq!(config.hidden_tensors, BTreeMap::from([(6, "a=b".to_owned())]));
    let reading = check("--delimiter tab --quote none --no-header --format conll").expect("another dialect").reading;
    assert_eq!(reading.dialect, crate::corpus::Dialect { delimiter: Some('\t'), quote: None, header: false });
    assert_eq!(reading.format, Some(crate::corpus::Format::Conll));
    assert_eq!(check("--positions 0.15").expect("the masked share itself").positions, PositionRule::Share(0.15));
}

fn facts() -> TeacherFacts {
    TeacherFacts {
        vocabulary_size: 40,
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

    let long = config.target_spec(&TeacherFacts { maximum_length: Some(64), ..facts() }).expect_err("too long for the teacher");
    assert_eq!(long.exit_code(), 2);
    assert!(long.to_string().contains("--max-length 64"), "{long}");

    let large = config.target_spec(&TeacherFacts { tokenizer_size: 41, ..facts() }).expect_err("ids the teacher does not know");
    assert_eq!(large.exit_code(), 1);
    assert!(large.to_string().contains("tokenizer.json") && large.to_string().contains("41 ids"), "{large}");
}
