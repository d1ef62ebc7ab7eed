//! Which parts of a loss a task has, and the ones it has where nothing is said.

use super::{Objective, Part};
use logitcache::error::{Error, Result};
use logitcache::target::{Problem, Task};

/// What a student is taught where nothing is said: the teacher's answers, and beside them the gold ones of the corpus where there are any.
/// `normalized`: whether vectors have length 1, so that their direction is all there is. `answered`: whether there are gold answers.
pub fn default_loss(task: Task, problem: Option<Problem>, normalized: bool, answered: bool) -> &'static str {
    match (task, problem) {
        (Task::MaskedLm, _) => "ce=5,mlm=2,cos=1",
        (_, Some(Problem::Regression)) if answered => "logit-mse=1,gold=0.5",
        (_, Some(Problem::Regression)) => "logit-mse=1",
        (Task::SentenceEmbedding, _) if normalized => "embedding-cos=1",
        (Task::SentenceEmbedding, _) => "embedding-cos=1,embedding-mse=1",
        _ if answered => "ce=1,gold=0.5",
        _ => "ce=1",
    }
}

/// Whether a part has a meaning for a task.
fn has(part: Part, task: Task, problem: Option<Problem>) -> bool {
    match part {
        Part::Cos | Part::HiddenMse => true,
        Part::EmbeddingCos | Part::EmbeddingMse => task == Task::SentenceEmbedding,
        Part::Mlm => task == Task::MaskedLm,
        Part::Gold => !matches!(task, Task::MaskedLm | Task::SentenceEmbedding),
        Part::LogitMse => task != Task::SentenceEmbedding,
        Part::Ce => task != Task::SentenceEmbedding && problem != Some(Problem::Regression),
        Part::ReverseKl | Part::Jsd | Part::Tvd => {
            task != Task::SentenceEmbedding && problem.is_none_or(|problem| problem == Problem::SingleLabel)
        }
    }
}

/// Refuses an objective with a part that the task does not have.
///
/// # Errors
/// [`Error::Usage`] naming `--loss` and the parts there are.
pub fn check_loss(objective: &Objective, task: Task, problem: Option<Problem>) -> Result<()> {
    let Some(part) = objective.parts().find(|part| !has(*part, task, problem)) else { return Ok(()) };
    let names: Vec<&str> = Part::ALL.into_iter().filter(|part| has(*part, task, problem)).map(Part::name).collect();
    let of = match problem {
        Some(Problem::MultiLabel) => format!("{task} with classes that are each for themselves"),
        Some(Problem::Regression) => format!("{task} of numbers"),
        _ => task.to_string(),
    };
    let expected = format!("parts of {}, which the cache's {of} has", names.join(", "));
    Err(Error::usage("--loss", expected, part.name(), "leave it out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_parts_that_the_task_has() {
        let problems = [None, Some(Problem::SingleLabel), Some(Problem::MultiLabel), Some(Problem::Regression)];
        for task in Task::ALL {
            for problem in problems.into_iter().filter(|problem| problem.is_some() == (task == Task::SequenceClassification)) {
                for (normalized, answered) in [(false, false), (false, true), (true, false), (true, true)] {
                    let objective: Objective = default_loss(task, problem, normalized, answered).parse().unwrap();
                    assert!(answered || !objective.has(Part::Gold), "{task} has gold answers without any");
                    check_loss(&objective, task, problem).unwrap();
                    assert!(Part::ALL.into_iter().any(|part| !has(part, task, problem)), "{task} has every part");
                }
            }
        }
        assert_eq!(default_loss(Task::MaskedLm, None, false, false).parse::<Objective>().unwrap(), Objective::default());
    }

    #[test]
    fn parts_of_another_task_are_refused_by_name() {
        let message = |loss: &str, task, problem| check_loss(&loss.parse().unwrap(), task, problem).unwrap_err().to_string();
        let multi = message("ce=1,jsd=1", Task::SequenceClassification, Some(Problem::MultiLabel));
        assert!(
            multi.contains("--loss: expected parts of ce, logit-mse, cos, hidden-mse, gold, which") && multi.contains("found jsd"),
            "{multi}"
        );
        assert!(message("mlm=1", Task::CausalLm, None).contains("found mlm"));
        assert!(message("gold=1", Task::MaskedLm, None).contains("found gold"));
        assert!(message("ce=1", Task::SentenceEmbedding, None).contains("embedding-cos, embedding-mse"));
    }
}
