//! What a teacher's file has to give, and how much of it a student takes: read from the shapes of its tensors.

use super::config::StudentConfig;
use super::family::Family;
use super::names::{LayerPart, Role};
use super::tensor_source::TensorSource;
use super::widths::Width;
use logitcache::error::{Error, Result};

/// The teacher's numbers beside the student's.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TeacherShape {
    pub(super) family: Family,
    pub(super) hidden: Width,
    /// Of the embedding tables: as `hidden` but for an ALBERT.
    pub(super) embedding: Width,
    pub(super) heads: Width,
    /// Dimensions of a head.
    pub(super) within: Width,
    pub(super) neurons: Width,
    /// Sets of layer parameters.
    pub(super) layers: usize,
    /// Rows of the token-type embeddings; 0 where it has none.
    pub(super) types: usize,
    pub(super) first_position: usize,
    /// The student's classes, which a classifier of the teacher must have to be taken.
    classes: usize,
    positions: usize,
    vocabulary: usize,
}

/// What stands in the file for a role, under today's name or an older one.
pub(super) fn tensor_name(file: &dyn TensorSource, family: Family, role: Role, bias: bool) -> String {
    let name = format!("{}.{}", role.name(family), if bias { "bias" } else { "weight" });
    if file.contains(&name) {
        return name;
    }
    // Checkpoints converted from TensorFlow keep its words for LayerNorm; some exports keep the decoder's own bias alone.
    let mut older = vec![name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")];
    if role == Role::DecoderBias {
        older.push(name.replace(".bias", ".decoder.bias"));
    }
    older.into_iter().find(|older| file.contains(older)).unwrap_or(name)
}

impl TeacherShape {
    /// The shape of the model in `file`, checked against the student's. `heads` is the number of its heads where no `config.json` lies
    /// beside it.
    ///
    /// # Errors
    /// Names of no family, a tensor that is missing, a student that the teacher's widths cannot give.
    pub(super) fn read(file: &dyn TensorSource, student: &StudentConfig, heads: Option<usize>) -> Result<Self> {
        let words = |family: &Family| format!("{}.weight", Role::WordEmbeddings.name(*family));
        let Some(family) = Family::ENCODERS.into_iter().find(|family| file.contains(&words(family))) else {
            let expected = Family::ENCODERS.map(|family| words(&family)).join(" or ");
            let found = file.names().first().map_or("no tensor".to_owned(), |name| format!("tensors such as {name}"));
            let remedy = "give a model of one of these families, or start at random";
            return Err(Error::data(file.path(), "tensor names", expected, found, remedy));
        };
        let matrix = |role| {
            let name = tensor_name(file, family, role, false);
            match file.shape(&name).as_deref() {
                Some([rows, columns]) if *rows > 0 && *columns > 0 => Ok((*rows, *columns)),
                Some(other) => Err(Error::data(file.path(), format!("tensor {name}"), "a matrix", format!("shape {other:?}"), SAVE_AGAIN)),
                None => Err(Error::data(file.path(), format!("tensor {name}"), "a matrix", "no such tensor", SAVE_AGAIN)),
            }
        };
        let (vocabulary, embedding) = matrix(Role::WordEmbeddings)?;
        let (positions, _) = matrix(Role::PositionEmbeddings)?;
        let (_, hidden) = matrix(Role::Layer(0, LayerPart::Query))?;
        let (between, _) = matrix(Role::Layer(0, LayerPart::Widen))?;
        let query = |layer: &usize| file.contains(&tensor_name(file, family, Role::Layer(*layer, LayerPart::Query), false));
        let types =
            file.shape(&tensor_name(file, family, Role::TokenTypeEmbeddings, false)).and_then(|shape| shape.first().copied()).unwrap_or(0);
        let beside = file.path().parent().map(|folder| folder.join("config.json")).filter(|path| path.is_file());
        let heads = match beside {
            Some(path) => Some(StudentConfig::read_teacher(&path)?.num_attention_heads),
            None => heads,
        };
        let heads = heads.filter(|heads| *heads > 0 && hidden % heads == 0);
        let heads_of_kept = (hidden == student.hidden_size).then_some(student.num_attention_heads);
        let Some(heads) = heads.or(heads_of_kept) else {
            let remedy = "put the model's config.json beside it";
            return Err(Error::data(file.path(), "num_attention_heads", "a divisor of the hidden size", "none", remedy));
        };
        let shape = Self {
            family,
            hidden: Width { teacher: hidden, student: student.hidden_size },
            embedding: Width { teacher: embedding, student: student.embedding_size },
            heads: Width { teacher: heads, student: student.num_attention_heads },
            within: Width { teacher: hidden / heads, student: student.head_size() },
            neurons: Width { teacher: between, student: student.intermediate_size },
            layers: (0..).take_while(query).count(),
            types,
            first_position: family.first_position(student.pad_token_id),
            classes: student.classes,
            positions,
            vocabulary,
        };
        shape.check(file, student)?;
        Ok(shape)
    }

    fn check(&self, file: &dyn TensorSource, student: &StudentConfig) -> Result<()> {
        // Before the widths: another vocabulary says that it is another model altogether.
        let held = self.positions.saturating_sub(self.first_position);
        let (words, positions) = (student.vocab_size, student.longest_sequence());
        let rows = [
            (Role::WordEmbeddings, words, self.vocabulary, self.vocabulary == words),
            (Role::PositionEmbeddings, positions, held, held >= positions),
        ];
        for (role, wanted, held, fits) in rows {
            if !fits {
                let field = format!("tensor {}", tensor_name(file, self.family, role, false));
                let remedy = "start from the cache's teacher or a model with its tokenizer and length, or at random";
                return Err(Error::data(file.path(), field, format!("{wanted} rows to use"), held.to_string(), remedy));
            }
        }
        let path = file.path().display();
        let random = "or leave --init-from out for random weights";
        let widths = [
            ("--hidden-size", self.hidden, "make it less"),
            ("--heads", self.heads, "make them fewer"),
            ("--feed-forward", self.neurons, "make it less"),
        ];
        for (flag, width, remedy) in widths {
            if width.student > width.teacher {
                let expected = format!("at most the {} of {path}", width.teacher);
                return Err(Error::usage(flag, expected, width.student.to_string(), format!("{remedy}, {random}")));
            }
        }
        if self.within.student > self.within.teacher {
            let expected = format!("heads no wider than the {} of {path}", self.within.teacher);
            let found = format!("{} of width {}", self.heads.student, self.within.student);
            let remedy = format!("give a --heads of at least {}, {random}", self.hidden.student.div_ceil(self.within.teacher));
            return Err(Error::usage("--heads", expected, found, remedy));
        }
        let albert = |family| family == Family::Albert;
        if albert(student.family) && !albert(self.family) && student.embedding_size != student.hidden_size {
            let expected = format!("the hidden size {}, since a {} has no narrower embeddings", student.hidden_size, self.family);
            let remedy = format!("give --embedding-size {}, {random}", student.hidden_size);
            return Err(Error::usage("--embedding-size", expected, student.embedding_size.to_string(), remedy));
        }
        if albert(student.family) && albert(self.family) && self.embedding.student > self.embedding.teacher {
            let expected = format!("at most the {} of {path}", self.embedding.teacher);
            return Err(Error::usage("--embedding-size", expected, student.embedding_size.to_string(), format!("make it less, {random}")));
        }
        let second = Role::Layer(0, LayerPart::Query).name(self.family).replace("albert_layers.0", "albert_layers.1");
        if albert(self.family) && file.contains(&format!("{second}.weight")) {
            let expected = "one inner layer in each group (inner_group_num 1)";
            return Err(Error::data(file.path(), "tensor names", expected, format!("{second}.weight"), "start at random"));
        }
        Ok(())
    }

    /// The shape of the teacher's tensor for a role.
    pub(super) fn shape_of(&self, role: Role, bias: bool) -> Vec<usize> {
        use LayerPart::{AttentionNorm, AttentionOutput, Key, Narrow, OutputNorm, Query, Value, Widen};
        let (hidden, embedding, between) = (self.hidden.teacher, self.embedding.teacher, self.neurons.teacher);
        let classes = self.classes;
        let weight: &[usize] = match role {
            Role::WordEmbeddings => &[self.vocabulary, embedding],
            Role::PositionEmbeddings => &[self.positions, embedding],
            Role::TokenTypeEmbeddings => &[self.types, embedding],
            Role::EmbeddingNorm | Role::HeadNorm => &[embedding],
            Role::EmbeddingMapping => &[hidden, embedding],
            Role::Layer(_, Query | Key | Value | AttentionOutput) => &[hidden, hidden],
            Role::Layer(_, AttentionNorm | OutputNorm) => &[hidden],
            Role::Layer(_, Widen) => &[between, hidden],
            Role::Layer(_, Narrow) => &[hidden, between],
            Role::HeadDense => &[embedding, hidden],
            Role::DecoderBias => &[self.vocabulary],
            Role::Pooler => &[hidden, hidden],
            Role::SequenceClassifier | Role::TokenClassifier => &[classes, hidden],
            // A teacher's own is never taken.
            Role::Projection => &[0, hidden],
            Role::Decoder(_) => &[0],
        };
        if bias { vec![weight[0]] } else { weight.to_vec() }
    }
}

const SAVE_AGAIN: &str = "give a masked language model's file, its head included";
