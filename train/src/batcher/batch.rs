//! One micro-batch and what it takes from a record. Pure.

use logitcache::cache::record::{IGNORED_LABEL, Record};
use logitcache::error::{Error, Result};
use logitcache::target::{TargetSpec, Task};

/// One micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[sequence]`: ids of the sequences, in the order of their rows.
    pub sequence_ids: Vec<u64>,
    /// `[sequence]`: the documents they were cut from; the two sentences of a pair are neighbours of one document.
    pub document_ids: Vec<u64>,
    /// `[sequence]`: which masked copy each one is.
    pub passes: Vec<u16>,
    /// `[sequence + 1]`: sequence `i` owns the rows `offsets[i]..offsets[i + 1]`.
    pub offsets: Vec<usize>,
    /// `[token]`: input ids, as the teacher saw them.
    pub input_ids: Vec<u32>,
    /// `[token]`: token types, as the teacher saw them; empty where all are 0.
    pub token_type_ids: Vec<u32>,
    /// `[asked]`: the rows that carry targets, strictly ascending.
    pub asked: Vec<u32>,
    /// Stored ids per asked row.
    pub k: usize,
    /// `[asked, k]`: the teacher's most probable ids, descending.
    pub top_ids: Vec<u32>,
    /// `[asked, k]`: the teacher's log-probabilities of those ids at the training temperature.
    pub log_probabilities: Vec<f32>,
    /// `[asked]`: the teacher's largest logit, as it gave it.
    pub max_logit: Vec<f32>,
    /// `[asked]`: the gold answer, -100 where there is none: the original id where the row was masked, the next id, the class of the token or of
    /// the sequence.
    pub labels: Vec<i32>,
    /// `[sequence, values]`: gold numbers, 0 where a sequence has none. A regression or classes that are each for themselves have `classes` of
    /// them, the likeness of a pair of sentences is one; empty for the other tasks.
    pub label_values: Vec<f32>,
    /// `[sequence]`: whether its `label_values` are known; empty where no task has any.
    pub has_label_values: Vec<bool>,
    /// `[sequence, embedding]`: the teacher's vectors; empty for the other tasks.
    pub embeddings: Vec<f32>,
    /// The teacher's hidden states, `[token, hidden_size]` for each layer that was read, in that order; empty where no loss asks for any.
    pub hidden: Vec<Vec<f32>>,
}

/// What a batch takes from a record, and at which temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Targets {
    /// Ids taken per position.
    k: usize,
    /// Ids stored per position.
    stored_k: usize,
    /// The temperature that divides the stored logits, over the one wanted.
    scale: f32,
    log_z_column: usize,
    log_z_columns: usize,
    masked_only: bool,
    task: Task,
    /// Gold numbers of a sequence; 0 where the task has none.
    values: usize,
}

