//! Which tokens of a sequence are hidden from the teacher, and which positions it is asked about. Pure.
//!
//! BERT's recipe (Devlin et al. 2019): a share of the tokens is drawn; of those, 80 % become the mask token, 10 % a random token and
//! 10 % stay. DistilBERT (Sanh et al. 2019) draws rare tokens more often: without replacement, with a weight of count^-0.7.
//!
//! How many are drawn: `probability` times the number of tokens that may be masked, rounded up or down at random so that the expected
//! share is exact, and never less than one. (DistilBERT's code rounds up, once for a whole batch, where it hardly shows; in one short
//! sequence, 15 % would become 17 %.) A sequence's draws depend on (seed, pass, sequence) alone: neither on its neighbours nor on the
//! batch it lands in.

use crate::tokenize::{NO_WORD, SpecialTokens};
use logitcache::cache::record::IGNORED_LABEL;
use logitcache::error::{Error, Result};
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::PositionRule;

/// The share of tokens that is masked unless another is asked for.
pub const DEFAULT_PROBABILITY: f64 = 0.15;

/// DistilBERT's exponent of the count in a token's weight.
pub const DISTILBERT_SMOOTHING: f64 = 0.7;

/// Of the tokens drawn, the share that becomes the mask token.
const MASK_SHARE: f64 = 0.8;

/// Of the tokens drawn, the share that becomes a random token; the rest stays as it is.
const RANDOM_SHARE: f64 = 0.1;

/// What a run asks of the masking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskingRules {
    /// The share of maskable tokens that is drawn, above 0 and at most 1.
    pub probability: f64,
    /// Draw words, all pieces of a word together.
    pub whole_word: bool,
    /// The run's seed.
    pub seed: u64,
}

/// A masked sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    /// `[length]`: what the teacher sees.
    pub input_ids: Vec<u32>,
    /// `[length]`: the original id where the token was drawn (also where it stayed as it is), [`IGNORED_LABEL`] elsewhere.
    pub labels: Vec<i32>,
}

/// The rules together with what they need to know of the vocabulary.
#[derive(Clone, Debug)]
pub struct Masking {
    rules: MaskingRules,
    mask: u32,
    /// `[vocabulary]`: whether the id is special, so never masked.
    special: Vec<bool>,
    /// Ids that may replace a token: all that are neither special nor holes.
    replacements: Vec<u32>,
    /// `[vocabulary]`: relative chance of being drawn; empty where all are equal.
    weights: Vec<f64>,
}

impl Masking {
    /// Equal chances for every token that is not special. `vocabulary` is `[id]`, empty where an id has no token.
    ///
    /// # Errors
    /// [`Error::Usage`] for a probability outside (0, 1]; [`Error::Invalid`] for a tokenizer without a mask token, or of special tokens alone.
    pub fn new(rules: MaskingRules, special: &SpecialTokens, vocabulary: &[String]) -> Result<Self> {
        if !(rules.probability > 0.0 && rules.probability <= 1.0) {
            let remedy = "0.15 is what BERT and DistilBERT use";
            return Err(Error::usage("--mask-probability", "a share above 0 and at most 1", rules.probability.to_string(), remedy));
        }
        let Some(mask) = special.mask else { return Err(Error::invalid("special tokens", "a mask token", "none")) };
        let is_special: Vec<bool> = (0..vocabulary.len() as u32).map(|id| special.contains(id)).collect();
        let replaces = |id: &u32| !is_special[*id as usize] && !vocabulary[*id as usize].is_empty();
        let replacements: Vec<u32> = (0..vocabulary.len() as u32).filter(replaces).collect();
        if replacements.is_empty() {
            return Err(Error::invalid("vocabulary", "tokens that are not special", format!("{} special ones", vocabulary.len())));
        }
        Ok(Self { rules, mask, special: is_special, replacements, weights: Vec::new() })
    }

    /// Draws by weight instead: that of a token is max(count, 1)^-`exponent`, with `counts[id]` from the whole corpus (see
    /// [`count_tokens`]). A word weighs as much as its pieces on average.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are not as many counts as ids, or the exponent is not a finite number from 0 on.
    pub fn with_smoothing(mut self, counts: &[u64], exponent: f64) -> Result<Self> {
        if counts.len() != self.special.len() {
            return Err(Error::invalid("token counts", format!("{} values", self.special.len()), format!("{} values", counts.len())));
        }
        if !exponent.is_finite() || exponent < 0.0 {
            return Err(Error::invalid("smoothing exponent", "a finite number from 0 on", exponent.to_string()));
        }
        self.weights = counts.iter().map(|count| ((*count).max(1) as f64).powf(-exponent)).collect();
        Ok(self)
    }

