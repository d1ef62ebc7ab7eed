//! A student's first weights out of a teacher's file, of which only the tensors taken are read.
//!
//! **Which layers.** Evenly spaced from the teacher's first to its last, halves rounded down: student layer i of S takes teacher layer
//! i (T - 1) / (S - 1) of T. For 12 to 6 that is the paper's 0, 2, 4, 7, 9, 11 (Sanh et al. 2019); for 6 to 3 it is 0, 2, 5.
//!
//! **Token types.** BERT adds a token-type row to every embedding; DistilBERT has none. The row of type 0 is added to every position
//! embedding here, which is what the teacher computes wherever all types are 0: a student with all of the teacher's layers then *is* the
//! teacher. (The DistilBERT authors' extraction script leaves the row out. On the 12-layer reaction teacher of `data/teacher` and 1,964 masked
//! positions, a student of 6 layers so begins at a KL of 0.780 instead of 0.818 and agrees on 0.747 instead of 0.741; with 12 layers at 0
//! instead of 0.003 and 1.000 instead of 0.994.)

use super::config::StudentConfig;
use super::family::Family;
use super::layout::ParameterSpec;
use super::names::{LayerPart, Role};
use super::tensor_source::{TensorSource, open_tensors};
use logitcache::error::{Error, Result};
use std::path::Path;

/// The teacher's layers that a student of `student_layers` starts from where none are named; the module's heading gives the rule.
///
/// # Errors
/// [`Error::Usage`] for `--layers` above the teacher's count, or 0.
pub fn default_layers(teacher_layers: usize, student_layers: usize) -> Result<Vec<usize>> {
    if student_layers == 0 || student_layers > teacher_layers {
        let expected = format!("1 to the {teacher_layers} layers of the file given with --init-from");
        return Err(Error::usage(
            "--layers",
            expected,
            student_layers.to_string(),
            "name the layers with --init-layers to take some twice",
        ));
    }
    let gaps = student_layers.saturating_sub(1).max(1);
    Ok((0..student_layers).map(|layer| (2 * layer * (teacher_layers - 1) + gaps - 1) / (2 * gaps)).collect())
}

/// A teacher's file, ready to give each parameter of a student its first values.
pub struct TeacherTensors {
    file: Box<dyn TensorSource>,
    family: Family,
    student: Family,
    layers: Vec<usize>,
}

impl TeacherTensors {
    /// Opens the masked language model (BERT or DistilBERT) in `path`: a `.safetensors` or `.onnx` file, or a directory with one (safetensors preferred).
    /// `layers[i]` is the teacher's layer that student layer i starts from; `None` applies [`default_layers`].
    ///
    /// # Errors
    /// A file that cannot be read, names of neither family, layers that the file does not have or whose number is not the student's.
    pub fn open(path: &Path, config: &StudentConfig, layers: Option<&[usize]>) -> Result<Self> {
        Self::new(open_tensors(path)?, config, layers)
    }

