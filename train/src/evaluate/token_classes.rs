//! A classifier of tokens. The gold answer of a word stands at its first token; the others have none.

use super::entities::{EntityTally, Tags};
use super::figures::{Better, Figure};
use super::measures::{Measured, Measures, TaskTally};
use super::rows::{RowSums, scores};
use crate::batcher::Batch;
use logitcache::error::Result;
use serde::{Deserialize, Serialize};

/// Shares are in [0, 1].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenClasses {
    /// Tokens scored.
    pub tagged_tokens: u64,
    /// Share of them where student and teacher choose the same class.
    pub student_teacher_top1: f64,
    /// Their mean divergence of the student from the teacher at temperature 1, in nats.
    pub kl_nats: f64,
    /// Tokens whose class is known.
    pub gold_tokens: u64,
    /// Shares of these where each model's class is the gold one; absent where there are none.
    #[serde(flatten)]
    pub gold: Option<GoldTokens>,
    /// Over entities; absent where no class is known, or where the classes' names are no tags of entities.
    #[serde(flatten)]
    pub entities: Option<GoldEntities>,
}

/// Both models against gold classes of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoldTokens {
    /// The student's.
    pub student_accuracy: f64,
    /// The teacher's.
    pub teacher_accuracy: f64,
}

/// Both models against gold entities, by the rule in [`super::entities`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GoldEntities {
    /// Gold entities.
    pub gold_entities: u64,
    /// The share of the student's entities that are right; 0 where it finds none.
    pub student_entity_precision: f64,
    /// The teacher's.
    pub teacher_entity_precision: f64,
    /// The share of the gold entities that the student finds.
    pub student_entity_recall: f64,
    /// The teacher's.
    pub teacher_entity_recall: f64,
    /// The harmonic mean of the student's two.
    pub student_entity_f1: f64,
    /// The teacher's.
    pub teacher_entity_f1: f64,
}

impl Measured for TokenClasses {
    fn count(&self) -> (u64, &'static str) {
        (self.tagged_tokens, "tokens")
    }

    fn divergence(&self) -> f64 {
        self.kl_nats
    }

    fn figures(&self) -> Vec<Figure> {
        let (accuracy, entities) = ("Agreement and accuracy on held-out tokens", "F1 of held-out entities");
        let mut figures = vec![
            Figure::of_student("student_teacher_top1", "student-teacher agreement", self.student_teacher_top1, Better::Higher)
                .said("agreement with the teacher", "")
                .in_chart(accuracy, "with teacher"),
            Figure::of_student("kl_nats", "KL at temperature 1, nats", self.kl_nats, Better::Lower)
                .said("divergence", " nats")
                .in_chart("Divergence from the teacher there, nats", ""),
        ];
        let both = |keys, title, values| Figure::of_both(keys, title, values, Better::Higher);
        if let Some(gold) = self.gold {
            let values = [gold.student_accuracy, gold.teacher_accuracy];
            let figure = both(["student_accuracy", "teacher_accuracy"], "accuracy", values);
            figures.push(figure.said("accuracy", "").in_chart(accuracy, "gold"));
        }
        if let Some(found) = self.entities {
            let precision = [found.student_entity_precision, found.teacher_entity_precision];
            let recall = [found.student_entity_recall, found.teacher_entity_recall];
            figures.extend([
                both(["student_entity_f1", "teacher_entity_f1"], "entity F1", [found.student_entity_f1, found.teacher_entity_f1])
                    .said("entity F1", "")
                    .in_chart(entities, "F1"),
                both(["student_entity_precision", "teacher_entity_precision"], "entity precision", precision),
                both(["student_entity_recall", "teacher_entity_recall"], "entity recall", recall),
            ]);
        }
        figures
    }
}

/// Counts over tokens.
#[derive(Clone, Debug)]
pub(super) struct TokenClassesTally {
    sums: RowSums,
    labelled: u64,
    student_gold: u64,
    teacher_gold: u64,
    entities: Option<EntityTally>,
}

