//! From a teacher's files to what the session is opened with: its graph is read, and the hidden states that were asked for become outputs.

use super::TeacherFiles;
use super::bias::Bias;
use super::fuse::fuse;
use super::gather::{gather, kept};
use super::head::LeftHead;
use super::hidden::{Encoder, Unknown};
use super::model_config::ModelConfig;
use super::parameters;
use super::recognise::{Export, SENTENCE_VECTOR};
use super::reduce::{FittingReduction, reduce};
use super::sentence_files::SentenceFiles;
use crate::task::TeacherTask;
use logitcache::error::{Error, Result};
use logitcache::onnx::messages::NodeProto;
use logitcache::onnx::{Edit, Graph, Model};
use logitcache::target::{Pooling, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An output of that name and a layer's number is that layer's hidden state.
const OWN_HIDDEN_OUTPUT: &str = "hidden_states.";

/// Which hidden states to keep. Layer 0 is the embedding output, layer i + 1 what leaves encoder layer i, as `output_hidden_states` of transformers counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HiddenLayers {
    /// That of the last encoder layer for masked language models, none for other tasks.
    ByTask,
    /// None.
    None,
    /// That of the last encoder layer.
    Last,
    /// Every one, layer 0 included.
    All,
    /// These, in any order.
    List(Vec<u32>),
}

/// A teacher ready to be opened.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(super) model: PathBuf,
    /// The file in memory, until the session is opened.
    pub(super) graph: Option<Model>,
    /// Whether the graph is to compute attention as one operation.
    pub(super) fuses: bool,
    /// Whether the graph is to compute the asked positions alone.
    pub(super) gathers: bool,
    /// What the graph is to make of its logits.
    pub(super) reduction: Option<FittingReduction>,
    /// What the graph is not to add to its logits.
    pub(super) bias: Option<Bias>,
    /// What the graph is not to compute of its logits at all.
    pub(super) head: Option<LeftHead>,
    pub(super) config: ModelConfig,
    pub(super) task: TeacherTask,
    /// The output that is read.
    pub(super) output: String,
    pub(super) parameters: u64,
    pub(super) layers: u32,
    pub(super) width: Option<u32>,
    pub(super) embedding_rows: Option<u64>,
    hidden_tensors: BTreeMap<u32, String>,
    weight_files: Vec<PathBuf>,
    module_files: Vec<PathBuf>,
    pub(super) notes: Vec<String>,
}

impl Prepared {
    /// What the teacher answers.
    pub fn task(&self) -> &TeacherTask {
        &self.task
    }

    /// The files of a sentence encoder's modules, relative to the directory of its `modules.json`.
    pub fn module_files(&self) -> &[PathBuf] {
        &self.module_files
    }

    /// Refuses a sentence encoder whose graph gives states of tokens, where neither its files nor the user says how they are pooled.
    ///
    /// # Errors
    /// [`Error::Usage`] naming `--pooling`.
    pub fn require_pooling(&self) -> Result<()> {
        if self.task.task != Task::SentenceEmbedding || self.task.pooling.is_some() || self.output == SENTENCE_VECTOR {
            return Ok(());
        }
        let expected = format!("a way to make one vector of {}, since there is no modules.json beside the model", self.output);
        let remedy = "type --pooling mean, cls or max as the teacher was trained, or copy modules.json and its folders there";
        Err(Error::usage("--pooling", expected, "nothing", remedy))
    }

    /// Exposed hidden states: layer to tensor name, ascending.
    pub fn hidden_tensors(&self) -> &BTreeMap<u32, String> {
        &self.hidden_tensors
    }

    /// Puts the graph aside while `copy` is made, which is without it, and will read it again.
    pub fn without_graph(&mut self) -> Self {
        let graph = self.graph.take();
        let copy = self.clone();
        self.graph = graph;
        copy
    }