    /// [`open`](Self::open), of tensors from anywhere.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(file: Box<dyn TensorSource>, config: &StudentConfig, layers: Option<&[usize]>) -> Result<Self> {
        let words = |family: &Family| format!("{}.weight", Role::WordEmbeddings.name(*family));
        let Some(family) = Family::ALL.into_iter().find(|family| file.contains(&words(family))) else {
            let expected = Family::ALL.map(|family| words(&family)).join(" or ");
            let found = file.names().first().map_or("no tensor".to_owned(), |name| format!("tensors such as {name}"));
            let remedy = "give the masked language model of one of these families, or start at random";
            return Err(Error::data(file.path(), "tensor names", expected, found, remedy));
        };
        let query = |layer: &usize| format!("{}.weight", Role::Layer(*layer, LayerPart::Query).name(family));
        let teacher_layers = (0..).take_while(|layer| file.contains(&query(layer))).count();
        let layers = match layers {
            Some(layers) => layers.to_owned(),
            None => default_layers(teacher_layers, config.num_hidden_layers)?,
        };
        if layers.len() != config.num_hidden_layers {
            let (expected, found) = (format!("{} layers, one for each of the student's", config.num_hidden_layers), format!("{layers:?}"));
            return Err(Error::usage("--init-layers", expected, found, "list as many as --layers asks for"));
        }
        if layers.iter().any(|layer| *layer >= teacher_layers) {
            let expected = format!("layers below {teacher_layers}, which {} has", file.path().display());
            return Err(Error::usage("--init-layers", expected, format!("{layers:?}"), "count the teacher's layers from 0"));
        }
        Ok(Self { file, family, student: config.family, layers })
    }

    /// The teacher's layer behind each of the student's.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The first values of one parameter, row-major.
    ///
    /// # Errors
    /// The tensor is missing, has another shape or an unknown type, or holds a NaN or infinity.
    pub fn values(&mut self, parameter: &ParameterSpec) -> Result<Vec<f32>> {
        let name = self.name_in_file(parameter);
        let mut values = self.file.read_shaped(&name, &parameter.shape)?;
        let token_types = format!("{}.weight", Role::TokenTypeEmbeddings.name(self.family));
        if parameter.role == Role::PositionEmbeddings && self.student == Family::DistilBert && self.file.contains(&token_types) {
            let width = parameter.shape[1];
            let types = self.file.shape(&token_types).and_then(|shape| shape.first().copied()).unwrap_or(1).max(1);
            let token_types = self.file.read_shaped(&token_types, &[types, width])?;
            for row in values.chunks_exact_mut(width) {
                row.iter_mut().zip(&token_types[..width]).for_each(|(value, type_0)| *value += type_0);
            }
        }
        Ok(values)
    }

    fn name_in_file(&self, parameter: &ParameterSpec) -> String {
        let role = match parameter.role {
            Role::Layer(layer, part) => Role::Layer(self.layers[layer], part),
            other => other,
        };
        let name = format!("{}.{}", role.name(self.family), if parameter.bias { "bias" } else { "weight" });
        if self.file.contains(&name) {
            return name;
        }
        // Checkpoints converted from TensorFlow keep its words for LayerNorm; some exports keep the decoder's own bias alone.
        let older = [
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
            name.replace("cls.predictions.bias", "cls.predictions.decoder.bias"),
        ];
        older.into_iter().find(|older| self.file.contains(older)).unwrap_or(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::layout;
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};
    use std::path::PathBuf;

    fn config(layers: usize) -> StudentConfig {
        StudentConfig {
            vocab_size: 11,
            hidden_size: 4,
            embedding_size: 4,
            num_hidden_layers: layers,
            num_attention_heads: 2,
            intermediate_size: 6,
            max_position_embeddings: 5,
            pad_token_id: Some(3),
            ..StudentConfig::default()
        }
    }

    /// The value that marks element `i` of a teacher's tensor. Layer 2 holds NaN, which reading it would refuse: no test here takes it.
    fn mark(name: &str, i: usize) -> f32 {
        if name.contains("layer.2.") {
            return f32::NAN;
        }
        let hash = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
        (hash % 4096) as f32 + i as f32 / 1024.0
    }

    /// Writes a teacher whose every tensor can be told from the others; `rename` may change or drop (empty) a name.
    fn teacher(family: Family, layers: usize, rename: impl Fn(String) -> String) -> (tempfile::TempDir, PathBuf) {
        let mut tensors: Vec<(String, Vec<usize>)> = layout(&config(layers))
            .into_iter()
            .map(|parameter| {
                let name = format!("{}.{}", parameter.role.name(family), if parameter.bias { "bias" } else { "weight" });
                (name, parameter.shape)
            })
            .collect();
        if family == Family::Bert {
            tensors.push(("bert.embeddings.token_type_embeddings.weight".into(), vec![2, 4]));
        }
        let tensors: Vec<_> = tensors.into_iter().map(|(name, shape)| (rename(name), shape)).filter(|(name, _)| !name.is_empty()).collect();
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(name, shape)| (0..shape.iter().product()).flat_map(|i| mark(name, i).to_le_bytes()).collect()).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
            (name.as_str(), view)
        });
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        (directory, path)
    }

    fn first_value(teacher: &mut TeacherTensors, config: &StudentConfig, name: &str) -> f32 {
        let parameter = layout(config).into_iter().find(|parameter| parameter.name == name).unwrap();
        teacher.values(&parameter).unwrap()[0]
    }

    #[test]
    fn layers_are_evenly_spaced_and_the_papers_for_twelve() {
        assert_eq!(default_layers(12, 6).unwrap(), [0, 2, 4, 7, 9, 11]);
        assert_eq!(default_layers(6, 3).unwrap(), [0, 2, 5]);
        assert_eq!(default_layers(24, 12).unwrap(), [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]);
        assert_eq!(default_layers(12, 12).unwrap(), (0..12).collect::<Vec<_>>());
        assert_eq!(default_layers(12, 1).unwrap(), [0]);
        assert_eq!(default_layers(1, 1).unwrap(), [0]);
        assert_eq!(default_layers(4, 5).unwrap_err().exit_code(), 2);
        assert!(default_layers(4, 0).is_err());
    }

    #[test]
    fn every_parameter_is_taken_from_where_bert_keeps_it_and_no_other_is_read() {
        let (_directory, path) = teacher(Family::Bert, 5, |name| name);
        let config = config(2);
        let mut teacher = TeacherTensors::open(&path, &config, Some(&[1, 4])).unwrap();
        assert_eq!(teacher.layers(), [1, 4]);
        let pairs = [
            ("distilbert.embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
            ("distilbert.embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.bias"),
            ("distilbert.transformer.layer.0.attention.q_lin.weight", "bert.encoder.layer.1.attention.self.query.weight"),
            ("distilbert.transformer.layer.1.attention.k_lin.bias", "bert.encoder.layer.4.attention.self.key.bias"),
            ("distilbert.transformer.layer.1.attention.v_lin.weight", "bert.encoder.layer.4.attention.self.value.weight"),
            ("distilbert.transformer.layer.1.attention.out_lin.weight", "bert.encoder.layer.4.attention.output.dense.weight"),
            ("distilbert.transformer.layer.1.sa_layer_norm.weight", "bert.encoder.layer.4.attention.output.LayerNorm.weight"),
            ("distilbert.transformer.layer.1.ffn.lin1.weight", "bert.encoder.layer.4.intermediate.dense.weight"),
            ("distilbert.transformer.layer.1.ffn.lin2.bias", "bert.encoder.layer.4.output.dense.bias"),
            ("distilbert.transformer.layer.1.output_layer_norm.bias", "bert.encoder.layer.4.output.LayerNorm.bias"),
            ("vocab_transform.weight", "cls.predictions.transform.dense.weight"),
            ("vocab_layer_norm.bias", "cls.predictions.transform.LayerNorm.bias"),
            ("vocab_projector.bias", "cls.predictions.bias"),
        ];
        for (student, source) in pairs {
            assert_eq!(first_value(&mut teacher, &config, student), mark(source, 0), "{student}");
        }
        for parameter in layout(&config) {
            assert_eq!(teacher.values(&parameter).unwrap().len(), parameter.shape.iter().product::<usize>(), "{}", parameter.name);
        }
    }

    #[test]
    fn the_row_of_token_type_0_joins_the_position_embeddings() {
        let (_directory, path) = teacher(Family::Bert, 2, |name| name);
        let config = config(2);
        let positions = layout(&config).into_iter().find(|parameter| parameter.name.contains("position")).unwrap();
        let values = TeacherTensors::open(&path, &config, None).unwrap().values(&positions).unwrap();
        let sum = |i| mark("bert.embeddings.position_embeddings.weight", i) + mark("bert.embeddings.token_type_embeddings.weight", i % 4);
        assert_eq!(values, (0..20).map(sum).collect::<Vec<_>>());
    }

    #[test]
    fn a_distilbert_teacher_and_older_names_are_read() {
        let student = config(2);
        let (_directory, path) = teacher(Family::DistilBert, 4, |name| name);
        let mut file = TeacherTensors::open(&path, &student, None).unwrap();
        assert_eq!(file.layers(), [0, 3]);
        let (name, source) = ("distilbert.transformer.layer.1.ffn.lin2.bias", "distilbert.transformer.layer.3.ffn.lin2.bias");
        assert_eq!(first_value(&mut file, &student, name), mark(source, 0));

        let older = |name: String| name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        let (_directory, path) = teacher(Family::Bert, 2, older);
        let mut file = TeacherTensors::open(&path, &student, None).unwrap();
        let source = "bert.encoder.layer.1.attention.output.LayerNorm.gamma";
        assert_eq!(first_value(&mut file, &student, "distilbert.transformer.layer.1.sa_layer_norm.weight"), mark(source, 0));
    }

    #[test]
    fn files_that_cannot_serve_are_refused_with_the_reason() {
        let open = |path: &Path, config: &StudentConfig, layers: Option<&[usize]>| TeacherTensors::open(path, config, layers);
        let (_directory, path) = teacher(Family::Bert, 3, |name| name.replace("cls.predictions.transform.dense.weight", ""));
        let student = config(2);
        let transform = layout(&student).into_iter().find(|parameter| parameter.name == "vocab_transform.weight").unwrap();
        let missing = open(&path, &student, None).unwrap().values(&transform).unwrap_err().to_string();
        assert!(
            missing.contains("tensor cls.predictions.transform.dense.weight: expected shape [4, 4], found no such tensor"),
            "{missing}"
        );

        let wide = StudentConfig { hidden_size: 8, embedding_size: 8, ..config(2) };
        let shape = open(&path, &wide, None).unwrap().values(&layout(&wide)[0]).unwrap_err().to_string();
        assert!(shape.contains("tensor bert.embeddings.word_embeddings.weight: expected shape [11, 8], found shape [11, 4]"), "{shape}");

        let beyond = open(&path, &student, Some(&[0, 3])).err().unwrap();
        assert!(beyond.exit_code() == 2 && beyond.to_string().contains("--init-layers: expected layers below 3"), "{beyond}");
        let count = open(&path, &student, Some(&[0])).err().unwrap().to_string();
        assert!(count.contains("--init-layers: expected 2 layers"), "{count}");

        let (_directory, path) = teacher(Family::Bert, 1, |name| format!("model.{name}"));
        let names = open(&path, &config(1), None).err().unwrap().to_string();
        assert!(names.contains("found tensors such as model."), "{names}");
    }
}
