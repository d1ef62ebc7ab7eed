//! A sequence as the teacher will see it: masked for a masked language model, as it is for every other task.

use super::inputs::Source;
use super::produce::read_pass;
use super::stop::Stop;
use crate::asked::positions;
use crate::config::Config;
use crate::masking::{Masked, Masking, MaskingRules, count_tokens};
use crate::window::Sequence;
use logitcache::error::Result;
use logitcache::target::PositionRule;
use rayon::ThreadPool;

/// A sequence, what the teacher sees of it and what is asked about it.
#[derive(Clone, Debug)]
pub struct Question {
    /// The sequence before masking.
    pub sequence: Sequence,
    /// Its masked ids, or its own, and the record's labels.
    pub masked: Masked,
    /// The positions asked, ascending.
    pub positions: Vec<u16>,
}

/// Makes questions of sequences.
pub struct Questioner<'a> {
    source: &'a Source,
    rule: PositionRule,
    seed: u64,
    /// Only for a masked language model.
    masking: Option<Masking>,
}

impl<'a> Questioner<'a> {
    /// The questioner of a run; counts the tokens of the whole corpus first where smoothing asks for it.
    ///
    /// # Errors
    /// Those of the flags, the corpus, the tokenizer and the masking.
    pub fn new(config: &Config, source: &'a Source, pool: &ThreadPool, stop: &Stop) -> Result<Self> {
        let rule = config.position_rule(&source.task)?;
        let masked = source.task.task == logitcache::target::Task::MaskedLm;
        let masking = if masked { Some(masking(config, source, pool, stop)?) } else { None };
        Ok(Self { source, rule, seed: config.seed, masking })
    }

    /// Masks the sequence, where the task has masks, and draws the positions asked.
    pub fn ask(&self, pass: u16, sequence: Sequence) -> Question {
        let (ids, id) = (&sequence.input_ids, sequence.sequence_id);
        let Some(masking) = &self.masking else {
            let positions = positions(self.rule, self.source.task.task, self.seed, pass, &sequence, self.source.tokenizer.special());
            let masked = Masked { input_ids: ids.clone(), labels: sequence.labels.clone() };
            return Question { sequence, masked, positions };
        };
        let masked = masking.mask(pass, id, ids, &sequence.words);
        let positions = masking.positions(self.rule, pass, id, ids, &masked.labels);
        Question { sequence, masked, positions }
    }
}

fn masking(config: &Config, source: &Source, pool: &ThreadPool, stop: &Stop) -> Result<Masking> {
    let rules = MaskingRules { probability: config.mask_probability, whole_word: config.whole_word, seed: config.seed };
    let masking = Masking::new(rules, source.tokenizer.special(), source.tokenizer.vocabulary())?;
    let Some(exponent) = config.mask_smoothing else { return Ok(masking) };
    let mut counts = vec![0; source.tokenizer.vocabulary().len()];
    read_pass(config, source, pool, stop, |sequence, _| {
        count_tokens(&mut counts, &sequence.input_ids);
        true
    })?;
    masking.with_smoothing(&counts, exponent)
}
