//! `--hidden-map`: which hidden states of the student are compared with which of the teacher.
//!
//! State 0 is the embedding output, as `transformers` has it in `hidden_states[0]`: what the first layer reads, after LayerNorm and dropout and,
//! in an ALBERT, after the map to the hidden width. State i is the output of layer i.

use logitcache::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

const FLAG: &str = "--hidden-map";

/// A hidden state of the student and the one of the teacher that it learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HiddenPair {
    /// The student's state.
    pub student: usize,
    /// The teacher's state.
    pub teacher: u32,
}

/// A map as it was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HiddenMap {
    /// The last layer's state of both.
    #[default]
    Last,
    /// The first layer's state of both.
    First,
    /// Every layer of the student, evenly spread: layer i of N learns from layer ceil(i M / N) of M.
    Even,
    /// These pairs, ascending.
    Pairs(Vec<HiddenPair>),
}

impl HiddenMap {
    /// The pairs for a student of `student_layers` and a teacher of `teacher_layers`, ascending and distinct.
    ///
    /// # Errors
    /// [`Error::Usage`] for a state that one of the two does not have.
    pub fn pairs(&self, student_layers: usize, teacher_layers: u32) -> Result<Vec<HiddenPair>> {
        let pairs = match self {
            Self::Last => vec![HiddenPair { student: student_layers, teacher: teacher_layers }],
            Self::First => vec![HiddenPair { student: 1, teacher: 1 }],
            Self::Even => {
                let spread = |layer: usize| (layer as u64 * u64::from(teacher_layers)).div_ceil(student_layers as u64) as u32;
                (1..=student_layers).map(|student| HiddenPair { student, teacher: spread(student) }).collect()
            }
            Self::Pairs(pairs) => pairs.clone(),
        };
        let refuse = |whose: &str, layers: u64, pair: &HiddenPair| {
            let expected = format!("the {whose}'s states 0 (embeddings) to {layers}, its last layer's");
            Error::usage(FLAG, expected, pair.to_string(), "write STUDENT:TEACHER, for example 6:12, or last, first or even")
        };
        for pair in &pairs {
            if pair.student > student_layers {
                return Err(refuse("student", student_layers as u64, pair));
            }
            if pair.teacher > teacher_layers {
                return Err(refuse("teacher", u64::from(teacher_layers), pair));
            }
        }
        Ok(pairs)
    }
}

/// The teacher's states of `pairs`, ascending and distinct: what has to be read.
pub fn teacher_states(pairs: &[HiddenPair]) -> Vec<u32> {
    let mut states: Vec<u32> = pairs.iter().map(|pair| pair.teacher).collect();
    states.sort_unstable();
    states.dedup();
    states
}

impl fmt::Display for HiddenPair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.student, self.teacher)
    }
}

/// Gives a text that parses to the same map.
impl fmt::Display for HiddenMap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last => formatter.write_str("last"),
            Self::First => formatter.write_str("first"),
            Self::Even => formatter.write_str("even"),
            Self::Pairs(pairs) => formatter.write_str(&pairs.iter().map(HiddenPair::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

impl FromStr for HiddenMap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |found: String| {
            let expected = "last, first, even, or a comma list of different STUDENT:TEACHER pairs";
            Error::usage(FLAG, expected, found, "write for example --hidden-map 3:6,6:12")
        };
        match text.trim() {
            "last" => return Ok(Self::Last),
            "first" => return Ok(Self::First),
            "even" => return Ok(Self::Even),
            _ => {}
        }
        let mut pairs = Vec::new();
        for item in text.split(',') {
            let pair = item.trim().split_once(':').and_then(|(student, teacher)| {
                Some(HiddenPair { student: student.trim().parse().ok()?, teacher: teacher.trim().parse().ok()? })
            });
            pairs.push(pair.ok_or_else(|| refuse(format!("{item:?}")))?);
        }
        pairs.sort_unstable();
        match pairs.windows(2).find(|two| two[0] == two[1]) {
            Some(two) => Err(refuse(format!("{} twice", two[0]))),
            None => Ok(Self::Pairs(pairs)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str, student: usize, teacher: u32) -> String {
        let map: HiddenMap = text.parse().unwrap();
        assert_eq!(map.to_string().parse::<HiddenMap>().unwrap(), map);
        HiddenMap::Pairs(map.pairs(student, teacher).unwrap()).to_string()
    }

    #[test]
    fn names_and_lists_become_pairs() {
        assert_eq!(pairs("last", 6, 12), "6:12");
        assert_eq!(pairs("first", 6, 12), "1:1");
        assert_eq!(pairs("even", 6, 12), "1:2,2:4,3:6,4:8,5:10,6:12");
        assert_eq!(pairs("even", 4, 6), "1:2,2:3,3:5,4:6");
        assert_eq!(pairs("even", 4, 2), "1:1,2:1,3:2,4:2");
        assert_eq!(pairs("6:12, 3:6 ,0:0,3:4", 6, 12), "0:0,3:4,3:6,6:12");
        assert_eq!(teacher_states(&"2:4,1:4,0:1".parse::<HiddenMap>().unwrap().pairs(2, 4).unwrap()), [1, 4]);
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for (text, found) in
            [("", "\"\""), ("6", "\"6\""), ("6:12,", "\"\""), ("6:-1", "6:-1"), ("middle", "middle"), ("1:2,1:2", "1:2 twice")]
        {
            let error = text.parse::<HiddenMap>().unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(found) && error.to_string().contains("--hidden-map"), "{error}");
        }
    }

    #[test]
    fn states_that_are_not_there_are_refused() {
        let refused = |text: &str| text.parse::<HiddenMap>().unwrap().pairs(6, 12).unwrap_err().to_string();
        let student = refused("7:12");
        assert!(student.contains("student's states 0 (embeddings) to 6") && student.contains("7:12"), "{student}");
        let teacher = refused("6:13");
        assert!(teacher.contains("teacher's states 0 (embeddings) to 12") && teacher.contains("6:13"), "{teacher}");
        assert!("first".parse::<HiddenMap>().unwrap().pairs(6, 0).is_err(), "a teacher whose layers are not known");
    }
}
