//! The student's side: from shards to a student directory. The modules, in the order the data passes through them:
//!
//! - [`cli`], [`config`], [`device`], [`output`]: what was typed, what it means, where it may run and write.
//! - [`stream`]: rows of the cache in a seeded order, read ahead.
//! - [`batcher`]: rows packed into micro-batches and steps.
//! - [`kernels`], [`student`], [`loss`]: fused operations with backward passes, the model made of them, what it is taught.
//! - [`composed`]: the same student of candle's own operations, for a GPU.
//! - [`optim`]: clipping, AdamW, the learning-rate schedule.
//! - [`trainer`]: the loop, where the stages meet.
//! - [`checkpoint`], [`resume`]: what a run needs to go on as if it had never stopped, and where it begins.
//! - [`evaluate`]: the student against its teacher on sequences it was never trained on, by task.
//! - [`export`]: the directory that `transformers` loads.
//! - [`export_onnx`], [`evaluate_student`], [`report_again`]: what else can be done with a student, a subcommand each.
//! - [`metrics`], [`tensorboard`], [`progress`], [`report`], [`summary`]: what was measured, as a log for programs and for TensorBoard, on the
//!   screen, as a page, as a table.
//!
//! Nothing here opens the corpus or a tokenizer's code or runs the teacher's graph (of which first weights may be read), and no setting is read once
//! [`run`] has begun.

pub mod allocator;
pub mod batcher;
pub mod checkpoint;
pub mod cli;
pub mod composed;
pub mod config;
pub mod device;
pub mod evaluate;
pub mod evaluate_student;
pub mod export;
pub mod export_onnx;
pub mod kernels;
pub mod loss;
pub mod metrics;
pub mod optim;
pub mod output;
pub mod progress;
pub mod report;
pub mod report_again;
pub mod resume;
#[cfg(test)]
mod small_cache;
pub mod stream;
pub mod student;
pub mod summary;
pub mod tensorboard;
pub mod trainer;

use checkpoint::Checkpoints;
use config::{Config, Initialisation};
use logitcache::atomic_file::write_bytes_atomically;
use logitcache::error::{Error, Result};
use metrics::MetricsLog;
use output::{Occupancy, RunRecord};
use progress::Progress;
use student::random::at_random;
use student::{FirstValues, HiddenObjective, ParameterSpec, Student};
use summary::{Quality, Summary};
use trainer::{Outcome, StopSignal};

/// Trains the student of `config` and writes its directory, goes on with it where an earlier run stopped, or finds it there finished; returns
/// the table for a person.
///
/// # Errors
/// [`Error::Interrupted`] where a signal ended it early, after a checkpoint was written; see [`config::Config::check`], [`output::examine`],
/// [`Checkpoints::newest`] and [`trainer::train`] for the rest.
pub fn run(config: &Config, stop: &StopSignal) -> Result<String> {
    let mut progress = Progress::new(config.quiet);
    let examine = || output::examine(&config.out, &config.settings).map_err(|error| config.name_files(error));
    examine()?;
    let _lock = output::claim(&config.out)?;
    // Looked at again now that nobody else writes it.
    let occupancy = examine()?;
    let checkpoints = Checkpoints::new(config);
    if matches!(occupancy, Occupancy::Finished { same_length: true, .. }) {
        output::check_finished(&config.out, &checkpoints.list()?)?;
        let (out, table) = (config.out.display(), Summary::read(&config.out)?.table());
        return Ok(format!("{out} already holds the finished student of these settings: nothing was trained.\n\n{table}"));
    }
    let threads = rayon::ThreadPoolBuilder::new().num_threads(config.threads).build();
    let threads = threads.map_err(|error| Error::invalid("--threads", "threads that the system gives", error.to_string()))?;
    threads.install(|| train_and_write(config, &checkpoints, occupancy, &mut progress, stop)).map_err(|error| {
        let last = checkpoints.list().ok().and_then(|mut all| all.pop()).map(|(_, path)| path);
        output::explain_refusal(error, &config.out, last.as_deref())
    })
}

