//! Asking the teacher: the session, its inputs by name, and one batch at a time.

use super::fuse::spelled_out;
use super::gather::{Asked, every_position};
use super::inputs::{Input, Role, TOKEN_INPUTS};
use super::outputs::{Expected, OutputShape};
use super::reduce::{self, FittingReduction};
use super::{Answer, Prepared, Runtime};
use crate::topk::Head;
use logitcache::cache::manifest::TeacherSummary;
use logitcache::error::{Error, Result};
use logitcache::target::Task;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session, SessionInputValue};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Execution providers this build has; a provider that ONNX Runtime cannot register is an error, never a fallback.
pub const PROVIDERS: &[&str] = if cfg!(feature = "cuda") { &["cpu", CUDA] } else { &["cpu"] };
/// NVIDIA's.
const CUDA: &str = "cuda";
/// Where ONNX Runtime looks for external data of a model that it is given as bytes.
const EXTERNAL_DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// A batch of padded sequences; every vector is `[rows, length]`, row-major, padding on the right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TeacherBatch {
    /// Sequences.
    pub rows: usize,
    /// Tokens per sequence, padding included.
    pub length: usize,
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// 1 for a token, 0 for padding.
    pub attention_mask: Vec<i64>,
    /// Segment ids; may be empty where the teacher has none.
    pub token_type_ids: Vec<i64>,
}

/// An open session.
pub struct Teacher {
    session: Session,
    options: RunOptions<HasSelectedOutputs>,
    inputs: Vec<Input>,
    model: PathBuf,
    summary: TeacherSummary,
    /// The outputs with the hidden states, in the order of `hidden_layers`.
    hidden_outputs: Vec<String>,
    hidden_layers: Vec<u32>,
    /// The output that is read, and its shape.
    shape: OutputShape,
    /// Length of its rows.
    answer_width: usize,
    vocabulary_size: usize,
    hidden_size: usize,
    maximum_length: Option<usize>,
    first_position: i64,
    gathers: bool,
    reduction: Option<FittingReduction>,
    bias: Option<Arc<[f32]>>,
    head: Option<Arc<Head>>,
    notes: Vec<String>,
}

impl Teacher {
    /// Opens the session and asks it once, so that every later answer has the shape that is known from then on. `threads`: 0 lets the runtime choose.
    /// Where the graph turns out not to compute attention as one operation, or asked positions alone, it computes what its file says, and a note says so.
    ///
    /// # Errors
    /// [`Error::Usage`] for a provider that this build does not have; [`Error::Data`] for inputs that cannot be filled, and for outputs whose type or
    /// shape, or whose size in the graph, in config.json and in the answer, do not agree.
    pub fn open(runtime: &Runtime, mut prepared: Prepared, threads: usize, provider: &str) -> Result<Self> {
        if !PROVIDERS.contains(&provider) {
            let remedy = "leave it out, or build with that provider";
            return Err(Error::usage("--provider", format!("one that this build has: {}", PROVIDERS.join(", ")), provider, remedy));
        }
        let plain = prepared.without_graph();
        let mut opened = Self::open_as_prepared(runtime, prepared, threads, provider);
        // Each is tried where the one before is refused, and says what it is without. Where the graph is at fault in another way, the last meets the same
        // error.
        for (fuses, gathers) in [(true, false), (false, true), (false, false)] {
            let tried = (plain.fuses, plain.gathers);
            let Err(refused) = &opened else { break };
            if (fuses, gathers) == tried || (fuses && !plain.fuses) || (gathers && !plain.gathers) {
                continue;
            }
            let mut plainer = plain.clone();
            (plainer.fuses, plainer.gathers) = (fuses, gathers);
            let left_out = [(plain.fuses && !fuses, spelled_out as fn(&str) -> String), (plain.gathers && !gathers, every_position)];
            plainer.notes.extend(left_out.iter().filter(|(is_left_out, _)| *is_left_out).map(|(_, note)| note(&refused.to_string())));
            opened = Self::open_as_prepared(runtime, plainer, threads, provider);
        }
        opened
    }

