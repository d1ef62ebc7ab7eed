//! Asking fewer positions: the part of the graph that treats every position by itself is fed with the asked ones alone.
//!
//! In front of that part stands, for each tensor `[batch, length, ...]` that enters it, a GatherND of the (row, position) pairs in a further input of
//! the graph, `[1, asked, 2]`. From there on the graph computes one sequence whose tokens are the asked ones, in the order in which they were
//! asked. So the projection to the vocabulary costs what the asked positions cost, and so does what follows the attention in the last layer, unless
//! its hidden state is kept.
//!
//! What the graph does not say, that each of these tensors has a value for every row and position, the session's first run shows: there the last
//! position of the last of several rows is gathered.

use super::prepare::Prepared;
use logitcache::onnx::builder::{INT64, value};
use logitcache::onnx::written::{Dimension, Node};
use logitcache::onnx::{Edit, Graph, Model, Region, position_wise};
use logitcache::target::PositionRule;
use std::collections::BTreeSet;

/// The input that names the asked positions.
pub(super) const ASKED_INPUT: &str = "logitcache.asked";
/// The first version of the standard operations that has GatherND.
const OLDEST_OPSET: i64 = 11;
/// Gathering what is asked anyway costs up to a twentieth; above this share there is too little to win.
const LARGEST_SHARE: f64 = 0.8;

/// Whether gathering is worth its cost where `rule` says what is asked of sequences masked at `mask_probability`.
pub fn pays(rule: PositionRule, mask_probability: f64) -> bool {
    match rule {
        PositionRule::Masked => mask_probability <= LARGEST_SHARE,
        PositionRule::Share(share) => f64::from(share) <= LARGEST_SHARE,
        PositionRule::All | PositionRule::Tokens | PositionRule::Next | PositionRule::Sequence => false,
    }
}

impl Prepared {
    /// Has the graph compute its answers for the positions that are asked, no others. Where it cannot, it computes every one, and a note says so.
    pub fn gather_asked(&mut self) {
        let Some(model) = &self.graph else { return };
        match region(model, &self.output, &kept(self)) {
            Ok(_) => self.gathers = true,
            Err(reason) => self.notes.push(every_position(&reason)),
        }
    }

    /// What the user should know of how the graph will be asked.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// For people: that every position is computed, and why.
pub(super) fn every_position(reason: &str) -> String {
    format!("the teacher computes every position, not the asked ones alone: {reason}")
}

/// The tensors that are answered for every position.
pub(super) fn kept(prepared: &Prepared) -> BTreeSet<&str> {
    prepared.hidden_tensors().values().map(String::as_str).collect()
}

/// The nodes that are to compute the asked positions alone.
pub(super) fn region<'m>(model: &'m Model, output: &str, kept: &BTreeSet<&str>) -> Result<Region<'m>, String> {
    if model.opset() < OLDEST_OPSET {
        return Err(format!("its operations are of version {}, and gathering positions needs {OLDEST_OPSET}", model.opset()));
    }
    let region = position_wise(&Graph::new(model.graph()), output, kept);
    match region.multiplies {
        true => Ok(region),
        false => Err("the projection that ends its graph cannot be told apart".to_owned()),
    }
}

/// The tensor with what `tensor` has for the asked positions.
pub(super) fn asked_name(tensor: &str) -> String {
    format!("{tensor}.asked")
}

