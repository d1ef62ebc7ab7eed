//! A sentence encoder: its vectors against the teacher's, and whether they order pairs and neighbours as the teacher's do.

use super::correlation::spearman;
use super::figures::{Better, Figure};
use super::measures::{Measured, Measures, TaskTally};
use super::neighbours::{cosine, likeness};
use super::sample::Sample;
use crate::batcher::Batch;
use logitcache::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Sequences among which neighbours are looked for; a [`Sample`] where there are more.
pub const POOL: usize = 1000;

/// Pairs that are ordered at most; a [`Sample`] where there are more.
pub const MOST_PAIRS: usize = 100_000;

/// What a refusal of the student's vectors calls them.
pub const STUDENT_VECTORS: &str = "student vectors";

/// Correlations are absent where one side never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SentenceVectors {
    /// Sequences scored.
    pub embedded_sequences: u64,
    /// Mean cosine of the student's vector with the teacher's of the same sequence.
    pub teacher_cosine: f64,
    /// Sequences of the pool: all of them, or a sample of [`POOL`].
    pub pool_sequences: u64,
    /// Mean share of the teacher's ten nearest neighbours in the pool, by cosine, that are among the student's ten nearest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall_at_10: Option<f64>,
    /// Spearman's coefficient of the student's cosines with the teacher's, over all pairs within the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_spearman: Option<f64>,
    /// Pairs that the corpus gives: documents of two sequences.
    pub pairs: u64,
    /// Spearman's coefficient of the student's cosines with the teacher's, over these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair_spearman: Option<f64>,
    /// Pairs whose likeness is known.
    pub gold_pairs: u64,
    /// Spearman's coefficient of the student's cosines with the likeness, over these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_gold_spearman: Option<f64>,
    /// The teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_gold_spearman: Option<f64>,
}

impl Measured for SentenceVectors {
    fn count(&self) -> (u64, &'static str) {
        (self.embedded_sequences, "sequences")
    }

    fn divergence(&self) -> f64 {
        1.0 - self.teacher_cosine
    }

    fn figures(&self) -> Vec<Figure> {
        let correlation = "Spearman's correlation of cosines, held out";
        let student = |key, title, value: Option<f64>| value.map(|value| Figure::of_student(key, title, value, Better::Higher));
        let mut figures = vec![
            Figure::of_student("teacher_cosine", "cosine to the teacher's vectors", self.teacher_cosine, Better::Higher)
                .said("cosine to the teacher", "")
                .in_chart("Cosine to the teacher's vectors, held out", ""),
        ];
        let recall = student("recall_at_10", "recall@10, teacher's neighbours", self.recall_at_10);
        figures.extend(recall.map(|figure| figure.said("recall@10", "").in_chart("Recall of the teacher's ten neighbours, held out", "")));
        let pool = student("pool_spearman", "Spearman of cosines, all pairs", self.pool_spearman);
        figures.extend(pool.map(|figure| figure.in_chart(correlation, "all pairs")));
        let pairs = student("pair_spearman", "Spearman of cosines, given pairs", self.pair_spearman);
        figures.extend(pairs.map(|figure| figure.said("Spearman on pairs", "").in_chart(correlation, "given pairs")));
        figures.extend(self.student_gold_spearman.map(|value| {
            let keys = ["student_gold_spearman", "teacher_gold_spearman"];
            let both = Figure::of_both(keys, "Spearman with gold likeness", [value, 0.0], Better::Higher);
            Figure { teacher: self.teacher_gold_spearman, ..both }
                .said("with gold", "")
                .in_chart("Spearman's correlation with gold likeness, held out", "gold")
        }));
        figures
    }
}

/// What the two sentences of a pair are compared by.
#[derive(Clone, Copy, Debug)]
struct Pair {
    student: f64,
    teacher: f64,
    gold: Option<f64>,
}

/// The sequences of the document that is being read.
#[derive(Clone, Debug, Default)]
struct Document {
    id: u64,
    pass: u16,
    sequences: usize,
    first: (Vec<f32>, Vec<f32>),
    gold: Option<f64>,
    pair: Option<(u64, Pair)>,
}

/// Sums over sequences, and bounded samples of vectors and pairs.
#[derive(Clone, Debug)]
pub(super) struct SentenceVectorsTally {
    sequences: u64,
    cosines: f64,
    pool: Sample<(Vec<f32>, Vec<f32>)>,
    document: Option<Document>,
    pair_count: u64,
    pairs: Sample<Pair>,
}

impl Default for SentenceVectorsTally {
    fn default() -> Self {
        let (pool, pairs) = (Sample::new(POOL), Sample::new(MOST_PAIRS));
        Self { sequences: 0, cosines: 0.0, pool, document: None, pair_count: 0, pairs }
    }
}

impl SentenceVectorsTally {
    /// Sequences of a document come one after the other, in one batch or in two.
    fn add_to_document(&mut self, (sequence_id, document, pass): (u64, u64, u16), student: &[f32], teacher: &[f32], gold: Option<f64>) {
        if self.document.as_ref().is_none_or(|current| (current.id, current.pass) != (document, pass)) {
            self.end_document();
            let first = (student.to_vec(), teacher.to_vec());
            self.document = Some(Document { id: document, pass, sequences: 1, first, gold, pair: None });
        } else if let Some(current) = &mut self.document {
            current.sequences += 1;
            if current.sequences == 2 {
                // Both carry the pair's; one is enough.
                let gold = gold.or(current.gold);
                let pair = Pair { student: cosine(&current.first.0, student), teacher: cosine(&current.first.1, teacher), gold };
                current.pair = Some((sequence_id, pair));
            }
        }
    }