    fn open_as_prepared(runtime: &Runtime, mut prepared: Prepared, threads: usize, provider: &str) -> Result<Self> {
        let model = prepared.model.clone();
        let changed = prepared.take_changed()?;
        let builder = session_builder(runtime, threads, provider).map_err(Error::library("prepare to open", &model))?;
        let session = open_session(builder, &model, changed).map_err(Error::library("open", &model))?;
        let inputs = session.inputs().iter().map(|outlet| Input::of(&model, outlet)).collect::<Result<Vec<_>>>()?;
        for (name, role) in &TOKEN_INPUTS[..2] {
            if !inputs.iter().any(|input| input.role == *role) {
                let found = inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(Error::data(&model, "inputs", format!("one named {name}"), found, "export the model with that input"));
            }
        }
        let hidden_layers: Vec<u32> = prepared.hidden_tensors().keys().copied().collect();
        let hidden_outputs: Vec<String> = prepared.hidden_tensors().values().cloned().collect();
        let names: std::collections::BTreeSet<&String> = hidden_outputs.iter().collect();
        let read_output = prepared.read_output();
        let answers = if prepared.reduction.is_some() { &reduce::OUTPUTS[..] } else { &[read_output.as_str()] };
        let hidden = names.into_iter().map(String::as_str).filter(|name| !answers.contains(name));
        let names = answers.iter().copied().chain(hidden);
        let selector = names.fold(OutputSelector::no_default(), |selector, name| selector.with(name));
        let options = RunOptions::new().map_err(Error::library("prepare a run of", &model))?.with_outputs(selector);
        let summary = TeacherSummary {
            parameters: prepared.parameters,
            layers: prepared.layers,
            hidden_size: prepared.config.hidden_size.or(prepared.width).unwrap_or(0),
            provider: provider.to_owned(),
            logits_output: prepared.output.clone(),
            hidden_tensors: prepared.hidden_tensors().clone(),
            pooling: prepared.task.pooling,
            normalized: prepared.task.normalized,
        };
        let mut teacher = Self {
            session,
            options,
            inputs,
            model,
            summary,
            hidden_outputs,
            hidden_layers,
            shape: OutputShape::of(prepared.task.task, &read_output),
            answer_width: 0,
            vocabulary_size: 0,
            hidden_size: 0,
            maximum_length: prepared.config.maximum_length.map(|length| length as usize),
            first_position: i64::from(prepared.config.first_position),
            gathers: prepared.gathers,
            reduction: prepared.reduction.clone(),
            bias: prepared.bias.as_ref().map(|bias| bias.values.clone()),
            head: prepared.head.as_ref().map(|left| left.head.clone()),
            notes: prepared.notes.clone(),
        };
        teacher.probe(&prepared)?;
        Ok(teacher)
    }

    /// For the manifest.
    pub fn summary(&self) -> &TeacherSummary {
        &self.summary
    }

    /// What input ids are below; for a language model the length of a logits row.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// Length of what is answered: logits over the vocabulary or the classes, or the vector of a sentence.
    pub fn width(&self) -> usize {
        self.head.as_ref().map_or(self.answer_width, |head| head.width())
    }

    /// Length of a row of the output that is read: [`width`](Self::width), or the depth of a [`head`](Self::head) that is left.
    pub fn answer_width(&self) -> usize {
        self.answer_width
    }

    /// Width of a hidden state; 0 where none was asked for.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Whether the graph takes segment ids.
    pub fn has_token_type_ids(&self) -> bool {
        self.inputs.iter().any(|input| input.role == Role::TokenTypeIds)
    }

    /// Layers whose hidden states are answered, ascending.
    pub fn hidden_layers(&self) -> &[u32] {
        &self.hidden_layers
    }

    /// Tokens of a sequence at most, where config.json says so.
    pub fn maximum_length(&self) -> Option<usize> {
        self.maximum_length
    }