/// Adds the input and the nodes that gather.
pub(super) fn gather(model: &Model, output: &str, kept: &BTreeSet<&str>, edit: &mut Edit) -> Result<(), String> {
    let region = region(model, output, kept)?;
    for (tensor, readers) in &region.entrances {
        let gathered = asked_name(tensor);
        let node = Node {
            inputs: vec![(*tensor).to_owned(), ASKED_INPUT.to_owned()],
            outputs: vec![gathered.clone()],
            name: format!("logitcache/gather/{tensor}"),
            op_type: "GatherND".to_owned(),
            ..Node::default()
        };
        // The readers ascend, as the region's nodes do.
        edit.insert(readers[0], node);
        readers.iter().for_each(|reader| edit.redirect(*reader, tensor, &gathered));
    }
    let nodes = model.graph().nodes.iter().enumerate().filter(|(index, _)| region.nodes.contains(index));
    nodes.flat_map(|(_, node)| &node.outputs).for_each(|tensor| edit.forget_type(tensor));
    edit.input(value(ASKED_INPUT, INT64, vec![Dimension::fixed(1), Dimension::open("asked"), Dimension::fixed(2)]));
    Ok(())
}

/// The asked positions of a batch, row after row, as the graph and the answers number them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// `[row]`: how many are asked before each row, and in total.
    starts: Vec<usize>,
    /// Ascending in each row.
    positions: Vec<u16>,
    /// `[asked, 2]`: row and position.
    pub pairs: Vec<i64>,
}

impl Asked {
    /// Fewer are never gathered: a matrix of one row is multiplied by another routine, whose last bit may differ.
    const FEWEST: usize = 2;

    /// Of one list a row, each ascending.
    pub(super) fn of(rows: &[&[u16]]) -> Self {
        let mut asked = Self { starts: vec![0], ..Self::default() };
        for (row, positions) in rows.iter().enumerate() {
            asked.positions.extend_from_slice(positions);
            asked.starts.push(asked.positions.len());
            asked.pairs.extend(positions.iter().flat_map(|position| [row as i64, i64::from(*position)]));
        }
        asked.pairs.resize(asked.pairs.len().max(2 * Self::FEWEST), 0);
        asked
    }

    /// Every position of every row.
    pub(super) fn every(rows: usize, length: usize) -> Self {
        let positions: Vec<u16> = (0..=u16::MAX).take(length).collect();
        Self::of(&vec![&positions[..]; rows])
    }

    /// Answers there are.
    pub(super) fn answers(&self) -> usize {
        self.pairs.len() / 2
    }

    /// Which answers are those of `row`.
    pub(super) fn of_row(&self, row: usize) -> std::ops::Range<usize> {
        self.starts[row]..self.starts[row + 1]
    }

    /// Which answer is that of `position` in `row`; none where it was not asked.
    pub(super) fn place(&self, row: usize, position: usize) -> Option<usize> {
        let places = self.of_row(row);
        let position = u16::try_from(position).ok()?;
        self.positions[places.clone()].binary_search(&position).ok().map(|place| places.start + place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asked_positions_are_found_again() {
        let asked = Asked::of(&[&[1, 4], &[], &[0]]);
        assert_eq!((asked.answers(), &asked.pairs[..]), (3, &[0, 1, 0, 4, 2, 0][..]));
        assert_eq!([asked.place(0, 1), asked.place(0, 4), asked.place(2, 0)], [Some(0), Some(1), Some(2)]);
        assert_eq!([asked.place(0, 0), asked.place(1, 0), asked.place(0, 70_000)], [None; 3]);
        assert_eq!((asked.of_row(0), asked.of_row(1)), (0..2, 2..2));
        assert_eq!(Asked::of(&[&[], &[3]]).pairs, [1, 3, 0, 0], "two at least");
        assert_eq!(Asked::every(2, 3).pairs, [0, 0, 0, 1, 0, 2, 1, 0, 1, 1, 1, 2]);
    }

    #[test]
    fn few_positions_pay() {
        assert!(pays(PositionRule::Masked, 0.15) && pays(PositionRule::Share(0.5), 0.15) && !pays(PositionRule::Masked, 0.9));
        for rule in [PositionRule::All, PositionRule::Tokens, PositionRule::Next, PositionRule::Sequence, PositionRule::Share(1.0)] {
            assert!(!pays(rule, 0.15), "{rule:?}");
        }
    }
}
