//! What is made of the probability that lies outside the stored ids, each way by name.

use super::Part;

/// K are the stored ids, t the teacher's and p the student's probabilities, a and b their sums over K.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// One more outcome, with 1 - a and 1 - b. Its optimum is t on K and 1 - a outside.
    #[default]
    Ghost,
    /// Taken for 0 in the teacher and left out of the sum.
    Zero,
    /// Taken for 0 in the teacher, whose t / a stand for t.
    RenormalisedTeacher,
    /// Left out on both sides: t / a against p / b. The logits outside K get no gradient.
    RenormalisedBoth,
    /// Spread evenly over the ids outside K in the teacher: (1 - a) / (vocabulary - k) each.
    Uniform,
}

impl Tail {
    /// Every tail.
    pub const ALL: [Self; 5] = [Self::Ghost, Self::Zero, Self::RenormalisedTeacher, Self::RenormalisedBoth, Self::Uniform];

    /// The name in `--loss`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ghost => "ghost",
            Self::Zero => "zero",
            Self::RenormalisedTeacher => "renormalised-teacher",
            Self::RenormalisedBoth => "renormalised-both",
            Self::Uniform => "uniform",
        }
    }

    /// Why `part` cannot have this tail; `beta` is that of `jsd`.
    pub fn refusal(self, part: Part, beta: f64) -> Option<&'static str> {
        let reverse = part == Part::ReverseKl || (part == Part::Jsd && beta == 1.0);
        match self {
            Self::Ghost | Self::RenormalisedBoth => None,
            Self::Zero | Self::RenormalisedTeacher if reverse => Some("it is infinite where the teacher's probability is taken for 0"),
            Self::Zero | Self::RenormalisedTeacher => None,
            Self::Uniform if part == Part::Ce => None,
            Self::Uniform => Some("it would compare the student with an even tail, id by id, which the teacher never had"),
        }
    }

    /// What a truncated cache does to a student that is taught `part` with this tail; nothing where the optimum is the teacher's own.
    pub fn bias(self, part: Part) -> Option<&'static str> {
        match self {
            Self::Ghost => None,
            Self::Zero if part == Part::Tvd => Some("it is content with any p that is nowhere below t on the stored ids"),
            Self::Zero => Some("it pulls p to t/a"),
            Self::RenormalisedTeacher => Some("it pulls p to t/a, surer than the teacher"),
            Self::RenormalisedBoth => Some("it says nothing of the ids outside the stored ones, whatever they get"),
            Self::Uniform => Some("it pulls the ids outside the stored ones to one and the same probability"),
        }
    }
}