    /// Lets go of the graph: the changed model, or nothing where the file serves as it is.
    ///
    /// # Errors
    /// Those of reading the file again.
    pub(super) fn take_changed(&mut self) -> Result<Option<Vec<u8>>> {
        let model = self.graph.take().map_or_else(|| Model::read(&self.model), Ok)?;
        let inner: BTreeSet<&str> = self.hidden_tensors.values().map(String::as_str).collect();
        let inner = inner.into_iter().filter(|name| !outputs(&model).any(|output| output == *name));
        let inner: Vec<String> = inner.map(str::to_owned).collect();
        if !self.fuses && !self.gathers && self.reduction.is_none() && self.bias.is_none() && self.head.is_none() {
            return Ok((!inner.is_empty()).then(|| model.into_bytes_with_outputs(inner.iter().map(String::as_str))));
        }
        let mut edit = Edit::default();
        inner.iter().for_each(|name| edit.output(name));
        if self.fuses {
            fuse(&model, &kept(self), &mut edit);
        }
        if self.gathers {
            let failed = |reason: String| Error::invalid("positions to gather", "those that were found before", reason);
            gather(&model, &self.output, &kept(self), &mut edit).map_err(failed)?;
        }
        if let Some(left) = &self.head {
            left.take_out(&model, &self.output, &kept(self), self.gathers, &mut edit);
        }
        if let Some(bias) = &self.bias {
            bias.take_out(&self.output, &mut edit);
        }
        if let Some(FittingReduction { reduction, .. }) = &self.reduction {
            reduce(reduction, model.opset(), &self.output, &mut edit);
        }
        model.into_edited_bytes(&edit).map(Some)
    }

    /// The output of the changed graph that is read.
    pub(super) fn read_output(&self) -> String {
        match (&self.head, &self.bias) {
            (Some(left), _) => left.output(self.gathers),
            (None, Some(bias)) => bias.product.clone(),
            (None, None) => self.output.clone(),
        }
    }

    /// Every file the answers depend on: the model, then those with its external data, sorted.
    pub fn model_files(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.model.as_path()).chain(self.weight_files.iter().map(PathBuf::as_path))
    }
}

/// What the user says of an export, where its files do not say it or say it wrongly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purpose {
    /// `--task`.
    pub task: Option<Task>,
    /// `--pooling`.
    pub pooling: Option<Pooling>,
}

/// [`prepare_for`] the task that the export says.
///
/// # Errors
/// The same.
pub fn prepare(files: &TeacherFiles, layers: &HiddenLayers, by_hand: &BTreeMap<u32, String>) -> Result<Prepared> {
    prepare_for(Purpose::default(), files, layers, by_hand)
}

/// Reads the graph, finds out what it answers, finds the tensors of the hidden states asked for and makes them outputs. `by_hand`: layer to tensor,
/// from `--hidden-tensor`.
///
/// # Errors
/// [`Error::Usage`] for a task that is not the export's, a layer the teacher does not have or a tensor that is not in the graph; [`Error::Data`] for a
/// file that is no ONNX model, a teacher of no task or in training mode, files that contradict each other, and for a layer whose tensor cannot be told,
/// with the candidates.
pub fn prepare_for(purpose: Purpose, files: &TeacherFiles, layers: &HiddenLayers, by_hand: &BTreeMap<u32, String>) -> Result<Prepared> {
    let config = ModelConfig::read(files.config.as_deref())?;
    let sentence = files.modules.as_deref().map(SentenceFiles::read).transpose()?;
    let model = Model::read(&files.model)?;
    let graph = Graph::new(model.graph());
    let Purpose { task, pooling } = purpose;
    let (task, output) = Export { model: &model, config: &config, sentence: sentence.as_ref(), task, pooling }.recognise()?;
    refuse_training_mode(&model, &graph)?;
    let encoder = Encoder::of(&graph);
    let search = Search { model: &model, graph: &graph, encoder: &encoder, config: &config, by_hand };
    let layers = match layers {
        HiddenLayers::ByTask if task.task == Task::MaskedLm => &HiddenLayers::Last,
        HiddenLayers::ByTask => &HiddenLayers::None,
        asked => asked,
    };
    let hidden_tensors = search.tensors(layers)?;
    let known_layers = config.layers.unwrap_or_else(|| search.layers());
    let width = encoder.width();
    let embedding_rows = embedding_rows(&graph);
    let parameters = parameters::count(&model)?;
    let directory = files.model.parent().unwrap_or(Path::new("")).to_owned();
    let weight_files = model.external_files().into_iter().map(|name| directory.join(name)).collect();
    Ok(Prepared {
        model: files.model.clone(),
        graph: Some(model),
        fuses: false,
        gathers: false,
        reduction: None,
        bias: None,
        head: None,
        notes: Vec::new(),
        config,
        task,
        output,
        parameters,
        layers: known_layers,
        width,
        embedding_rows,
        hidden_tensors,
        weight_files,
        module_files: sentence.map(|sentence| sentence.module_files).unwrap_or_default(),
    })
}

