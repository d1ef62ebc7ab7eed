//! What nothing reads once nodes have been exchanged.

use super::graph::Graph;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Nodes and initialisers that a graph can do without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Numbers of the nodes.
    pub nodes: BTreeSet<usize>,
    /// Names of the initialisers.
    pub initializers: BTreeSet<String>,
}

/// What none of the tensors in `wanted` depends on. `exchanged`: numbers of nodes, with what is read in their place, from then on, for the same outputs.
/// The graph [has no inner graphs](Graph::has_inner_graphs).
pub fn unread<'n>(graph: &Graph<'n>, exchanged: &'n BTreeMap<usize, Vec<String>>, wanted: impl IntoIterator<Item = &'n str>) -> Unread {
    let mut read: HashSet<&str> = wanted.into_iter().collect();
    let mut nodes = BTreeSet::new();
    for (index, node) in graph.nodes().iter().enumerate().rev() {
        if node.outputs.iter().any(|output| read.contains(output.as_str())) {
            let inputs = exchanged.get(&index).unwrap_or(&node.inputs);
            read.extend(inputs.iter().map(String::as_str).filter(|input| !input.is_empty()));
        } else {
            nodes.insert(index);
        }
    }
    let initializers = graph.initializers().filter(|name| !read.contains(name)).map(str::to_owned).collect();
    Unread { nodes, initializers }
}

#[cfg(test)]
mod tests {
    use super::super::graph::tests::parse;
    use super::*;

    #[test]
    fn what_an_exchanged_node_no_longer_reads_goes_with_all_that_served_it_alone() {
        let message = parse("Relu: x -> a\nMatMul: a c1 -> b\nShape: x -> s\nConcat: s c2 -> t\nReshape: b t -> y\nAdd: y c3 -> z");
        let graph = Graph::new(&message);
        let names = |unread: &Unread| unread.initializers.iter().cloned().collect::<Vec<_>>();
        assert_eq!(unread(&graph, &BTreeMap::new(), ["z"]), Unread::default());
        let exchanged = BTreeMap::from([(4, vec!["a".to_owned(), "c1".to_owned()])]);
        let found = unread(&graph, &exchanged, ["z"]);
        assert_eq!((found.nodes.clone(), names(&found)), (BTreeSet::from([1, 2, 3]), vec!["c2".to_owned()]));
        let found = unread(&graph, &exchanged, ["z", "s"]);
        assert_eq!(found.nodes, BTreeSet::from([1, 3]), "an output stays");
    }
}
