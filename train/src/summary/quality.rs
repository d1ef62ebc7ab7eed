//! The figures of the last evaluation that a summary repeats.

use crate::evaluate::FullEvaluation;
use serde::{Deserialize, Serialize};

/// Shares are in [0, 1], over the held-out masked positions unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Share where the teacher's best id is among the student's five best.
    pub teacher_top1_in_student_top5: f64,
    /// Mean share of the teacher's five best that are among the student's five best.
    pub top5_overlap: f64,
    /// The student's perplexity of the original tokens.
    pub student_perplexity: f64,
    /// Positions where the cache stores the original token's logit.
    pub teacher_gold_positions: u64,
    /// The teacher's perplexity over these; absent where there are none.
    pub teacher_perplexity: Option<f64>,
    /// The student's over these.
    pub student_perplexity_there: Option<f64>,
    /// Expected calibration error of the student.
    pub student_ece: f64,
    /// The teacher's.
    pub teacher_ece: f64,
}

impl From<&FullEvaluation> for Quality {
    fn from(found: &FullEvaluation) -> Self {
        Self {
            teacher_top1_in_student_top5: found.teacher_top1_in_student_top5,
            top5_overlap: found.top5_overlap,
            student_perplexity: found.student_perplexity,
            teacher_gold_positions: found.teacher_gold_positions,
            teacher_perplexity: found.teacher_perplexity,
            student_perplexity_there: found.student_perplexity_there,
            student_ece: found.student_calibration.ece,
            teacher_ece: found.teacher_calibration.ece,
        }
    }
}

impl Quality {
    pub(super) fn rows(&self) -> Vec<(String, String, String)> {
        let row = |name: &str, value: f64, remark: String| (name.to_owned(), format!("{value:.4}"), remark);
        let mut rows = vec![
            row("teacher's best in student's 5", self.teacher_top1_in_student_top5, String::new()),
            row("overlap of the 5 best", self.top5_overlap, String::new()),
            row("perplexity, student", self.student_perplexity, String::new()),
        ];
        if let (Some(teacher), Some(student)) = (self.teacher_perplexity, self.student_perplexity_there) {
            let where_stored = format!("student {student:.4} on the same {} positions", self.teacher_gold_positions);
            rows.push(row("perplexity, teacher, where stored", teacher, where_stored));
        }
        rows.push(row("calibration error (ECE), teacher", self.teacher_ece, String::new()));
        rows.push(row("calibration error (ECE), student", self.student_ece, String::new()));
        rows
    }
}
