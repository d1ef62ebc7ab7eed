//! What a student is taught with: the weighted total and its named parts.
//!
//! Each file holds one objective as a function of a row, without tensors; `kernels::head_loss` and `kernels::cosine` run them over batches.

pub mod cosine;
pub mod cross_entropy;
pub mod ghost_kl;

use logitcache::error::{Error, Result};
use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

/// How much each part counts. 0 turns a part off: it is not computed.
///
/// Written and read as `ce=5,mlm=2,cos=1`, the defaults of Sanh et al. (2019); a part that is not named has weight 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeights {
    /// T^2 KL(teacher || student) at the training temperature, over the asked rows.
    pub ce: f64,
    /// Cross-entropy of the original ids at temperature 1, over the masked rows.
    pub mlm: f64,
    /// 1 - cos against the teacher's last hidden state, over all rows.
    pub cos: f64,
}

const PARTS: [&str; 3] = ["ce", "mlm", "cos"];

impl Default for LossWeights {
    fn default() -> Self {
        Self { ce: 5.0, mlm: 2.0, cos: 1.0 }
    }
}

impl fmt::Display for LossWeights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ce={},mlm={},cos={}", self.ce, self.mlm, self.cos)
    }
}

impl FromStr for LossWeights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |found: String| {
            let expected = format!("parts {} with weights of 0 or more, one of them above 0", PARTS.join(", "));
            Error::usage("--loss", expected, found, "write for example --loss ce=5,mlm=2,cos=1")
        };
        let mut weights: [Option<f64>; 3] = [None; 3];
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(|| refuse(format!("{part:?} without a weight")))?;
            let index = PARTS.iter().position(|known| *known == name.trim()).ok_or_else(|| refuse(format!("the part {name:?}")))?;
            let value: f64 = value.trim().parse().map_err(|_| refuse(format!("{value:?} as the weight of {name}")))?;
            if !value.is_finite() || value < 0.0 {
                return Err(refuse(format!("{value} as the weight of {name}")));
            }
            if weights[index].replace(value).is_some() {
                return Err(refuse(format!("{name} twice")));
            }
        }
        if weights.iter().flatten().all(|weight| *weight == 0.0) {
            return Err(refuse(format!("{text:?}, which teaches nothing")));
        }
        let [ce, mlm, cos] = weights.map(Option::unwrap_or_default);
        Ok(Self { ce, mlm, cos })
    }
}

/// The counts a whole optimiser step is averaged over, all of its micro-batches together: each part is a sum divided by its count, so that a
/// step does not depend on how it was cut. A count of 0 is only right where nothing is summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Normalisers {
    /// Asked rows: for `ce`.
    pub asked: usize,
    /// Masked rows: for `mlm`.
    pub masked: usize,
    /// All rows: for `cos`.
    pub tokens: usize,
}

/// A step's loss: `total` as weighted, each part as an unweighted mean (0 where its weight is 0). The parts of the micro-batches of a step
/// add up to the step's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossParts {
    /// The weighted sum.
    pub total: f64,
    /// T^2 KL in nats, per asked row.
    pub ce: f64,
    /// Cross-entropy in nats, per masked row.
    pub mlm: f64,
    /// 1 - cos, per row.
    pub cos: f64,
}

impl LossParts {
    /// The parts and their weighted total.
    pub fn new(weights: &LossWeights, ce: f64, mlm: f64, cos: f64) -> Self {
        Self { total: weights.ce * ce + weights.mlm * mlm + weights.cos * cos, ce, mlm, cos }
    }
}

impl AddAssign for LossParts {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.ce += other.ce;
        self.mlm += other.mlm;
        self.cos += other.cos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_as_they_are_written() {
        let weights: LossWeights = "ce=5,mlm=2,cos=1".parse().unwrap();
        assert_eq!(weights, LossWeights::default());
        assert_eq!(weights.to_string().parse::<LossWeights>().unwrap(), weights);
        assert_eq!("mlm=0.5".parse::<LossWeights>().unwrap(), LossWeights { ce: 0.0, mlm: 0.5, cos: 0.0 });
        assert_eq!("cos=0, ce=1".parse::<LossWeights>().unwrap(), LossWeights { ce: 1.0, mlm: 0.0, cos: 0.0 });
    }

    #[test]
    fn a_refusal_names_the_known_parts() {
        for text in ["kl=1", "ce", "ce=x", "ce=-1", "ce=inf", "ce=1,ce=2", "ce=0", ""] {
            let error = text.parse::<LossWeights>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains("ce, mlm, cos"), "{error}");
        }
        assert!("kl=1".parse::<LossWeights>().unwrap_err().to_string().contains("\"kl\""));
    }

    #[test]
    fn parts_of_micro_batches_add_up() {
        let weights = LossWeights::default();
        let mut sum = LossParts::new(&weights, 0.5, 0.25, 0.125);
        sum += LossParts::new(&weights, 0.5, 0.75, 0.375);
        assert_eq!(sum, LossParts::new(&weights, 1.0, 1.0, 0.5));
        assert_eq!(sum.total, 7.5);
    }
}
