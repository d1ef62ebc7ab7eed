//! Self-attention that a graph spells out: three projections, their heads, scores, softmax, weighted values.
//!
//! What is told apart computes, for heads of equal width and whatever is added to the scores,
//!
//! ```text
//! softmax(scale * heads(X Wq + bq) heads(X Wk + bk)^T + added) heads(X Wv + bv)
//! ```
//!
//! with the heads put side by side again. Every step is a node that does that and no other; anything more, such as rotated positions, keys from a
//! cache, a softmax of another type or quantised products, is no match.

use super::builder::FLOAT32;
use super::graph::Graph;
use super::messages::{NodeProto, TensorProto};

/// The first version of the standard operations whose softmax is over the last axis where it does not say.
const LAST_BY_DEFAULT: i64 = 13;

/// One self-attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// The number of the node that gives `output`.
    pub last: usize,
    /// The numbers of the nodes that give the product of query and key, and that of the probabilities and the values.
    pub products: [usize; 2],
    /// `[batch, length, width]`: the heads side by side, before the projection that follows.
    pub output: String,
    /// X, `[batch, length, hidden]`.
    pub input: String,
    /// Constants of query, key and value, `[hidden, width]`.
    pub weights: [String; 3],
    /// Constants of query, key and value, `[width]`.
    pub biases: [String; 3],
    /// How many heads.
    pub heads: i64,
    /// What the scores are multiplied by.
    pub scale: f32,
    /// What is added to the scaled scores, each as broadcasting pairs it with `[batch, heads, length, length]`.
    pub added: Vec<String>,
}

/// Every attention of a graph of operations of version `opset`, in the graph's order.
pub fn find_attentions(graph: &Graph<'_>, opset: i64) -> Vec<Attention> {
    let search = Search { graph, opset };
    (0..graph.nodes().len()).filter_map(|last| search.ending_in(last)).collect()
}

struct Search<'g, 'a> {
    graph: &'g Graph<'a>,
    opset: i64,
}

/// X, weights and bias of one projection, and its width.
#[derive(PartialEq)]
struct Projection<'a> {
    input: &'a str,
    weight: &'a str,
    bias: &'a str,
    width: i64,
}

