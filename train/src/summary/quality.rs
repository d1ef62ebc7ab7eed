//! The figures of the last evaluation that a summary repeats.

use crate::evaluate::FullEvaluation;
use serde::{Deserialize, Serialize};

/// Shares are in [0, 1], over the held-out positions unless said otherwise. What a task does not have is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quality {
    /// Share where the teacher's best id is among the student's five best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_top1_in_student_top5: Option<f64>,
    /// Mean share of the teacher's five best that are among the student's five best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5_overlap: Option<f64>,
    /// The student's perplexity of the original tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_perplexity: Option<f64>,
    /// Positions where the cache stores the original token's logit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_gold_positions: Option<u64>,
    /// The teacher's perplexity over these; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_perplexity: Option<f64>,
    /// The student's over these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_perplexity_there: Option<f64>,
    /// Expected calibration error of the student.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub student_ece: Option<f64>,
    /// The teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_ece: Option<f64>,
}

impl From<&FullEvaluation> for Quality {
    fn from(found: &FullEvaluation) -> Self {
        Self {
            teacher_top1_in_student_top5: found.top_five.map(|top| top.teacher_top1_in_student_top5),
            top5_overlap: found.top_five.map(|top| top.top5_overlap),
            student_perplexity: found.gold.map(|gold| gold.student_perplexity),
            teacher_gold_positions: found.gold.map(|gold| gold.teacher_gold_positions),
            teacher_perplexity: found.gold.and_then(|gold| gold.teacher_perplexity),
            student_perplexity_there: found.gold.and_then(|gold| gold.student_perplexity_there),
            student_ece: found.student_calibration.as_ref().map(|calibration| calibration.ece),
            teacher_ece: found.teacher_calibration.as_ref().map(|calibration| calibration.ece),
        }
    }
}

impl Quality {
    pub(super) fn rows(&self) -> Vec<(String, String, String)> {
        let row = |name: &str, value: Option<f64>| value.map(|value| (name.to_owned(), format!("{value:.4}"), String::new()));
        let mut rows: Vec<_> = [
            row("teacher's best in student's 5", self.teacher_top1_in_student_top5),
            row("overlap of the 5 best", self.top5_overlap),
            row("perplexity, student", self.student_perplexity),
        ]
        .into_iter()
        .flatten()
        .collect();
        if let (Some(teacher), Some(student)) = (self.teacher_perplexity, self.student_perplexity_there) {
            let positions = self.teacher_gold_positions.unwrap_or_default();
            let where_stored = format!("student {student:.4} on the same {positions} positions");
            rows.push(("perplexity, teacher, where stored".to_owned(), format!("{teacher:.4}"), where_stored));
        }
        rows.extend(row("calibration error (ECE), teacher", self.teacher_ece));
        rows.extend(row("calibration error (ECE), student", self.student_ece));
        rows
    }
}
