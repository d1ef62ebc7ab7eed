//! Which ids of a tokenizer are special, and what the mask and the padding are called.

use logitcache::error::{Error, Result};
use logitcache::target::Task;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use tokenizers::Tokenizer;

/// Files beside `tokenizer.json` that name special tokens, the first one first.
const NAMING_FILES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// Keys of those files under which special tokens stand, apart from the three that are looked at one by one.
const OTHER_KEYS: [&str; 6] = ["cls_token", "sep_token", "bos_token", "eos_token", "additional_special_tokens", "extra_special_tokens"];

/// The ids with a meaning of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Stands where a token was masked; always there for a masked language model.
    pub mask: Option<u32>,
    /// Fills up short rows of a batch; always there but for a causal language model, which never looks behind a row's end.
    pub pad: Option<u32>,
    /// Ends a text, where the files beside the tokenizer name such a token.
    pub end: Option<u32>,
    /// Stands for text that the vocabulary cannot express; byte-level tokenizers may have none.
    pub unknown: Option<u32>,
    /// Every special id, ascending: those four, the frame's, and all others that the tokenizer marks.
    pub all: Vec<u32>,
    /// Of these, what the files beside the tokenizer name and nothing in it tells, ascending.
    pub beside: Vec<u32>,
}

impl SpecialTokens {
    /// What fills up short rows: some token that is there, where none is meant for it, since nothing looks at it.
    pub fn padding(&self) -> u32 {
        self.pad.or(self.end).unwrap_or(0)
    }

    /// Whether `id` is one of them.
    pub fn contains(&self, id: u32) -> bool {
        self.all.binary_search(&id).is_ok()
    }

    /// Adds ids to [`Self::all`].
    pub(crate) fn add(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.all.extend(ids);
        self.all.sort_unstable();
        self.all.dedup();
    }

    /// Looks for names in `tokenizer_config.json`, then `special_tokens_map.json` beside `path`, then takes the usual ones; the unknown
    /// token may also be named by the model in `json`, the tokenizer file's content.
    ///
    /// # Errors
    /// No mask or padding token, or a named one that the vocabulary lacks, where `task` needs it.
    pub(crate) fn find(tokenizer: &Tokenizer, json: &[u8], path: &Path, task: Task) -> Result<Self> {
        let naming = read_naming_files(path)?;
        let find = |needed: bool, key: &str, usual: &[&str]| {
            let found = required(tokenizer, &naming, path, key, usual);
            if needed { found.map(Some) } else { Ok(found.ok()) }
        };
        let mask = find(task == Task::MaskedLm, "mask_token", &["[MASK]", "<mask>"])?;
        let pad = find(task != Task::CausalLm, "pad_token", &["[PAD]", "<pad>"])?;
        let end = named(&naming, "eos_token").and_then(|name| tokenizer.token_to_id(&name));
        let unknown = named(&naming, "unk_token")
            .or_else(|| unknown_of_model(json))
            .and_then(|name| tokenizer.token_to_id(&name))
            .or_else(|| ["[UNK]", "<unk>"].iter().find_map(|name| tokenizer.token_to_id(name)));
        let mut special = Self { mask, pad, end, unknown, all: Vec::new(), beside: Vec::new() };
        let marked = tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id);
        special.add(mask.into_iter().chain(pad).chain(unknown).chain(marked));
        let listed = naming.iter().flat_map(|value| OTHER_KEYS.iter().flat_map(|key| texts(&value[*key])));
        let listed = listed.filter_map(|name| tokenizer.token_to_id(&name)).filter(|id| !special.contains(*id));
        special.beside = listed.collect::<BTreeSet<u32>>().into_iter().collect();
        special.add(special.beside.clone());
        Ok(special)
    }
}

fn read_naming_files(path: &Path) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    for name in NAMING_FILES {
        let file = path.with_file_name(name);
        match std::fs::read(&file) {
            Ok(bytes) => values.push(serde_json::from_slice(&bytes).map_err(Error::library("parse", &file))?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &file)(error)),
        }
    }
    Ok(values)
}

/// The texts of a token, a list of tokens or a map of tokens, each written as a string or as an object with its `content`.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(fields) => match fields.get("content") {
            Some(content) => texts(content),
            None => fields.values().flat_map(texts).collect(),
        },
        _ => Vec::new(),
    }
}