impl TokenClassesTally {
    /// `class_names` by id.
    pub(super) fn new(class_names: &[String]) -> Self {
        let entities = Tags::new(class_names).map(EntityTally::new);
        Self { sums: RowSums::default(), labelled: 0, student_gold: 0, teacher_gold: 0, entities }
    }
}

impl TaskTally for TokenClassesTally {
    fn add(&mut self, batch: &Batch, logits: &[f32]) -> Result<()> {
        let scores = scores(batch, logits)?;
        let mut row = 0;
        for end in batch.offsets.iter().skip(1) {
            let count = batch.asked[row..].iter().take_while(|token| (**token as usize) < *end).count();
            let sequence = &scores[row..row + count];
            row += count;
            let mut words = [Vec::new(), Vec::new(), Vec::new()];
            for score in sequence {
                self.sums.add(score);
                if let Some(gold) = score.gold {
                    self.labelled += 1;
                    self.student_gold += u64::from(score.student == gold);
                    self.teacher_gold += u64::from(score.teacher == gold);
                    words.iter_mut().zip([gold, score.student, score.teacher]).for_each(|(words, class)| words.push(class));
                }
            }
            if let Some(entities) = &mut self.entities {
                entities.add(&words[0], &words[1], &words[2]);
            }
        }
        Ok(())
    }

    fn entities(&self) -> Option<&EntityTally> {
        self.entities.as_ref().filter(|_| self.labelled > 0)
    }

    fn finish(self: Box<Self>) -> Option<Measures> {
        let share = |count: u64| count as f64 / self.labelled as f64;
        let entities = self.entities().map(|tally| {
            let (gold_entities, student, teacher) = tally.overall();
            GoldEntities {
                gold_entities,
                student_entity_precision: student.precision,
                teacher_entity_precision: teacher.precision,
                student_entity_recall: student.recall,
                teacher_entity_recall: teacher.recall,
                student_entity_f1: student.f1,
                teacher_entity_f1: teacher.f1,
            }
        });
        (self.sums.rows > 0).then(|| {
            Measures::TokenClasses(TokenClasses {
                tagged_tokens: self.sums.rows,
                student_teacher_top1: self.sums.agreement(),
                kl_nats: self.sums.kl_nats(),
                gold_tokens: self.labelled,
                gold: (self.labelled > 0)
                    .then(|| GoldTokens { student_accuracy: share(self.student_gold), teacher_accuracy: share(self.teacher_gold) }),
                entities,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sequences of three tokens; of the first the last token continues a word.
    #[test]
    fn entities_end_with_their_sequence_and_only_first_tokens_count() {
        let names = ["O", "B-PER", "I-PER"].map(str::to_owned);
        let (gold, teacher, student) = ([1, 2, -100, 2, 0, 0], [1u32, 2, 0, 2, 2, 0], [1usize, 2, 1, 2, 0, 1]);
        let batch = Batch {
            offsets: vec![0, 3, 6],
            asked: (0..6).collect(),
            labels: gold.to_vec(),
            top_ids: teacher.iter().flat_map(|id| [*id, (id + 1) % 3, (id + 2) % 3]).collect(),
            log_probabilities: [0.8f32.ln(), 0.1f32.ln(), 0.1f32.ln()].repeat(6),
            ..Batch::empty(3)
        };
        let logits: Vec<f32> = student.iter().flat_map(|id| (0..3).map(move |class| f32::from(u8::from(class == *id)))).collect();
        let mut tally = Box::new(TokenClassesTally::new(&names));
        tally.add(&batch, &logits).unwrap();
        let Some(Measures::TokenClasses(found)) = tally.finish() else { panic!("figures expected") };
        assert_eq!((found.tagged_tokens, found.gold_tokens, found.student_teacher_top1), (6, 5, 0.5));
        let gold = found.gold.unwrap();
        assert_eq!((gold.student_accuracy, gold.teacher_accuracy), (0.8, 0.8));
        let entities = found.entities.unwrap();
        assert_eq!((entities.gold_entities, entities.student_entity_recall), (2, 1.0), "one at each end of the border");
        assert_eq!((entities.student_entity_precision, entities.teacher_entity_precision), (2.0 / 3.0, 0.5));
    }
}
