//! Layer normalisations in a graph, in the three forms in which exporters and optimisers leave them.

use super::graph::Graph;
use super::messages::NodeProto;

/// A layer normalisation (Ba, Kiros and Hinton 2016): scale * (x - mean) / deviation + bias over the last dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerNorm<'a> {
    /// The number of the node that gives the output.
    pub node: usize,
    /// That node's name; may be empty.
    pub node_name: &'a str,
    /// The normalised tensor.
    pub output: &'a str,
    /// The name of the scale: for an exported module its path, such as `encoder.layer.0.output.LayerNorm.weight`.
    pub scale: &'a str,
    /// The length of the scale, which is the width of the output, where the file says so.
    pub width: Option<u64>,
    /// The non-constant tensors whose sum is normalised, copies seen through: two where a residual was added; none where the sum is inside the node.
    pub addends: Vec<&'a str>,
}

impl<'a> LayerNorm<'a> {
    /// The residual: the one of two addends that the other one is computed from.
    pub fn residual(&self, graph: &Graph<'a>) -> Option<&'a str> {
        let [a, b] = self.addends[..] else { return None };
        if graph.depends_on(a, b) {
            return Some(b);
        }
        graph.depends_on(b, a).then_some(a)
    }
}

/// Every layer normalisation, in node order.
///
/// - `LayerNormalization` (opset 17, and ONNX Runtime's own before that),
/// - `SkipLayerNormalization` and `EmbedLayerNormalization`, into which ONNX Runtime fuses it with the sum in front of it,
/// - the sub-graph `Add(Mul(Div(Sub(x, ReduceMean(x)), deviation), scale), bias)` of exports below opset 17.
pub fn find_layer_norms<'a>(graph: &Graph<'a>) -> Vec<LayerNorm<'a>> {
    graph.nodes().iter().enumerate().filter_map(|(index, node)| layer_norm(graph, index, node)).collect()
}

fn layer_norm<'a>(graph: &Graph<'a>, index: usize, node: &'a NodeProto) -> Option<LayerNorm<'a>> {
    let input = |position: usize| node.inputs.get(position).map(String::as_str).filter(|name| !name.is_empty());
    let (scale, addends) = match node.op_type.as_str() {
        "LayerNormalization" => (input(1)?, addends(graph, input(0)?)),
        "SkipLayerNormalization" => (input(2)?, vec![graph.origin(input(0)?), graph.origin(input(1)?)]),
        "EmbedLayerNormalization" => (input(5)?, Vec::new()),
        "Add" => {
            let (x, scale) = spelled_out(graph, node)?;
            (scale, addends(graph, x))
        }
        _ => return None,
    };
    let width = graph.constant(scale).and_then(|tensor| u64::try_from(*tensor.dims.last()?).ok());
    Some(LayerNorm { node: index, node_name: &node.name, output: node.outputs.first()?, scale, width, addends })
}

/// The tensors that are summed into `tensor`, less the constant ones.
fn addends<'a>(graph: &Graph<'a>, tensor: &'a str) -> Vec<&'a str> {
    let tensor = graph.origin(tensor);
    let Some(("Add", [a, b])) = made_by(graph, tensor) else { return vec![tensor] };
    match (graph.constant(a), graph.constant(b)) {
        (None, None) => vec![graph.origin(a), graph.origin(b)],
        (Some(_), None) => addends(graph, b),
        (None, Some(_)) => addends(graph, a),
        (Some(_), Some(_)) => Vec::new(),
    }
}