fn named(naming: &[Value], key: &str) -> Option<String> {
    naming.iter().find_map(|value| texts(&value[key]).into_iter().next())
}

fn unknown_of_model(json: &[u8]) -> Option<String> {
    let file: Value = serde_json::from_slice(json).ok()?;
    let model = &file["model"];
    // A Unigram model names its unknown token by its place in the list of pairs.
    let by_place =
        || model["unk_id"].as_u64().and_then(|place| model["vocab"][usize::try_from(place).ok()?][0].as_str().map(str::to_owned));
    model["unk_token"].as_str().map(str::to_owned).or_else(by_place)
}

fn required(tokenizer: &Tokenizer, naming: &[Value], path: &Path, key: &str, usual: &[&str]) -> Result<u32> {
    let remedy = format!("name a token of its vocabulary as {key:?} in {} beside it", NAMING_FILES[0]);
    if let Some(name) = named(naming, key) {
        let expected = || format!("the token {name:?} that the files beside it name");
        return tokenizer.token_to_id(&name).ok_or_else(|| Error::data(path, key, expected(), "a vocabulary without it", &remedy));
    }
    let id = usual.iter().find_map(|name| tokenizer.token_to_id(name));
    id.ok_or_else(|| Error::data(path, key, format!("a name beside it, or one of {}", usual.join(", ")), "none of them", &remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
        {"id":7,"content":"<x>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"hole":0,"[MASK]":1,"blank":2,"??":3,"C":4,"[PAD]":5,"end":6},"unk_token":"??"}}"#;

    fn find(naming: &[(&str, &str)]) -> Result<SpecialTokens> {
        find_for(Task::MaskedLm, naming)
    }

    fn find_for(task: Task, naming: &[(&str, &str)]) -> Result<SpecialTokens> {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in naming {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let tokenizer = Tokenizer::from_bytes(TOKENIZER).unwrap();
        SpecialTokens::find(&tokenizer, TOKENIZER.as_bytes(), &directory.path().join("tokenizer.json"), task)
    }

    #[test]
    fn usual_names_are_taken_where_nothing_is_said() {
        let special = find(&[]).unwrap();
        assert_eq!(
            special,
            SpecialTokens { mask: Some(1), pad: Some(5), end: None, unknown: Some(3), all: vec![1, 3, 5, 7], beside: vec![] }
        );
        assert!(special.contains(7) && !special.contains(2));
    }

    #[test]
    fn files_beside_it_come_first_and_in_order() {
        let config = r#"{"mask_token":{"content":"hole","lstrip":true},"additional_special_tokens":["end",{"content":"absent"}]}"#;
        let map = r#"{"mask_token":"[MASK]","pad_token":"blank"}"#;
        let special = find(&[("tokenizer_config.json", config), ("special_tokens_map.json", map)]).unwrap();
        assert_eq!(
            special,
            SpecialTokens { mask: Some(0), pad: Some(2), end: None, unknown: Some(3), all: vec![0, 2, 3, 6, 7], beside: vec![6] }
        );
    }

    #[test]
    fn a_named_token_that_is_absent_is_refused() {
        let message = find(&[("tokenizer_config.json", r#"{"mask_token":"[GAP]"}"#)]).unwrap_err().to_string();
        for part in ["tokenizer.json", "mask_token", "[GAP]", "tokenizer_config.json"] {
            assert!(message.contains(part), "{part} in {message}");
        }
        let special = find_for(Task::SequenceClassification, &[("tokenizer_config.json", r#"{"mask_token":"[GAP]"}"#)]).unwrap();
        assert_eq!((special.mask, special.pad), (None, Some(5)), "a classifier needs no mask");
        let naming = r#"{"pad_token":"[GAP]","eos_token":"end"}"#;
        let special = find_for(Task::CausalLm, &[("tokenizer_config.json", naming)]).unwrap();
        assert_eq!((special.pad, special.end), (None, Some(6)), "a causal language model needs no padding");
        assert!(special.contains(6));
        assert!(find(&[("special_tokens_map.json", "{")]).unwrap_err().to_string().contains("special_tokens_map.json"));
    }
}