    /// `[width]`: what is still to be added to every row of logits, where [`Prepared::leave_bias`] has taken it out of the graph.
    pub fn bias(&self) -> Option<Arc<[f32]>> {
        self.bias.clone()
    }

    /// What makes logits of the answers, where [`Prepared::leave_head`] has taken it out of the graph.
    pub fn head(&self) -> Option<Arc<Head>> {
        self.head.clone()
    }

    /// Whether the graph computes no answers but for the positions asked.
    pub fn gathers(&self) -> bool {
        self.gathers
    }

    /// What the user should know of how the graph is asked.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Runs one batch, asking about every position, and hands a view of the outputs to `read`.
    ///
    /// # Errors
    /// As [`run_asked`](Self::run_asked).
    pub fn run<R>(&mut self, batch: &TeacherBatch, read: impl FnOnce(&Answer<'_>) -> Result<R>) -> Result<R> {
        let asked = self.gathers.then(|| Asked::every(batch.rows, batch.length));
        self.run_places(batch, asked.unwrap_or_default(), read)
    }

    /// Runs one batch and hands a view of the outputs to `read`. `asked`: for each row the positions that are asked, ascending; where the graph
    /// [`gathers`](Self::gathers), others have no answers.
    ///
    /// # Errors
    /// Those of `read`; [`Error::Invalid`] for a batch whose parts have other lengths; the runtime's own, and outputs of an unexpected shape.
    pub fn run_asked<R>(&mut self, batch: &TeacherBatch, asked: &[&[u16]], read: impl FnOnce(&Answer<'_>) -> Result<R>) -> Result<R> {
        let beyond = asked.iter().flat_map(|row| row.last()).find(|position| usize::from(**position) >= batch.length);
        if asked.len() != batch.rows || beyond.is_some() {
            let found = format!("{} rows, {beyond:?} among them", asked.len());
            return Err(Error::invalid("asked positions", format!("{} rows of positions below {}", batch.rows, batch.length), found));
        }
        let asked = self.gathers.then(|| Asked::of(asked));
        self.run_places(batch, asked.unwrap_or_default(), read)
    }

    fn run_places<R>(&mut self, batch: &TeacherBatch, asked: Asked, read: impl FnOnce(&Answer<'_>) -> Result<R>) -> Result<R> {
        let failed = |error: ort::Error| {
            Error::library(format!("run a batch of [{}, {}] tokens through", batch.rows, batch.length), &self.model)(error)
        };
        let size = batch.rows * batch.length;
        let positions: Vec<i64> = match self.inputs.iter().any(|input| input.role == Role::PositionIds) {
            true => (0..size).map(|index| self.first_position + (index % batch.length) as i64).collect(),
            false => Vec::new(),
        };
        let mut feed: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            feed.push((&input.name, input.value(&self.model, batch, &positions, &asked.pairs)?));
        }
        let outputs = self.session.run_with_options(feed, &self.options).map_err(failed)?;
        let expected = Expected {
            shape: &self.shape,
            asked: self.gathers.then_some(&asked),
            reduction: self.reduction.as_ref(),
            hidden: &self.hidden_outputs,
            sizes: [self.answer_width, self.hidden_size],
        };
        let answer = Answer::new(&self.model, &outputs, [batch.rows, batch.length], expected)?;
        read(&answer)
    }

    /// One run of 2 x 3 tokens: sizes that the graph leaves open become known, and those that are known are checked.
    fn probe(&mut self, prepared: &Prepared) -> Result<()> {
        let size = 2 * 3;
        let batch =
            TeacherBatch { rows: 2, length: 3, input_ids: vec![0; size], attention_mask: vec![1; size], token_type_ids: vec![0; size] };
        let output = self.shape.name.clone();
        let declared = self.session.outputs().iter().find(|outlet| outlet.name() == output);
        let declared = declared.and_then(|outlet| outlet.dtype().tensor_shape()?.last().copied());
        let (answer_width, hidden_size) = self.run(&batch, |answer| Ok((answer.width(), answer.hidden_size())))?;
        let config = &prepared.config;
        let agree = |path: &Path, field: &str, expected: usize, found: Option<u64>, remedy: &str| match found {
            Some(found) if found != expected as u64 => {
                Err(Error::data(path, field, format!("{expected}, as the teacher answers"), found.to_string(), remedy))
            }
            _ => Ok(()),
        };
        let of_export = "use the config.json of this export";
        let field = format!("output {output}");
        agree(&self.model, &field, answer_width, declared.and_then(|size| u64::try_from(size).ok()), "export the model again")?;
        if let Some(head) = self.head.as_ref().filter(|head| head.depth() != answer_width) {
            let expected = format!("rows of {} numbers, as many as the head's weights have", head.depth());
            return Err(Error::data(&self.model, field, expected, answer_width.to_string(), "export the model again"));
        }
        let width = self.head.as_ref().map_or(answer_width, |head| head.width());
        let config_path = config.path.as_deref().unwrap_or(&self.model);
        let task = &prepared.task;
        match task.task {
            Task::MaskedLm | Task::CausalLm => {
                agree(config_path, "vocab_size", width, config.vocabulary_size.map(u64::from), of_export)?;
            }
            Task::SequenceClassification | Task::TokenClassification => {
                agree(config_path, "id2label", width, Some(task.class_names.len() as u64), of_export)?;
            }
            // The states are those of the encoder; a vector that the graph makes may have any width.
            Task::SentenceEmbedding if self.shape.rank == 3 => {
                agree(config_path, "hidden_size", width, config.hidden_size.map(u64::from), of_export)?;
            }
            Task::SentenceEmbedding => {}
        }
        if let (Some(expected), Some((layer, name))) = (config.hidden_size, prepared.hidden_tensors().first_key_value())
            && hidden_size != expected as usize
        {
            let remedy = format!("{of_export}, or name another tensor with --hidden-tensor {layer}=NAME");
            let expected = format!("the hidden size of config.json, {expected}");
            return Err(Error::data(&self.model, format!("output {name}"), expected, hidden_size.to_string(), remedy));
        }
        let known =
            config.vocabulary_size.map(|size| size as usize).or(prepared.embedding_rows.and_then(|rows| usize::try_from(rows).ok()));
        let vocabulary_size = if task.task.is_language_model() { Some(width) } else { known };
        let Some(vocabulary_size) = vocabulary_size else {
            let remedy = "put the teacher's config.json with vocab_size beside the model";
            return Err(Error::data(&self.model, "vocabulary", "a table of embeddings that input_ids are looked up in", "none", remedy));
        };
        (self.answer_width, self.vocabulary_size, self.hidden_size) = (answer_width, vocabulary_size, hidden_size);
        Ok(())
    }
}

fn session_builder(runtime: &Runtime, threads: usize, provider: &str) -> ort::Result<SessionBuilder> {
    let builder = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads)?
        // Threads of a run spin between its operators, since waking one costs as much as a small operator; between two runs they sleep, since the
        // top-k needs their processors.
        .with_intra_op_spinning(true)?
        .with_config_entry("session.force_spinning_stop", "1")?;
    let cpu = ort::ep::CPU::default().with_arena_allocator(true).build().error_on_failure();
    match provider {
        #[cfg(feature = "cuda")]
        CUDA => Ok(builder.with_execution_providers([ort::ep::CUDA::default().build().error_on_failure(), cpu])?),
        _ => Ok(builder.with_execution_providers([cpu])?),
    }
}

/// `changed`: the model to open in place of the file.
fn open_session(mut builder: SessionBuilder, model: &Path, changed: Option<Vec<u8>>) -> ort::Result<Session> {
    let model = std::path::absolute(model).map_err(ort::Error::wrap)?;
    let Some(bytes) = changed else { return builder.commit_from_file(model) };
    let folder = model.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    builder.with_config_entry(EXTERNAL_DATA_FOLDER, folder)?.commit_from_memory(&bytes)
}