    /// Masks a sequence. `words` gives the word of each token ([`NO_WORD`]: a word of its own) and is looked at under whole-word masking
    /// only. At least one token is drawn, if any is not special.
    pub fn mask(&self, pass: u16, sequence_id: u64, input_ids: &[u32], words: &[u32]) -> Masked {
        let mut stream = RandomStream::new(self.rules.seed, Purpose::Masking, &[u64::from(pass), sequence_id]);
        let maskable: Vec<usize> = (0..input_ids.len()).filter(|position| !self.is_special(input_ids[*position])).collect();
        let target = self.number_drawn(maskable.len(), stream.uniform());
        let units = if self.rules.whole_word { into_words(&maskable, words) } else { maskable.chunks(1).collect() };
        let mut masked = Masked { input_ids: input_ids.to_vec(), labels: vec![IGNORED_LABEL; input_ids.len()] };
        for position in self.draw(units, target, input_ids, &mut stream) {
            masked.labels[position] = input_ids[position] as i32;
            let action = stream.uniform();
            // Both numbers are drawn whatever the action, so that one token's fate leaves the next one's draw in its place.
            let replacement = self.replacements[stream.below(self.replacements.len())];
            if action < MASK_SHARE {
                masked.input_ids[position] = self.mask;
            } else if action < MASK_SHARE + RANDOM_SHARE {
                masked.input_ids[position] = replacement;
            }
        }
        masked
    }

    /// The positions the teacher is asked about, ascending. `input_ids` are the ids before masking, `labels` those of [`Self::mask`].
    ///
    /// A share counts the positions that are not special, rounded to the nearest number; the masked ones are all asked even if they are
    /// more than it.
    pub fn positions(&self, rule: PositionRule, pass: u16, sequence_id: u64, input_ids: &[u32], labels: &[i32]) -> Vec<u16> {
        let is_token = |position: &u16| !self.is_special(input_ids[usize::from(*position)]);
        let is_masked = |position: &u16| labels[usize::from(*position)] != IGNORED_LABEL;
        let every = 0..input_ids.len() as u16;
        match rule {
            PositionRule::All => every.collect(),
            PositionRule::Tokens => every.filter(is_token).collect(),
            PositionRule::Masked => every.filter(is_masked).collect(),
            PositionRule::Next => (0..(input_ids.len() as u16).saturating_sub(1)).collect(),
            PositionRule::Sequence => vec![0],
            PositionRule::Share(share) => {
                let (mut asked, mut others): (Vec<u16>, Vec<u16>) = every.filter(is_token).partition(is_masked);
                let wanted = (f64::from(share) * (asked.len() + others.len()) as f64).round() as usize;
                let mut stream = RandomStream::new(self.rules.seed, Purpose::Positions, &[u64::from(pass), sequence_id]);
                stream.shuffle(&mut others);
                others.truncate(wanted.saturating_sub(asked.len()));
                asked.append(&mut others);
                asked.sort_unstable();
                asked
            }
        }
    }

    fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// `uniform` in [0, 1) decides the rounding.
    fn number_drawn(&self, maskable: usize, uniform: f64) -> usize {
        let expected = self.rules.probability * maskable as f64;
        ((expected + uniform).floor() as usize).max(1).min(maskable)
    }

    /// Draws units (words, or single tokens) without replacement until `target` tokens are reached; ascending positions. A word that would
    /// go past the target is left out, except as the first.
    fn draw(&self, units: Vec<&[usize]>, target: usize, input_ids: &[u32], stream: &mut RandomStream) -> Vec<usize> {
        let weight = |position: &usize| self.weights.get(input_ids[*position] as usize).copied().unwrap_or(1.0);
        // Exponential waiting times: the unit with weight w comes first with probability w / sum, then again among the rest, which is
        // drawing one by one without replacement (Efraimidis and Spirakis 2006).
        let mut waiting: Vec<(f64, &[usize])> = units
            .into_iter()
            .map(|unit| {
                let mean = unit.iter().map(weight).sum::<f64>() / unit.len() as f64;
                (-(1.0 - stream.uniform()).ln() / mean, unit)
            })
            .collect();
        // A stable sort: equal times stay in the order of positions.
        waiting.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut drawn: Vec<usize> = Vec::with_capacity(target);
        for (_, unit) in waiting {
            if drawn.is_empty() || drawn.len() + unit.len() <= target {
                drawn.extend(unit);
            }
            if drawn.len() >= target {
                break;
            }
        }
        drawn.sort_unstable();
        drawn
    }
}

/// Groups neighbouring positions of one word.
fn into_words<'a>(maskable: &'a [usize], words: &[u32]) -> Vec<&'a [usize]> {
    let together = |a: &usize, b: &usize| *b == *a + 1 && words[*a] == words[*b] && words[*a] != NO_WORD;
    maskable.chunk_by(together).collect()
}

/// Adds a sequence's tokens to `counts`, `[id]`. Ids beyond its end are ignored.
pub fn count_tokens(counts: &mut [u64], input_ids: &[u32]) {
    for id in input_ids {
        if let Some(count) = counts.get_mut(*id as usize) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests;