/// Rows of the table that `input_ids` are looked up in: ids the model can take.
fn embedding_rows(graph: &Graph<'_>) -> Option<u64> {
    let of_ids = |node: &&NodeProto| node.op_type == "Gather" && node.inputs.get(1).is_some_and(|ids| graph.origin(ids) == "input_ids");
    let table = graph.nodes().iter().find(of_ids)?.inputs.first()?;
    u64::try_from(*graph.constant(table)?.dims.first()?).ok()
}

fn outputs(model: &Model) -> impl Iterator<Item = &str> {
    model.graph().outputs.iter().map(|output| output.name.as_str())
}

/// Dropout that is switched on would make every answer another random one.
fn refuse_training_mode(model: &Model, graph: &Graph<'_>) -> Result<()> {
    let training = |node: &&NodeProto| {
        let flag = node.inputs.get(2).and_then(|name| graph.constant(name));
        node.op_type == "Dropout"
            && flag.is_some_and(|flag| flag.int32_data.iter().any(|v| *v != 0) || flag.raw_data.iter().any(|v| *v != 0))
    };
    match graph.nodes().iter().find(training) {
        None => Ok(()),
        Some(node) => {
            let field = format!("node {}", if node.name.is_empty() { &node.outputs[0] } else { &node.name });
            let remedy = "export again after `model.eval()`";
            Err(Error::data(model.path(), field, "a model in evaluation mode", "Dropout in training mode", remedy))
        }
    }
}

/// Everything the search for a hidden state may look at.
struct Search<'a> {
    model: &'a Model,
    graph: &'a Graph<'a>,
    encoder: &'a Encoder<'a>,
    config: &'a ModelConfig,
    by_hand: &'a BTreeMap<u32, String>,
}

