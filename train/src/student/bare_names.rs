//! A file whose tensors do not begin with their family's name, read as if they did: a model without a head (`embeddings...`, `encoder...`), and
//! one that stands in a wrapper (`auto_model.embeddings...`) or bears another prefix with a BERT's wiring (`electra.embeddings...`).

use super::config::StudentConfig;
use super::family::Family;
use super::names::Role;
use super::tensor_source::TensorSource;
use logitcache::error::Result;
use std::path::Path;

/// What every family calls its word embeddings, after the prefix.
const WORDS: &str = "embeddings.word_embeddings.weight";

/// The modules of a model without a head.
const MODULES: [&str; 4] = ["embeddings.", "encoder.", "transformer.", "pooler."];

struct BareNames {
    file: Box<dyn TensorSource>,
    /// In the file, before the names of the modules.
    prefix: String,
    family: Family,
}

/// `file` under the names of a family: itself where it has them. `hint` is the family where neither the layers' names nor a `config.json` beside
/// the file say it.
///
/// # Errors
/// A `config.json` beside the file that cannot be read.
pub(super) fn with_family_names(file: Box<dyn TensorSource>, hint: Option<Family>) -> Result<Box<dyn TensorSource>> {
    let named = |family: &Family| file.contains(&format!("{}.weight", Role::WordEmbeddings.name(*family)));
    if Family::ALL.iter().any(named) {
        return Ok(file);
    }
    let names = file.names();
    let Some(prefix) = names.iter().find_map(|name| name.strip_suffix(WORDS)).map(str::to_owned) else { return Ok(file) };
    let has = |module: &str| names.iter().any(|name| name.strip_prefix(&prefix).is_some_and(|rest| rest.starts_with(module)));
    let family = match (has("transformer.layer."), has("encoder.albert_layer_groups.")) {
        (true, _) => Family::DistilBert,
        (_, true) => Family::Albert,
        _ => beside(file.path())?.or(hint).filter(|family| *family == Family::Roberta).unwrap_or(Family::Bert),
    };
    Ok(Box::new(BareNames { file, prefix, family }))
}

/// The family that a `config.json` beside the file names.
fn beside(path: &Path) -> Result<Option<Family>> {
    let config = path.with_file_name("config.json");
    if config.is_file() { StudentConfig::family_in(&config) } else { Ok(None) }
}

impl BareNames {
    /// The file's own name of a tensor.
    fn own(&self, name: &str) -> String {
        match name.strip_prefix(&format!("{}.", self.family)) {
            Some(rest) if MODULES.iter().any(|module| rest.starts_with(module)) => format!("{}{rest}", self.prefix),
            _ => name.to_owned(),
        }
    }
}

impl TensorSource for BareNames {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn names(&self) -> Vec<String> {
        let family_name = |name: String| match name.strip_prefix(&self.prefix) {
            Some(rest) if MODULES.iter().any(|module| rest.starts_with(module)) => format!("{}.{rest}", self.family),
            _ => name,
        };
        self.file.names().into_iter().map(family_name).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.shape(&self.own(name))
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let own = self.own(name);
        self.file.read(&own)
    }
}