impl<'a> Search<'_, 'a> {
    fn ending_in(&self, last: usize) -> Option<Attention> {
        let output = self.graph.nodes()[last].outputs.first()?;
        let reshape = self.node(output, "Reshape")?;
        let merged = self.node(reshape.inputs.first()?, "Transpose").filter(|node| permutes(node, &[0, 2, 1, 3]))?;
        let weighted = self.node(self.as_it_was(merged.inputs.first()?), "MatMul")?;
        let softmax = self.node(self.unguarded(weighted.inputs.first()?), "Softmax").filter(|node| self.is_over_last(node))?;
        let (value, value_heads) = self.heads(weighted.inputs.get(1)?)?;
        let mut added = Vec::new();
        let (product, scale) = self.scores(softmax.inputs.first()?, &mut added)?;
        let (query, query_scale) = self.scaled(product.inputs.first()?);
        let (key, key_scale) = self.scaled(product.inputs.get(1)?);
        let (query, heads) = self.heads(query)?;
        let (key, key_heads) = self.transposed_heads(key)?;
        let same = [&key, &value].iter().all(|other| (other.input, other.width) == (query.input, query.width));
        let scale = (scale * query_scale * key_scale) as f32;
        // A scale of 0 would be another one to the operation that takes all this over.
        if !same || [key_heads, value_heads] != [heads; 2] || !self.merges(reshape, query.width) || !scale.is_normal() {
            return None;
        }
        let number = |node: &NodeProto| Some(self.graph.producer(node.outputs.first()?)?.0);
        let owned = |part: fn(&Projection<'a>) -> &'a str| [&query, &key, &value].map(|projection| part(projection).to_owned());
        Some(Attention {
            last,
            products: [number(product)?, number(weighted)?],
            output: output.clone(),
            input: query.input.to_owned(),
            weights: owned(|projection| projection.weight),
            biases: owned(|projection| projection.bias),
            heads,
            scale,
            added: added.into_iter().map(str::to_owned).collect(),
        })
    }

    /// The node that makes `tensor`, where it is of that operation.
    fn node(&self, tensor: &str, op_type: &str) -> Option<&'a NodeProto> {
        let (_, node) = self.graph.producer(tensor)?;
        (node.op_type == op_type && matches!(node.domain.as_str(), "" | "ai.onnx")).then_some(node)
    }

    /// What `tensor` is a reshape of to the shape that it has anyway, `[batch, heads, length, head]`, where the shape says so itself: the sizes of the
    /// product and of its operands in their places, and what is left for the heads.
    fn as_it_was(&self, tensor: &'a str) -> &'a str {
        let unchanged = || {
            let reshape = self.node(tensor, "Reshape")?;
            let product = reshape.inputs.first()?;
            let [batch, heads, length, head] = self.node(reshape.inputs.get(1)?, "Concat")?.inputs.as_slice() else { return None };
            let [rows, columns] = self.node(product, "MatMul")?.inputs.as_slice() else { return None };
            let left = self.graph.constant(heads).is_some_and(|size| size.integers() == [-1]);
            let is_size = |part: &'a str, place: i64| {
                let (of, index) = self.size(part)?;
                let index = if index < 0 { index + 4 } else { index };
                // Batch and columns are those of the second operand, and the length that of the first, which is of the query's length.
                let operands: &[&str] = match place {
                    2 => &[rows, product],
                    _ => &[columns, product],
                };
                let of_length = place == 2 && self.is_query_of(of, rows);
                (index == place && (operands.contains(&of) || of_length)).then_some(())
            };
            is_size(batch, 0)?;
            is_size(length, 2)?;
            is_size(head, 3)?;
            left.then_some(product.as_str())
        };
        unchanged().unwrap_or(tensor)
    }

    /// The tensor whose size `part` of a shape is, and in which place.
    fn size(&self, part: &'a str) -> Option<(&'a str, i64)> {
        let unsqueezed = self.node(part, "Unsqueeze").and_then(|node| node.inputs.first()).map_or(part, String::as_str);
        if let Some(shape) = self.node(unsqueezed, "Shape") {
            let [start, end] = ["start", "end"].map(|bound| shape.attribute(bound).map(|attribute| attribute.int));
            return (end? == start? + 1).then_some((shape.inputs.first()?, start?));
        }
        let gather = self.node(unsqueezed, "Gather")?;
        let [place] = self.graph.constant(gather.inputs.get(1)?)?.integers()[..] else { return None };
        let shape =
            self.node(gather.inputs.first()?, "Shape").filter(|shape| shape.attribute("start").is_none_or(|start| start.int == 0))?;
        Some((shape.inputs.first()?, place))
    }

    /// Whether `tensor` is the query whose product with the keys became the probabilities `rows`.
    fn is_query_of(&self, tensor: &str, rows: &'a str) -> bool {
        let query = || {
            let softmax = self.node(self.unguarded(rows), "Softmax")?;
            let (product, _) = self.scores(softmax.inputs.first()?, &mut Vec::new())?;
            Some(self.scaled(product.inputs.first()?).0)
        };
        query() == Some(tensor)
    }

    /// What `tensor` is but for 0 in the place of NaN, which a softmax gives where everything is masked: no batch has a sequence without a token.
    fn unguarded(&self, tensor: &'a str) -> &'a str {
        let guarded = || {
            let [condition, zero, other] = self.node(tensor, "Where")?.inputs.as_slice() else { return None };
            let tested = self.node(condition, "IsNaN")?.inputs.first()?;
            (tested == other && self.number(zero) == Some(0.0)).then_some(other.as_str())
        };
        guarded().unwrap_or(tensor)
    }

    fn is_over_last(&self, softmax: &NodeProto) -> bool {
        match softmax.attribute("axis") {
            Some(axis) => matches!(axis.int, -1 | 3),
            None => self.opset >= LAST_BY_DEFAULT,
        }
    }

    /// The product of query and key in the scores, what it is multiplied by, and what is added after that.
    fn scores(&self, tensor: &'a str, added: &mut Vec<&'a str>) -> Option<(&'a NodeProto, f64)> {
        let (inner, scale) = self.scaled(tensor);
        if let Some(product) = self.node(inner, "MatMul") {
            return Some((product, scale));
        }
        let [first, second] = self.node(tensor, "Add")?.inputs.as_slice() else { return None };
        let before = added.len();
        for (scores, other) in [(first, second), (second, first)] {
            added.push(other);
            if let Some(found) = self.scores(scores, added) {
                return Some(found);
            }
            added.truncate(before);
        }
        None
    }

    /// What `tensor` is a multiple of by numbers in the file, and the multiple.
    fn scaled(&self, mut tensor: &'a str) -> (&'a str, f64) {
        let mut scale = 1.0;
        loop {
            let multiplied = self.node(tensor, "Mul").and_then(|node| {
                let [first, second] = node.inputs.as_slice() else { return None };
                let of = |number: &str, other: &'a str| Some((other, self.number(number)?));
                of(second, first).or_else(|| of(first, second))
            });
            let divided = || {
                let node = self.node(tensor, "Div")?;
                Some((node.inputs.first()?.as_str(), self.number(node.inputs.get(1)?)?.recip()))
            };
            let Some((inner, factor)) = multiplied.or_else(divided) else { return (tensor, scale) };
            (tensor, scale) = (inner, scale * factor);
        }
    }

    fn number(&self, tensor: &str) -> Option<f64> {
        let constant = self.graph.constant(tensor).filter(|constant| constant.elements() == 1)?;
        constant.floats()?.first().map(|value| f64::from(*value))
    }

    /// The projection whose heads `tensor` has, `[batch, heads, length, head]`, and how many they are.
    fn heads(&self, tensor: &str) -> Option<(Projection<'a>, i64)> {
        let node = self.node(tensor, "Transpose").filter(|node| permutes(node, &[0, 2, 1, 3]))?;
        self.split(node.inputs.first()?)
    }

    /// The same of `[batch, heads, head, length]`.
    fn transposed_heads(&self, tensor: &str) -> Option<(Projection<'a>, i64)> {
        let node = self.node(tensor, "Transpose")?;
        match () {
            () if permutes(node, &[0, 2, 3, 1]) => self.split(node.inputs.first()?),
            () if permutes(node, &[0, 1, 3, 2]) => self.heads(node.inputs.first()?),
            () => None,
        }
    }

    /// The same of `[batch, length, heads, head]`.
    fn split(&self, tensor: &str) -> Option<(Projection<'a>, i64)> {
        let reshape = self.node(tensor, "Reshape")?;
        let projection = self.projection(reshape.inputs.first()?)?;
        let [Size::Known(heads), Size::Known(head)] = self.after_batch_and_length::<4>(reshape)?[..] else { return None };
        let heads = match (heads, head) {
            (-1, head) if head > 0 => projection.width / head,
            (heads, _) => heads,
        };
        let fits = heads > 0 && projection.width % heads == 0 && (head == -1 || heads * head == projection.width);
        fits.then_some((projection, heads))
    }

    fn projection(&self, tensor: &str) -> Option<Projection<'a>> {
        let [first, second] = self.node(tensor, "Add")?.inputs.as_slice() else { return None };
        let (bias, product) = if self.graph.constant(first).is_some() { (first, second) } else { (second, first) };
        let [input, weight] = self.node(product, "MatMul")?.inputs.as_slice() else { return None };
        let is_float = |tensor: &&TensorProto| tensor.data_type == FLOAT32;
        let [_, width] = self.graph.constant(weight).filter(is_float)?.dims[..] else { return None };
        let [bias_width] = self.graph.constant(bias).filter(is_float)?.dims[..] else { return None };
        (bias_width == width && width > 0).then_some(Projection { input, weight, bias, width })
    }

    /// Whether a reshape of `[batch, length, heads, head]` puts the heads side by side.
    fn merges(&self, reshape: &'a NodeProto, width: i64) -> bool {
        let sizes = self.after_batch_and_length::<3>(reshape);
        sizes.is_some_and(|sizes| [Size::Known(-1), Size::Known(width)].contains(&sizes[0]))
    }

    /// The sizes that a reshape to `RANK` dimensions gives after the first two, where it leaves these as they are: by a 0, by what some tensor has in
    /// the same place, or one of them by what is left.
    fn after_batch_and_length<const RANK: usize>(&self, reshape: &'a NodeProto) -> Option<Vec<Size>> {
        let mut sizes = self.sizes(reshape.inputs.get(1)?).filter(|sizes| sizes.len() == RANK)?;
        let zero_keeps = reshape.attribute("allowzero").is_none_or(|attribute| attribute.int == 0);
        let stays = |place: usize| match sizes[place] {
            Size::Known(0) => zero_keeps,
            Size::Of(of) => of == place as i64,
            Size::Known(_) | Size::Unknown => false,
        };
        let left = |place: usize| sizes[place] == Size::Known(-1);
        let kept = (stays(0) && (stays(1) || left(1))) || (left(0) && stays(1));
        kept.then(|| sizes.split_off(2))
    }

    /// The sizes in a shape.
    fn sizes(&self, shape: &'a str) -> Option<Vec<Size>> {
        if let Some(constant) = self.graph.constant(shape) {
            return Some(constant.integers().into_iter().map(Size::Known).collect());
        }
        let size = |part: &'a String| match self.graph.constant(part).map(TensorProto::integers).as_deref() {
            Some([size]) => Size::Known(*size),
            Some(_) => Size::Unknown,
            None => self.size(part).map_or(Size::Unknown, |(_, place)| Size::Of(place)),
        };
        Some(self.node(shape, "Concat")?.inputs.iter().map(size).collect())
    }
}

/// A size in a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// In the file; 0 and -1 as a reshape takes them.
    Known(i64),
    /// That of a tensor in this place.
    Of(i64),
    /// Another one, or several.
    Unknown,
}

fn permutes(node: &NodeProto, order: &[i64]) -> bool {
    node.attribute("perm").is_some_and(|attribute| attribute.ints == order)
}

#[cfg(test)]
mod tests;
