//! What a training of every task measures and shows, from end to end on small caches.

use super::{Evaluation, FullEvaluation, Measures};
use crate::cli::EvaluateArguments;
use crate::config::Config;
use crate::metrics::Line;
use crate::small_cache::{SmallCache, arguments};
use crate::trainer::StopSignal;
use logitcache::target::{Problem, Task};
use std::path::Path;

/// Trains on the cache, measures on its like of another corpus, and returns the evaluations of the log and the last one.
fn train(cache: &SmallCache, directory: &Path) -> (Vec<Evaluation>, FullEvaluation) {
    let held_out = SmallCache { corpus: "held out", ..cache.clone() }.write(directory, "held-out");
    let (cache, out) = (cache.write(directory, "cache"), directory.join("student"));
    let extra = ["--steps", "60", "--learning-rate", "1e-2", "--dropout", "0", "--eval-cache", &held_out.display().to_string()];
    let table = crate::run(&Config::check(&arguments(&cache, &out, &extra)).unwrap(), &StopSignal::default()).unwrap();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let lines: Vec<Line> = read("metrics.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let evaluations = lines.iter().filter_map(|line| if let Line::Evaluation(found) = line { Some(found.evaluation) } else { None });
    let full: FullEvaluation = serde_json::from_str(&read("evaluation.json")).unwrap();
    let (page, curves) = (read("report.html"), read("curves.svg").replace("&apos;", "'"));
    for figure in full.evaluation.figures() {
        let number = format!("{:.4}", figure.student);
        assert!(table.contains(figure.title) && table.contains(&number), "no {} {number} in\n{table}", figure.title);
        assert!(page.contains(&format!("<td>{number}</td>")), "no {number} on the page");
        assert!(figure.chart.is_none_or(|(chart, _)| curves.contains(chart)), "no {:?} in the curves", figure.chart);
    }
    let again = directory.join("again.json");
    let asked = EvaluateArguments { student: out.clone(), cache: held_out, out: Some(again.clone()), threads: Some(1), quiet: true };
    let said = crate::evaluate_student::run(&asked).unwrap();
    assert_eq!(std::fs::read_to_string(again).unwrap(), read("evaluation.json"), "what train evaluate finds\n{said}");
    (evaluations.collect(), full)
}

#[test]
fn every_task_is_measured_while_it_trains_and_shown() {
    let sequence = |problem| SmallCache { problem, ..SmallCache::of(Task::SequenceClassification) };
    let caches = [
        sequence(Problem::SingleLabel),
        sequence(Problem::MultiLabel),
        sequence(Problem::Regression),
        SmallCache::of(Task::TokenClassification),
        SmallCache { sequences_per_document: 2, ..SmallCache::of(Task::SentenceEmbedding) },
        SmallCache::of(Task::CausalLm),
    ];
    for cache in caches {
        let directory = tempfile::tempdir().unwrap();
        let (evaluations, full) = train(&cache, directory.path());
        let (first, last) = (evaluations[0], evaluations[evaluations.len() - 1]);
        assert!(last.divergence() < 0.7 * first.divergence(), "{first:?}, then {last:?}");
        assert_eq!((last.sequences, full.evaluation.sequences), (100, 100));
        let classes = full.classes.as_ref().map(|classes| classes.rows.iter().map(|class| class.token.as_str()).collect::<Vec<_>>());
        let known = match last.measures {
            Measures::SequenceClasses(found) => {
                assert_eq!((found.gold_sequences, found.gold.unwrap().teacher_accuracy), (50, 1.0), "this teacher knows");
                classes.is_some() && full.student_calibration.is_some() && !full.disagreements.is_empty()
            }
            Measures::MultiLabel(found) => {
                assert_eq!((found.gold_sequences, found.gold.unwrap().teacher_exact), (50, 1.0));
                classes.is_some_and(|classes| classes.len() == 3) && full.disagreements.is_empty()
            }
            Measures::Regression(found) => {
                let gold = found.gold.unwrap();
                assert!(gold.teacher_gold_mse < 1e-6 && gold.student_spearman.unwrap() > 0.8, "{found:?}");
                (found.student_teacher_pearson.unwrap() - gold.student_pearson.unwrap()).abs() < 0.1
            }
            Measures::TokenClasses(found) => {
                let entities = found.entities.unwrap();
                assert_eq!((found.gold.unwrap().teacher_accuracy, entities.teacher_entity_f1), (1.0, 1.0));
                let types = full.entities.as_ref().unwrap();
                assert_eq!((types.rows[0].token.as_str(), types.rows[0].support), ("X", entities.gold_entities));
                classes.is_some_and(|classes| classes.contains(&"B-X"))
            }
            Measures::SentenceVectors(found) => {
                assert_eq!((found.pool_sequences, found.pairs, found.gold_pairs), (100, 50, 50));
                assert!(found.recall_at_10.unwrap() > 0.3 && found.pair_spearman.unwrap() > 0.5, "{found:?}");
                found.student_gold_spearman.is_some() && classes.is_none()
            }
            Measures::NextTokens(found) => {
                let gold = found.gold;
                assert_eq!((gold.teacher_gold_positions, found.teacher_gold_top1), (found.next_tokens, 1.0));
                let (student, teacher) = (gold.student_perplexity, gold.teacher_perplexity.unwrap());
                assert!(teacher > 1.0 && student > teacher && Some(student) == gold.student_perplexity_there, "{found:?}");
                full.gold.is_none() && full.top_five.is_some() && classes.is_some_and(|classes| classes.contains(&"token 20"))
            }
            Measures::MaskedLm(_) => false,
        };
        assert!(known, "{full:?}");
    }
}