fn train_and_write(
    config: &Config,
    checkpoints: &Checkpoints,
    occupancy: Occupancy,
    progress: &mut Progress,
    stop: &StopSignal,
) -> Result<String> {
    let plan = trainer::plan(config)?;
    progress.say(&plan.to_string());
    let notes = config.objective.truncation_notes(config.targets.k(), config.cache.spec().classes());
    notes.iter().chain(&config.objective.head_note(config.student.task)).for_each(|note| progress.say(note));
    let checkpoint = resume::checkpoint_to_go_on_from(config, checkpoints, occupancy, &plan, progress)?;
    let (student, start, mut log) = match &checkpoint {
        Some(checkpoint) => resume::from_checkpoint(config, checkpoint)?,
        None => resume::from_the_start(config)?,
    };
    config.write_resolved()?;
    progress.start(plan.steps);
    let outcome = trainer::train(config, &student, &plan, start, (&mut log, checkpoints), progress, stop)?;
    progress.finish();
    let record = RunRecord::new(&config.settings, outcome.completed_steps, outcome.signal.is_none());
    if let Some(signal) = outcome.signal {
        record.write(&config.out)?;
        return Err(Error::Interrupted { signal, advice: resume::advice(config, checkpoints, outcome.completed_steps, plan.steps) });
    }
    export::save(&student, &config.teacher_folder(), &config.out)?;
    write_curves(config, &student, &log, plan.steps)?;
    let found = trainer::evaluate_fully(config, &student, progress)?;
    if let Some(found) = &found {
        evaluate_student::write(found, &config.out.join(evaluate_student::EVALUATION_FILE))?;
    }
    let quality = found.as_ref().map(Quality::from);
    let summary = Summary { quality, ..summarise(config, &student, plan, &outcome) }.with_files(&config.out)?;
    summary.write(&config.out)?;
    record.with_model(&config.out)?.write(&config.out)?;
    report_again::write(&config.out)?;
    Ok(summary.table())
}

fn initial_student(config: &Config) -> Result<Student> {
    let shape = &config.student;
    match &config.initialisation {
        Initialisation::Random => Student::new(shape.clone(), candle_core::DType::F32, &mut |parameter: &ParameterSpec| {
            Ok(at_random(shape, config.seed, parameter))
        }),
        Initialisation::Teacher { path, first } => {
            let mut teacher = FirstValues::open(path, shape, first)?;
            Student::new(shape.clone(), candle_core::DType::F32, &mut |parameter: &ParameterSpec| teacher.values(parameter))
        }
    }
}

/// What the student's hidden states are compared with, its projections as they are first.
fn hidden_objective(config: &Config) -> Result<HiddenObjective> {
    let widths = (config.student.hidden_size, config.cache.spec().hidden_size());
    HiddenObjective::new(&config.hidden_pairs, widths, candle_core::DType::F32, config.seed)
}

fn write_curves(config: &Config, student: &Student, log: &MetricsLog, steps: u64) -> Result<()> {
    let shape = &config.student;
    let millions = student.parameter_count() as f64 / 1e6;
    let heading = format!("Student of {} layers, width {}, {millions:.1} million parameters", shape.num_hidden_layers, shape.hidden_size);
    let curves = report::draw(&heading, log.lines(), &config.objective, steps)?;
    write_bytes_atomically(&config.out.join(report::CURVES_FILE), curves.as_bytes())
}

fn summarise(config: &Config, student: &Student, plan: batcher::StepArithmetic, outcome: &Outcome) -> Summary {
    let manifest = config.cache.manifest();
    let (logits_bytes_per_token, hidden_bytes_per_token) = summary::bytes_per_token(manifest);
    Summary {
        teacher_parameters: manifest.teacher.parameters,
        student_parameters: student.parameter_count(),
        training: plan,
        first_evaluation: outcome.first_evaluation,
        evaluation: outcome.evaluation,
        quality: None,
        student_safetensors_bytes: None,
        speed: None,
        logits_bytes_per_token,
        hidden_bytes_per_token,
        precompute_seconds: summary::precompute_seconds(config.cache.directory()),
        train_seconds: outcome.seconds,
        tokens_per_second: outcome.tokens_per_second,
        dtype: Some(config.precision.to_string()),
        threads: config.threads,
        device: Some(config.placement.to_string()),
        curves: config.out.join(report::CURVES_FILE),
        student: config.out.clone(),
    }
}