/// For the last node of a layer normalisation that is spelled out: what is normalised, and the scale.
fn spelled_out<'a>(graph: &Graph<'a>, add: &'a NodeProto) -> Option<(&'a str, &'a str)> {
    let [a, b] = &add.inputs[..] else { return None };
    let (scaled, _) = other_than_constant(graph, a, b)?;
    let ("Mul", [a, b]) = made_by(graph, graph.origin(scaled))? else { return None };
    let (normalised, scale) = other_than_constant(graph, a, b)?;
    let ("Div", [centred, _]) = made_by(graph, graph.origin(normalised))? else { return None };
    let ("Sub", [x, mean]) = made_by(graph, graph.origin(centred))? else { return None };
    // The axes are an attribute below opset 18 and an input from then on.
    let ("ReduceMean", [averaged, ..]) = made_by(graph, graph.origin(mean))? else { return None };
    (graph.origin(averaged) == graph.origin(x)).then_some((x, scale))
}

fn made_by<'a>(graph: &Graph<'a>, tensor: &str) -> Option<(&'a str, &'a [String])> {
    graph.producer(tensor).map(|(_, node)| (node.op_type.as_str(), &node.inputs[..]))
}

/// The one of two tensors that is no constant, then the one that is.
fn other_than_constant<'a>(graph: &Graph<'a>, a: &'a str, b: &'a str) -> Option<(&'a str, &'a str)> {
    match (graph.constant(a), graph.constant(b)) {
        (None, Some(_)) => Some((a, b)),
        (Some(_), None) => Some((b, a)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::graph::tests::parse;
    use super::*;

    const SPELLED_OUT: &str = "\
        Add: word position -> sum
        ReduceMean: sum -> mean
        Sub: sum mean -> centred
        Pow: centred c2 -> squares
        ReduceMean: squares -> variance
        Sqrt: variance -> deviation
        Div: centred deviation -> normalised
        Mul: normalised c_scale -> scaled
        Add: scaled c_bias -> out";

    #[test]
    fn a_spelled_out_one_is_found_whatever_the_order_of_factors() {
        for text in [
            SPELLED_OUT.to_owned(),
            SPELLED_OUT.replace("normalised c_scale", "c_scale normalised").replace("scaled c_bias", "c_bias scaled"),
        ] {
            let message = parse(&text);
            let graph = Graph::new(&message);
            let found = find_layer_norms(&graph);
            assert_eq!(found.len(), 1);
            let norm = &found[0];
            assert_eq!((norm.output, norm.scale, norm.width), ("out", "c_scale", Some(8)));
            assert_eq!(norm.addends, ["word", "position"]);
            assert_eq!(norm.residual(&graph), None, "neither embedding is computed from the other");
        }
    }

    #[test]
    fn a_near_miss_is_not_taken() {
        for (part, other) in [
            ("ReduceMean: sum -> mean", "ReduceMean: word -> mean"),
            ("Div: centred", "Div: sum"),
            ("normalised c_scale", "normalised word"),
        ] {
            let text = SPELLED_OUT.replace(part, other);
            assert_ne!(text, SPELLED_OUT);
            let message = parse(&text);
            assert!(find_layer_norms(&Graph::new(&message)).is_empty(), "{other}");
        }
    }

    #[test]
    fn fused_ones_and_their_residuals_are_found() {
        let text = "\
            EmbedLayerNormalization: ids _ c1 c2 _ c_scale c_bias -> embedded
            MatMul: embedded c3 -> attended
            SkipLayerNormalization: attended embedded c_first c_b c_dense -> first
            MatMul: first c4 -> dense
            Add: c5 dense -> biased
            Cast: first -> same
            Add: same biased -> sum
            LayerNormalization: sum c_second c_b -> second
            Gelu: second -> active
            LayerNormalization: active c_head c_b -> head";
        let message = parse(text);
        let graph = Graph::new(&message);
        let found = find_layer_norms(&graph);
        let summary: Vec<_> = found.iter().map(|norm| (norm.output, norm.scale, norm.residual(&graph))).collect();
        let expected = [
            ("embedded", "c_scale", None),
            ("first", "c_first", Some("embedded")),
            ("second", "c_second", Some("first")),
            ("head", "c_head", None),
        ];
        assert_eq!(summary, expected);
    }
}
