//! Which positions of a sequence that is not masked the teacher is asked about. Pure.

use crate::tokenize::SpecialTokens;
use crate::window::Sequence;
use logitcache::cache::record::IGNORED_LABEL;
use logitcache::seed::{Purpose, RandomStream};
use logitcache::target::{PositionRule, Task};

/// The positions asked, ascending: none for a sentence embedding, 0 for a sequence's classes. `next` asks where there is a next token, `tokens`
/// where there is no special one, and a share draws from the same positions as the task's default: at least one, if there is any.
///
/// A draw depends on (seed, pass, sequence) alone.
pub fn positions(rule: PositionRule, task: Task, seed: u64, pass: u16, sequence: &Sequence, special: &SpecialTokens) -> Vec<u16> {
    let every = 0..sequence.input_ids.len() as u16;
    let is_token = |position: &u16| !special.contains(sequence.input_ids[usize::from(*position)]);
    let has_next = |position: &u16| sequence.labels.get(usize::from(*position)).is_some_and(|label| *label != IGNORED_LABEL);
    let default = || -> Vec<u16> {
        match task {
            Task::CausalLm => every.clone().filter(has_next).collect(),
            _ => every.clone().filter(is_token).collect(),
        }
    };
    match (rule, task) {
        (_, Task::SentenceEmbedding) => Vec::new(),
        (PositionRule::Sequence, _) => vec![0],
        (PositionRule::All, _) => every.collect(),
        (PositionRule::Tokens | PositionRule::Masked, _) => every.filter(is_token).collect(),
        (PositionRule::Next, _) => every.filter(has_next).collect(),
        (PositionRule::Share(share), _) => {
            let mut asked = default();
            let wanted = (f64::from(share) * asked.len() as f64).round() as usize;
            RandomStream::new(seed, Purpose::Positions, &[u64::from(pass), sequence.sequence_id]).shuffle(&mut asked);
            asked.truncate(wanted.max(1));
            asked.sort_unstable();
            asked
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special() -> SpecialTokens {
        SpecialTokens { mask: None, pad: None, end: None, unknown: None, all: vec![0, 1], beside: vec![] }
    }

    fn asked(rule: PositionRule, task: Task, pass: u16) -> Vec<u16> {
        let labels = if task == Task::CausalLm { vec![5, 6, IGNORED_LABEL, 7, 1, IGNORED_LABEL] } else { Vec::new() };
        let sequence = Sequence { sequence_id: 3, input_ids: vec![0, 5, 6, 7, 7, 1], labels, ..Sequence::default() };
        positions(rule, task, 9, pass, &sequence, &special())
    }

    #[test]
    fn each_rule_asks_its_positions() {
        assert_eq!(asked(PositionRule::Sequence, Task::SequenceClassification, 0), [0]);
        assert_eq!(asked(PositionRule::Sequence, Task::SentenceEmbedding, 0), [0; 0]);
        assert_eq!(asked(PositionRule::Tokens, Task::TokenClassification, 0), [1, 2, 3, 4]);
        assert_eq!(asked(PositionRule::All, Task::TokenClassification, 0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(asked(PositionRule::Next, Task::CausalLm, 0), [0, 1, 3, 4]);
        assert_eq!(asked(PositionRule::All, Task::CausalLm, 0), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_share_is_drawn_from_what_the_task_would_ask() {
        for (task, candidates) in [(Task::CausalLm, [0, 1, 3, 4]), (Task::TokenClassification, [1, 2, 3, 4])] {
            let draws: Vec<Vec<u16>> = (0..20).map(|pass| asked(PositionRule::Share(0.5), task, pass)).collect();
            assert!(draws.iter().all(|draw| draw.len() == 2 && draw[0] < draw[1] && draw.iter().all(|place| candidates.contains(place))));
            assert!(draws.iter().any(|draw| *draw != draws[0]), "each pass has its own draw");
            assert_eq!(draws[0], asked(PositionRule::Share(0.5), task, 0));
            assert_eq!(asked(PositionRule::Share(0.01), task, 0).len(), 1);
        }
    }
}