impl Targets {
    /// Targets at `temperature` for every asked position, or of a masked language model for the masked ones alone; of a language model's stored
    /// ids the `top_k` most probable, or all. The other tasks take all classes, or none where the answer is a vector.
    ///
    /// A cache that was written with this `top_k` would give the same numbers: ids are stored in descending order, and neither log Z nor the
    /// rounding of a logit depends on how many are stored. For the rows' order see
    /// `logitcache::cache::writer::GROUP_TOP_K`.
    ///
    /// # Errors
    /// [`Error::Usage`] where the cache holds no log Z at that temperature, saying which it holds, or fewer ids; a `top_k` for a task whose
    /// logits are not of a vocabulary.
    pub fn new(spec: &TargetSpec, temperature: f32, masked_only: bool, top_k: Option<usize>) -> Result<Self> {
        let (stored_k, k, task) = (spec.top_k(), top_k.unwrap_or(spec.top_k()), spec.task());
        if let (Some(k), false) = (top_k, task.is_language_model()) {
            let expected = format!("a cache of a language model: {task} uses all that is stored");
            return Err(Error::usage("--top-k", expected, k.to_string(), "leave it out"));
        }
        if task.is_language_model() && (k == 0 || k > stored_k) {
            let remedy = match k {
                0 => "leave it out to use all that are stored".to_owned(),
                _ => format!("ask for at most {stored_k}, or make the cache anew with precompute --top-k {k}"),
            };
            return Err(Error::usage(
                "--top-k",
                format!("1 to {stored_k} ids, which the cache stores per position"),
                k.to_string(),
                remedy,
            ));
        }
        let Some(log_z_column) = spec.temperature_index(temperature) else {
            let held = spec.temperatures().iter().map(f32::to_string).collect::<Vec<_>>().join(", ");
            let possible = temperature.is_finite() && temperature > 0.0;
            let anew =
                if possible { format!(", or make the cache anew with precompute --temperature {temperature}") } else { String::new() };
            let remedy = format!("choose one of these{anew}");
            return Err(Error::usage("--temperature", format!("one that the cache holds ({held})"), temperature.to_string(), remedy));
        };
        Ok(Self {
            k,
            stored_k,
            scale: spec.logits_temperature() / temperature,
            log_z_column,
            log_z_columns: spec.temperatures().len(),
            masked_only: masked_only && task == Task::MaskedLm,
            task,
            values: match (spec.has_label_values(), spec.embedding_size()) {
                (false, _) => 0,
                (true, 0) => spec.classes(),
                (true, _) => 1,
            },
        })
    }

    /// Ids taken per position.
    pub fn k(&self) -> usize {
        self.k
    }
}

impl Batch {
    /// A batch without rows, for targets of `k` ids.
    pub fn empty(k: usize) -> Self {
        Self { offsets: vec![0], k, ..Self::default() }
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Gold answers: asked rows that have a label, or sequences whose label is a number or several.
    pub fn labelled(&self) -> usize {
        let labels = self.labels.iter().filter(|label| **label != IGNORED_LABEL).count();
        labels + self.has_label_values.iter().filter(|known| **known).count()
    }

    /// Appends a validated record. Its hidden states go to the batch's buffers of the same layers.
    pub fn push(&mut self, record: &Record, targets: &Targets) {
        let first = self.tokens() as u32;
        self.sequence_ids.push(record.sequence_id);
        self.document_ids.push(record.document_id);
        self.passes.push(record.pass);
        self.input_ids.extend(&record.input_ids);
        self.token_type_ids.extend(record.token_type_ids.iter().map(|kind| u32::from(*kind)));
        self.offsets.push(self.input_ids.len());
        self.hidden.resize_with(record.hidden_states.len(), Vec::new);
        self.hidden.iter_mut().zip(&record.hidden_states).for_each(|(layer, states)| layer.extend(states));
        self.embeddings.extend(&record.embedding);
        if targets.values > 0 {
            let known = !record.label_values.is_empty();
            self.has_label_values.push(known);
            self.label_values.extend(&record.label_values);
            self.label_values.extend(std::iter::repeat_n(0.0, if known { 0 } else { targets.values }));
        }
        for (index, position) in record.positions.iter().enumerate() {
            let label = match targets.task {
                // One for the sequence, or none where its gold answers are numbers.
                Task::SequenceClassification => record.labels.first().copied().unwrap_or(IGNORED_LABEL),
                _ => record.labels[usize::from(*position)],
            };
            if targets.masked_only && label == IGNORED_LABEL {
                continue;
            }
            let row = index * targets.stored_k..index * targets.stored_k + targets.k;
            let log_z = record.log_z[index * targets.log_z_columns + targets.log_z_column];
            self.asked.push(first + u32::from(*position));
            self.labels.push(label);
            self.max_logit.push(record.max_logit[index]);
            self.top_ids.extend(&record.top_ids[row.clone()]);
            // ln t = (z - z_max) / T - ln Z; what is stored is divided by the cache's first temperature.
            self.log_probabilities.extend(record.top_logits[row].iter().map(|logit| logit * targets.scale - log_z));
        }
    }
}
