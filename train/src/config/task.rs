//! What follows from the cache's task: the student's head, its family and its loss where nothing is said.

use super::TEACHER_FOLDER;
use super::shape::parsed;
use crate::cli::StudentArguments;
use crate::loss::of_task::{check_loss, default_loss};
use crate::loss::{Objective, Part};
use crate::student::config::StudentConfig;
use crate::student::family::Family;
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};
use logitcache::target::{Pooling, Task};

const POOLINGS: [(Pooling, &str); 3] = [(Pooling::Mean, "mean"), (Pooling::Cls, "cls"), (Pooling::Max, "max")];

/// The name of a pooling in flags.
pub(super) fn pooling_name(pooling: Pooling) -> &'static str {
    POOLINGS.into_iter().find(|(found, _)| *found == pooling).map_or("mean", |(_, name)| name)
}

/// The loss: what was typed, or the task's default for what the cache holds.
///
/// # Errors
/// [`Error::Usage`] for a part that the task does not have, and for gold answers typed where the cache holds none.
pub(super) fn objective(typed: Option<Objective>, cache: &Cache) -> Result<Objective> {
    let (task, problem) = (cache.spec().task(), cache.spec().problem());
    let answered = cache.spec().has_label_values() || cache.manifest().shards.iter().any(|shard| shard.masked > 0);
    let Some(objective) = typed else { return default_loss(task, problem, cache.manifest().teacher.normalized, answered).parse() };
    check_loss(&objective, task, problem)?;
    if objective.has(Part::Gold) && !answered {
        let remedy = "leave gold out, or let precompute write the cache again with --label-field";
        return Err(Error::usage("--loss", "parts that the cache can teach: it holds no gold answer", "gold", remedy));
    }
    Ok(objective)
}

/// The family that was typed, or DistilBERT; for next tokens the teacher's, or Llama where that is none of ours.
///
/// # Errors
/// [`Error::Usage`] for a name of no family.
pub(super) fn family(shape: &StudentArguments, cache: &Cache) -> Result<Family> {
    if let Some(name) = &shape.family {
        return parsed("--family", name);
    }
    if cache.spec().task() != Task::CausalLm {
        return Ok(Family::default());
    }
    let teachers = StudentConfig::family_in(&cache.directory().join(TEACHER_FOLDER).join("config.json"))?;
    Ok(teachers.filter(|family| family.is_decoder()).unwrap_or(Family::Llama))
}

/// The probability of dropping an activation: the one typed, or 0.1, and none for next tokens, of which there are many more.
///
/// # Errors
/// [`Error::Usage`] outside of 0 to 1.
pub(super) fn dropout(shape: &StudentArguments, cache: &Cache) -> Result<f64> {
    let dropout = shape.dropout.unwrap_or(if cache.spec().task() == Task::CausalLm { 0.0 } else { 0.1 });
    if (0.0..1.0).contains(&dropout) {
        return Ok(dropout);
    }
    let expected = "a probability of at least 0 and below 1";
    Err(Error::usage("--dropout", expected, dropout.to_string(), "use 0.1, or 0 for none"))
}

/// `student` with the head of the cache's task: as many classes with the teacher's names for them, the teacher's pooling or the one typed, a map to
/// the teacher's width where the student's is another.
///
/// # Errors
/// [`Error::Usage`] for a `--pooling` of a task that pools nothing; names of other classes than the cache's; a task that the family cannot have.
pub(super) fn with_task(student: StudentConfig, shape: &StudentArguments, cache: &Cache) -> Result<StudentConfig> {
    let (spec, teacher) = (cache.spec(), &cache.manifest().teacher);
    let mut student = StudentConfig { task: spec.task(), ..student };
    if let (Some(pooling), true) = (&shape.pooling, student.task != Task::SentenceEmbedding) {
        let expected = format!("a cache for {}", Task::SentenceEmbedding);
        return Err(Error::usage("--pooling", expected, format!("{pooling} for {}", student.task), "leave it out"));
    }
    match student.task {
        Task::MaskedLm | Task::CausalLm => {}
        Task::SequenceClassification | Task::TokenClassification => {
            student.classes = spec.classes();
            student.problem = spec.problem();
            let path = cache.directory().join(TEACHER_FOLDER).join("config.json");
            student.class_names = StudentConfig::class_names_in(&path, student.classes)?;
        }
        Task::SentenceEmbedding => {
            student.pooling = match &shape.pooling {
                None => teacher.pooling.unwrap_or(Pooling::Mean),
                Some(name) => POOLINGS.into_iter().find(|(_, known)| known == name).map(|(pooling, _)| pooling).ok_or_else(|| {
                    let names = POOLINGS.map(|(_, name)| name).join(", ");
                    Error::usage("--pooling", format!("one of {names}"), name, "use one of these names")
                })?,
            };
            student.normalized = teacher.normalized;
            student.embedding_output = if spec.embedding_size() == student.hidden_size { 0 } else { spec.embedding_size() };
        }
    }
    student.check().map_err(|error| match error {
        Error::Invalid { field, expected, found } if field == "task" => {
            Error::usage("--cache", expected, found, "name another --family or another cache")
        }
        other => other,
    })?;
    Ok(student)
}