    /// A document of two sequences is a pair; one of more is a long text in windows.
    fn end_document(&mut self) {
        let Some(document) = self.document.take().filter(|document| document.sequences == 2) else { return };
        if let Some((sequence_id, pair)) = document.pair {
            self.pair_count += 1;
            self.pairs.add(sequence_id, document.pass, || pair);
        }
    }
}

impl TaskTally for SentenceVectorsTally {
    fn add(&mut self, batch: &Batch, vectors: &[f32]) -> Result<()> {
        let count = batch.sequence_ids.len();
        if count == 0 {
            return Ok(());
        }
        if vectors.is_empty() || vectors.len() != batch.embeddings.len() || !vectors.len().is_multiple_of(count) {
            let expected = format!("{count} vectors of the teacher's width {}", batch.embeddings.len() / count);
            return Err(Error::invalid("width of the student's vectors", expected, format!("{} values", vectors.len())));
        }
        let width = vectors.len() / count;
        for (row, (student, teacher)) in vectors.chunks_exact(width).zip(batch.embeddings.chunks_exact(width)).enumerate() {
            if student.iter().any(|value| !value.is_finite()) {
                let found = format!("another in sequence {}", batch.sequence_ids[row]);
                return Err(Error::invalid(STUDENT_VECTORS, "finite values", found));
            }
            let (sequence_id, pass) = (batch.sequence_ids[row], batch.passes[row]);
            self.sequences += 1;
            self.cosines += cosine(student, teacher);
            self.pool.add(sequence_id, pass, || (student.to_vec(), teacher.to_vec()));
            let gold = batch.has_label_values.get(row).filter(|known| **known);
            let gold = gold.and_then(|_| batch.label_values.get(row)).map(|value| f64::from(*value));
            self.add_to_document((sequence_id, batch.document_ids[row], pass), student, teacher, gold);
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Option<Measures> {
        self.end_document();
        let pool = self.pool.finish();
        let (alike, pairs) = (likeness(&pool), self.pairs.finish());
        let gold = |model: fn(&Pair) -> f64| {
            let known = pairs.iter().filter_map(|pair| Some((model(pair), pair.gold?)));
            spearman(&known.collect::<Vec<_>>())
        };
        (self.sequences > 0).then(|| {
            Measures::SentenceVectors(SentenceVectors {
                embedded_sequences: self.sequences,
                teacher_cosine: self.cosines / self.sequences as f64,
                pool_sequences: pool.len() as u64,
                recall_at_10: alike.recall,
                pool_spearman: spearman(&alike.cosines),
                pairs: self.pair_count,
                pair_spearman: spearman(&pairs.iter().map(|pair| (pair.student, pair.teacher)).collect::<Vec<_>>()),
                gold_pairs: pairs.iter().filter(|pair| pair.gold.is_some()).count() as u64,
                student_gold_spearman: gold(|pair| pair.student),
                teacher_gold_spearman: gold(|pair| pair.teacher),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequences of (document, angle of the teacher's vector, likeness), numbered in order.
    fn batch(first: u64, sequences: &[(u64, f32, Option<f32>)]) -> Batch {
        Batch {
            sequence_ids: (first..first + sequences.len() as u64).collect(),
            document_ids: sequences.iter().map(|sequence| sequence.0).collect(),
            passes: vec![0; sequences.len()],
            embeddings: sequences.iter().flat_map(|(_, angle, _)| [angle.cos(), angle.sin()]).collect(),
            has_label_values: sequences.iter().map(|sequence| sequence.2.is_some()).collect(),
            label_values: sequences.iter().map(|sequence| sequence.2.unwrap_or(0.0)).collect(),
            ..Batch::empty(0)
        }
    }

    #[test]
    fn pairs_are_documents_of_two_sequences_wherever_a_batch_ends() {
        let sequences = [
            (0, 0.0, Some(5.0)),
            (0, 0.1, Some(5.0)),
            (1, 0.0, Some(1.0)),
            (1, 1.5, Some(1.0)),
            (2, 0.3, None),
            (3, 0.0, None),
            (3, 0.7, None),
            (4, 0.1, None),
            (4, 0.2, None),
            (4, 0.3, None),
        ];
        for cut in 0..=sequences.len() {
            let mut tally = Box::new(SentenceVectorsTally::default());
            for (first, part) in [(0, &sequences[..cut]), (cut as u64, &sequences[cut..])] {
                let batch = batch(first, part);
                tally.add(&batch, &batch.embeddings.clone()).unwrap();
            }
            let Some(Measures::SentenceVectors(found)) = tally.finish() else { panic!("figures expected") };
            assert!((found.teacher_cosine - 1.0).abs() < 1e-7 && found.recall_at_10 == Some(1.0), "{found:?}");
            assert_eq!((found.embedded_sequences, found.pool_sequences, found.pairs, found.gold_pairs), (10, 10, 3, 2));
            assert_eq!((found.pair_spearman, found.student_gold_spearman, found.figures().len()), (Some(1.0), Some(1.0), 5));
        }
    }

    #[test]
    fn vectors_of_another_width_are_refused() {
        let batch = batch(0, &[(0, 0.0, None)]);
        let refused = |vectors: &[f32]| SentenceVectorsTally::default().add(&batch, vectors).unwrap_err().to_string();
        assert!(refused(&[1.0]).contains("width 2") && refused(&[1.0, f32::NAN]).contains("finite values"));
    }
}
