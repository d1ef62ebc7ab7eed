//! How documents are to be cut, checked against the teacher's task.

use crate::task::TeacherTask;
use crate::tokenize::Frame;
use logitcache::error::{Error, Result};
use logitcache::target::Task;

/// Tokens, special ones included, below which a masked language model's document or the rest of one is dropped. (Sanh et al. 2019 drop those of
/// at most 11.)
pub const DEFAULT_MIN_TOKENS: usize = 12;

/// The largest length of a sequence: positions are stored as 16-bit numbers.
pub const LARGEST_LENGTH: usize = u16::MAX as usize;

/// What was asked for; what was not follows from the task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WindowOptions {
    /// Longest sequence, frame included.
    pub max_length: usize,
    /// Shortest sequence, frame included: [`DEFAULT_MIN_TOKENS`] for masked language models, else whatever can be asked about.
    pub min_tokens: Option<usize>,
    /// Tokens that a sequence repeats of the one before it in the same document.
    pub stride: usize,
    /// Whether a document's end is left out rather than made another sequence: by default for tasks of whole sequences.
    pub truncate: Option<bool>,
    /// Whether documents are put one after the other.
    pub pack: bool,
}

/// How a document and its frame lie in sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A frame around each stretch.
    Framed,
    /// A frame around the document, cut as a whole.
    Stream,
    /// The same, the documents one after the other.
    Packed,
}

/// How documents are cut. Fields are private so that only checked values exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowRules {
    pub(super) task: TeacherTask,
    pub(super) layout: Layout,
    pub(super) max_length: usize,
    pub(super) min_tokens: usize,
    /// Shortest part of a document that was kept.
    pub(super) shortest_part: usize,
    pub(super) stride: usize,
    pub(super) truncate: bool,
}

impl WindowRules {
    /// Gives the options their meaning for a task. `frame` is the longest that goes around a sequence: its number of tokens counts.
    ///
    /// # Errors
    /// [`Error::Usage`] where no sequence could have such a length, and for options that the task does not have.
    pub fn new(task: &TeacherTask, options: &WindowOptions, frame: &Frame) -> Result<Self> {
        let causal = task.task == Task::CausalLm;
        let &WindowOptions { max_length, min_tokens, stride, truncate, pack } = options;
        // A causal language model says something of a token that another one comes before.
        let shortest = if causal && !pack { (frame.tokens() + 1).max(2) } else { frame.tokens() + 1 };
        if max_length < shortest || max_length > LARGEST_LENGTH {
            let expected = format!("{shortest} (a token and {} special ones) to {LARGEST_LENGTH}", frame.tokens());
            return Err(Error::usage("--max-length", expected, max_length.to_string(), "choose a length the teacher was trained for"));
        }
        let min_tokens = min_tokens.unwrap_or(if task.task == Task::MaskedLm { DEFAULT_MIN_TOKENS } else { 0 });
        if min_tokens > max_length {
            let expected = format!("at most --max-length {max_length}");
            return Err(Error::usage("--min-tokens", expected, min_tokens.to_string(), "lower it, or raise --max-length"));
        }
        if pack && !causal {
            let found = format!("a teacher of {}", task.task);
            return Err(Error::usage("--pack", "a teacher of causal-lm", found, "leave --pack out: other teachers take a text at a time"));
        }
        let truncated = truncate.unwrap_or(task.task.is_of_sequences());
        if !truncated && task.task == Task::SentenceEmbedding {
            let remedy = "leave the flag out, or split the documents in the corpus";
            let expected = "`truncate` for sentence embeddings: two sequences of a document are a pair";
            return Err(Error::usage("--long-documents", expected, "`cut`", remedy));
        }
        if pack && (truncate == Some(true) || stride > 0) {
            let found =
                if stride > 0 { format!("--stride {stride} with --pack") } else { "--long-documents truncate with --pack".to_owned() };
            return Err(Error::usage("--pack", "sequences that are full and repeat nothing", found, "leave one of the two flags out"));
        }
        let room = if causal { max_length - 1 } else { max_length - frame.tokens() };
        if stride > 0 && (truncated || stride >= room) {
            let found = if truncated { format!("{stride} where documents are truncated") } else { stride.to_string() };
            let expected = format!("less than the {room} tokens of a sequence, and documents that are cut");
            return Err(Error::usage("--stride", expected, found, "type a smaller one, or leave it out"));
        }
        let layout = match (causal, pack) {
            (false, _) => Layout::Framed,
            (true, false) => Layout::Stream,
            (true, true) => Layout::Packed,
        };
        // A part of a stream has no frame, but one token that another comes before.
        let shortest_part = min_tokens.max(if causal { 2 } else { shortest });
        let (task, min_tokens) = (task.clone(), min_tokens.max(shortest));
        Ok(Self { task, layout, max_length, min_tokens, shortest_part, stride, truncate: truncated && !pack })
    }

    /// Shortest sequence kept, frame included.
    pub fn min_tokens(&self) -> usize {
        self.min_tokens
    }

    /// Whether a document's end is left out.
    pub fn truncates(&self) -> bool {
        self.truncate
    }
}
