//! The bias that ends a language model's head, left to whoever reads the logits.
//!
//! Where the graph ends in Add(product, bias), the session reads and writes all the logits of a batch once more to add one number for each id: 9 to 14 %
//! of the time of a 4 x 256 teacher with 30,522 ids. Without that node the product is the output, and the top-k, which reads every logit anyway, adds the
//! bias as it does. Both are the same additions of float32 numbers, so that the sums are the same to the bit.

use super::prepare::Prepared;
use logitcache::onnx::messages::TensorProto;
use logitcache::onnx::{Edit, Graph, Model};
use logitcache::target::Task;
use std::sync::Arc;

/// A bias that the graph is not to add.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bias {
    /// The number of the Add.
    node: usize,
    /// What it is added to, the output in its place.
    pub product: String,
    /// `[vocabulary]`.
    pub values: Arc<[f32]>,
}

impl Prepared {
    /// Leaves the bias that ends the head to the reader of the logits, where the graph has one in float32 that can be told apart: from then on answers
    /// are without what [`Teacher::bias`](super::Teacher::bias) gives.
    pub fn leave_bias(&mut self) {
        let language_model = matches!(self.task.task, Task::MaskedLm | Task::CausalLm);
        if let (Some(model), true, None, None) = (&self.graph, language_model, &self.reduction, &self.head) {
            self.bias = find(model, &self.output);
        }
    }
}

fn find(model: &Model, output: &str) -> Option<Bias> {
    let graph = Graph::new(model.graph());
    let (node, add) = graph.producer(output).filter(|(_, node)| node.op_type == "Add" && node.is_known_domain())?;
    let readers = |tensor: &str| graph.nodes().iter().flat_map(|node| &node.inputs).filter(|input| *input == tensor).count();
    let [first, second] = add.inputs.as_slice() else { return None };
    let (product, bias) = if graph.constant(second).is_some() { (first, second) } else { (second, first) };
    let (_, matmul) = graph.producer(product).filter(|(_, node)| node.op_type == "MatMul" && node.is_known_domain())?;
    let width = *graph.constant(matmul.inputs.get(1)?)?.dims.last()?;
    let values = row(graph.constant(bias)?)?;
    let alone = readers(product) == 1 && readers(output) == 0;
    (alone && values.len() as u64 == u64::try_from(width).ok()?).then(|| Bias { node, product: product.clone(), values })
}

/// The values of a float32 row that is in the file.
fn row(tensor: &TensorProto) -> Option<Arc<[f32]>> {
    let is_row = tensor.dims.split_last().is_some_and(|(_, outer)| outer.iter().all(|dim| *dim == 1));
    if is_row { tensor.floats().map(Arc::from) } else { None }
}

impl Bias {
    /// Takes the Add out of the graph whose output is `output`.
    pub(super) fn take_out(&self, output: &str, edit: &mut Edit) {
        edit.remove(self.node);
        edit.hide(output);
        edit.output(&self.product);
    }
}