impl Search<'_> {
    fn tensors(&self, layers: &HiddenLayers) -> Result<BTreeMap<u32, String>> {
        let wanted = self.wanted(layers)?;
        if let Some((layer, name)) = self.by_hand.iter().find(|(layer, _)| !wanted.contains(layer)) {
            let expected = format!("layers that --hidden-layers asks for: {wanted:?}");
            return Err(Error::usage("--hidden-tensor", expected, format!("{layer}={name}"), "drop it, or ask for that layer"));
        }
        wanted.iter().map(|layer| Ok((*layer, self.tensor(*layer)?))).collect()
    }

    /// The layers' numbers, ascending.
    fn wanted(&self, layers: &HiddenLayers) -> Result<Vec<u32>> {
        let mut wanted = match layers {
            HiddenLayers::None | HiddenLayers::ByTask => return Ok(Vec::new()),
            HiddenLayers::Last => vec![self.total()?],
            HiddenLayers::All => (0..=self.total()?).collect(),
            HiddenLayers::List(list) => list.clone(),
        };
        wanted.sort_unstable();
        wanted.dedup();
        if let Some(beyond) =
            wanted.iter().find(|layer| !self.by_hand.contains_key(layer) && self.total().is_ok_and(|total| **layer > total))
        {
            let expected = format!("layers 0 to {}, which the teacher has", self.total()?);
            return Err(Error::usage("--hidden-layers", expected, beyond.to_string(), "ask for fewer layers"));
        }
        Ok(wanted)
    }

    /// Layers by what the graph shows; 0 where nothing is found.
    fn layers(&self) -> u32 {
        let own = outputs(self.model).filter_map(|name| name.strip_prefix(OWN_HIDDEN_OUTPUT)?.parse().ok());
        own.max().unwrap_or_else(|| self.encoder.layers())
    }

    /// How many layers there are: as config.json says, else as the graph shows.
    fn total(&self) -> Result<u32> {
        match (self.config.layers, self.layers()) {
            (Some(layers), _) => Ok(layers),
            (None, 0) => {
                let remedy = "put the teacher's config.json beside the model";
                Err(Error::data(
                    self.model.path(),
                    "layers",
                    "encoder layers, or num_hidden_layers in config.json",
                    self.encoder.candidates(),
                    remedy,
                ))
            }
            (None, layers) => Ok(layers),
        }
    }

    fn tensor(&self, layer: u32) -> Result<String> {
        if let Some(name) = self.by_hand.get(&layer) {
            return self.check_by_hand(layer, name);
        }
        let own = format!("{OWN_HIDDEN_OUTPUT}{layer}");
        if outputs(self.model).any(|name| name == own) {
            return Ok(own);
        }
        let found = self.encoder.layers();
        if let (Some(config), Some(path)) = (self.config.layers, &self.config.path)
            && found != 0
            && config != found
        {
            let expected = format!("{found} layers, as the graph shows");
            let remedy = "use the config.json of this export, or name the tensors with --hidden-tensor LAYER=NAME";
            return Err(Error::data(path, "num_hidden_layers", expected, config.to_string(), remedy));
        }
        self.encoder.state(layer).map(str::to_owned).map_err(|unknown| self.explain(layer, unknown))
    }

    fn check_by_hand(&self, layer: u32, name: &str) -> Result<String> {
        if self.graph.producer(name).is_some() {
            return Ok(name.to_owned());
        }
        let similar = self.graph.nodes().iter().flat_map(|node| &node.outputs).filter(|tensor| tensor.contains(name)).take(5);
        let similar: Vec<&str> = similar.map(String::as_str).collect();
        let candidates = if similar.is_empty() { self.encoder.candidates() } else { similar.join(", ") };
        let expected = format!("a tensor of {}", self.model.path().display());
        Err(Error::usage("--hidden-tensor", expected, format!("{layer}={name}"), format!("candidates: {candidates}")))
    }

    fn explain(&self, layer: u32, unknown: Unknown) -> Error {
        let found = match unknown {
            Unknown::Contradiction(structure, name) => format!("{structure} by the graph's structure and {name} by its names"),
            Unknown::NotFound => format!("no tensor that certainly is it{}", self.reason()),
        };
        let remedy = format!("name it with --hidden-tensor {layer}=NAME; candidates: {}", self.encoder.candidates());
        Error::data(self.model.path(), format!("hidden state {layer}"), "one tensor that leaves the layer", found, remedy)
    }

    /// Why it may be out of reach.
    fn reason(&self) -> String {
        if self.model.functions().next().is_some() {
            let functions = self.model.functions().collect::<Vec<_>>().join(", ");
            return format!(" (the file defines functions, {functions}, whose inner tensors cannot be exposed: export again without them)");
        }
        let mut fused: Vec<&str> =
            self.graph.nodes().iter().filter(|node| node.domain == "com.microsoft").map(|node| node.op_type.as_str()).collect();
        fused.sort_unstable();
        fused.dedup();
        match fused.is_empty() {
            true => String::new(),
            false => format!(
                " (the file was optimised: it may be inside one of the fused nodes {}, and then only a plain export can expose it)",
                fused.join(", ")
            ),
        }
    }
}
