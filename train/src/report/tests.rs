//! The page and the drawing of every task, from what a run would have written.

use super::{draw, page};
use crate::evaluate::classes::{Class, Classes};
use crate::evaluate::figures::charts;
use crate::evaluate::masked_lm::MaskedLm;
use crate::evaluate::multi_label::{GoldLabels, MultiLabel};
use crate::evaluate::next_tokens::NextTokens;
use crate::evaluate::regression::{GoldNumbers, Regression};
use crate::evaluate::sentence_vectors::SentenceVectors;
use crate::evaluate::sequence_classes::{GoldClasses, SequenceClasses};
use crate::evaluate::token_classes::{GoldEntities, GoldTokens, TokenClasses};
use crate::evaluate::{Evaluation, FullEvaluation, GoldNats, Measures};
use crate::loss::Objective;
use crate::metrics::{EvaluationMetrics, Line};
use serde_json::{Value, json};

/// Every task's measures with all that can be known, each figure at `x` or beside it.
fn every_task(x: f64) -> Vec<Measures> {
    let y = x - 0.1;
    let known = GoldNats { teacher_perplexity: Some(y), student_perplexity_there: Some(x), student_perplexity: x, ..GoldNats::default() };
    let classes = GoldClasses { student_macro_f1: x, teacher_macro_f1: y, ..GoldClasses::default() };
    let entities = GoldEntities { student_entity_f1: x, teacher_entity_f1: y, ..GoldEntities::default() };
    let numbers = GoldNumbers { student_pearson: Some(x), teacher_pearson: Some(y), ..GoldNumbers::default() };
    let vectors = SentenceVectors { teacher_cosine: x, recall_at_10: Some(x), pool_spearman: Some(y), ..SentenceVectors::default() };
    vec![
        Measures::MaskedLm(MaskedLm { kl_nats: x, student_gold_top1: y, ..MaskedLm::default() }),
        Measures::NextTokens(NextTokens { kl_nats: x, gold: known, ..NextTokens::default() }),
        Measures::SequenceClasses(SequenceClasses { kl_nats: x, gold: Some(classes), ..SequenceClasses::default() }),
        Measures::MultiLabel(MultiLabel { kl_nats: x, gold: Some(GoldLabels::default()), ..MultiLabel::default() }),
        Measures::Regression(Regression { teacher_mse: x, student_teacher_pearson: Some(x), gold: Some(numbers), ..Regression::default() }),
        Measures::TokenClasses(TokenClasses { gold: Some(GoldTokens::default()), entities: Some(entities), ..TokenClasses::default() }),
        Measures::SentenceVectors(SentenceVectors { pair_spearman: Some(x), student_gold_spearman: Some(x), ..vectors }),
    ]
}

fn line(step: u64, measures: Measures) -> Line {
    let evaluation = Evaluation { sequences: 9, measures };
    Line::Evaluation(EvaluationMetrics { step, epoch: 0.5, evaluation, evaluation_seconds: 1.0, elapsed_seconds: 2.0 })
}

#[test]
fn every_figure_of_every_task_is_shown() {
    for (first, last) in every_task(0.3).into_iter().zip(every_task(0.8)) {
        let lines = [line(0, first), line(50, last)];
        let classes = Classes { total: 1, listed: 1, rows: vec![Class { token: "<PER>".to_owned(), ..Class::default() }] };
        let evaluation = Evaluation { sequences: 9, measures: last };
        let full = FullEvaluation { evaluation, entities: Some(classes), ..FullEvaluation::default() };
        let values: Vec<Value> = lines.iter().map(|line| serde_json::to_value(line).unwrap()).collect();
        let run = json!({"settings": {}, "completed_steps": 50, "finished": true});
        let text = page("student", &run, &values, None, Some(&serde_json::to_value(&full).unwrap()), None);
        let svg = draw("student", &lines, &Objective::default(), 50).unwrap().replace("&apos;", "'");
        assert!(text.contains("By type of entity") && text.contains("&lt;PER&gt;") && !text.contains("Calibration</h2>"), "{text}");
        for figure in full.figures() {
            assert!(text.contains(&format!("<td>{}</td>", super::escape(figure.title))), "no {} on the page of {last:?}", figure.title);
        }
        for (title, figures) in charts(&evaluation.figures()) {
            assert!(text.contains(&format!("<figcaption>{}</figcaption>", super::escape(title))), "no chart {title} on the page");
            assert!(svg.contains(title), "no panel {title} in the drawing");
            let both = |name: &str| vec![format!("{name}, student"), format!("{name}, teacher")];
            let names =
                figures.iter().flat_map(|(name, figure)| if figure.teacher.is_some() { both(name) } else { vec![(*name).to_owned()] });
            let names: Vec<String> = names.collect();
            // As the drawing lays them out: a mark, a wide letter's width for each, a gap.
            let width: usize = names.iter().map(|name| 36 + 7 * name.len()).sum();
            assert!(names.len() <= 4 && width < 460, "the legend of {title} is {width} wide");
        }
    }
}
