//! The committed teacher's tokenizer, and small WordPiece and byte-level BPE ones made here.

use super::*;
use crate::corpus::{Gold, Place};
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, PaddingParams, TruncationParams};

fn documents(texts: &[&str]) -> Vec<Document> {
    let place: std::sync::Arc<Path> = Path::new("corpus.txt").into();
    let document = |(id, text): (usize, &&str)| {
        let (id, text) = (id as u64, Text::Whole((*text).to_owned()));
        Document { id, file: place.clone(), place: Place::Line(id + 1), text, pair: None, gold: Gold::Unknown }
    };
    texts.iter().enumerate().map(document).collect()
}

fn open(tokenizer: &Tokenizer) -> Result<DocumentTokenizer> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    tokenizer.save(&path, false).unwrap();
    DocumentTokenizer::open(&path, Task::MaskedLm)
}

fn specials(names: &[&str]) -> Vec<AddedToken> {
    names.iter().map(|name| AddedToken::from(*name, true)).collect()
}

fn word_piece(tokens: &[&str]) -> Tokenizer {
    let vocabulary: tokenizers::models::bpe::Vocab =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id as u32)).collect();
    let model = WordPiece::builder().vocab(vocabulary).unk_token("[UNK]".to_owned()).build().unwrap();
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(BertProcessing::new(("[SEP]".to_owned(), 3), ("[CLS]".to_owned(), 2))));
    tokenizer.add_special_tokens(specials(&tokens[..5])).unwrap();
    tokenizer
}

const WORD_PIECES: [&str; 9] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dis", "##till", "##ation", "a"];

#[test]
fn the_reaction_tokenizer_gives_known_tokens_and_frame() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/teacher/tokenizer.json");
    let tokenizer = DocumentTokenizer::open(&path, Task::MaskedLm).unwrap();
    let token = |id: &u32| tokenizer.vocabulary()[*id as usize].as_str();
    assert_eq!(tokenizer.vocabulary().len(), 591);
    assert_eq!(tokenizer.frame().prefix.iter().map(token).collect::<Vec<_>>(), ["[CLS]"]);
    assert_eq!(tokenizer.frame().suffix.iter().map(token).collect::<Vec<_>>(), ["[SEP]"]);
    assert_eq!((tokenizer.frame().segment, tokenizer.frame().tokens()), (0, 2));
    let special = tokenizer.special();
    assert_eq!([special.mask, special.pad, special.unknown].map(Option::unwrap).each_ref().map(token), ["[MASK]", "[PAD]", "[UNK]"]);
    assert!(special.all.iter().map(token).all(|text| text.starts_with('[')));
    let encoded = tokenizer.encode_batch(&documents(&["N[C@@H](CS)C(=O)O>>CCl", "", "[Xx]C"])).unwrap();
    assert_eq!(
        encoded[0].text.ids.iter().map(token).collect::<Vec<_>>(),
        "N [C@@H] ( C S ) C ( = O ) O >> C Cl".split(' ').collect::<Vec<_>>()
    );
    assert_eq!(encoded[0].text.words, (0..15).collect::<Vec<u32>>());
    assert_eq!(encoded[1], EncodedDocument::default());
    assert_eq!(encoded[2].text.ids[0], special.unknown.unwrap());
}

#[test]
fn a_word_piece_tokenizer_tells_words_and_frame() {
    let tokenizer = open(&word_piece(&WORD_PIECES)).unwrap();
    assert_eq!((tokenizer.frame().prefix.clone(), tokenizer.frame().suffix.clone()), (vec![2], vec![3]));
    assert_eq!(tokenizer.special().all, [0, 1, 2, 3, 4]);
    let encoded = tokenizer.encode_batch(&documents(&["a distillation a", "zebra [MASK] a"])).unwrap();
    assert_eq!(encoded[0].text, Encoded { ids: vec![8, 5, 6, 7, 8], words: vec![0, 1, 1, 1, 2] });
    assert_eq!(encoded[1].text.ids, [1, 4, 8]);
    assert!(tokenizer.splits_words());
}

#[test]
fn a_byte_level_tokenizer_tells_words_and_frame() {
    let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    alphabet.sort_unstable();
    let names =
        ["<s>", "<pad>", "</s>", "<unk>"].map(str::to_owned).into_iter().chain(alphabet).chain(["he".to_owned(), "\u{120}he".to_owned()]);
    let vocabulary: tokenizers::models::bpe::Vocab = names.zip(0..).collect();
    let merges = vec![("h".to_owned(), "e".to_owned()), ("\u{120}".to_owned(), "he".to_owned())];
    let mut tokenizer = Tokenizer::new(BPE::builder().vocab_and_merges(vocabulary, merges).build().unwrap());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.with_post_processor(Some(RobertaProcessing::new(("</s>".to_owned(), 2), ("<s>".to_owned(), 0))));
    tokenizer.add_special_tokens(specials(&["<s>", "<pad>", "</s>", "<unk>", "<mask>"])).unwrap();
    let tokenizer = open(&tokenizer).unwrap();
    let id = |text: &str| tokenizer.vocabulary().iter().position(|token| token == text).unwrap() as u32;
    assert_eq!((tokenizer.frame().prefix.clone(), tokenizer.frame().suffix.clone()), (vec![0], vec![2]));
    assert_eq!(tokenizer.special().mask, Some(262));
    let encoded = tokenizer.encode_batch(&documents(&["he her", "\u{fc}"])).unwrap();
    assert_eq!(encoded[0].text, Encoded { ids: vec![id("he"), id("\u{120}he"), id("r")], words: vec![0, 1, 1] });
    assert_eq!(encoded[1].text.ids.len(), 2, "two bytes, never unknown");
}

/// The ids and segments that the library's own template makes of a pair, and those put together from the frame.
fn pair_both_ways(tokenizer: &Tokenizer, a: &str, b: &str) -> [(Vec<u32>, Vec<u32>); 2] {
    let encoding = tokenizer.encode((a, b), true).unwrap();
    let own = open(tokenizer).unwrap();
    let frame = own.pair_frame().unwrap();
    let pair = Document { pair: Some(b.to_owned()), ..documents(&[a]).remove(0) };
    let EncodedDocument { text, pair } = own.encode_batch(&[pair]).unwrap().remove(0);
    let pair = pair.unwrap();
    let of = |segment: u8, ids: &[u32]| vec![segment; ids.len()];
    let [before, between, after] = &frame.frame_segments;
    let segments = [&before[..], &of(frame.segments[0], &text.ids), between, &of(frame.segments[1], &pair.ids), after]
        .concat()
        .into_iter()
        .map(u32::from);
    let ids = [&frame.prefix[..], &text.ids, &frame.middle, &pair.ids, &frame.suffix].concat();
    [(encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()), (ids, segments.collect())]
}

#[test]
fn the_frame_of_pairs_is_that_of_the_tokenizers_template() {
    let mut tokenizer = word_piece(&WORD_PIECES);
    for (a, b) in [("a distillation", "a a"), ("a", "a"), ("a", "zebra a")] {
        let [library, own] = pair_both_ways(&tokenizer, a, b);
        assert_eq!(library, own);
    }
    let frame = open(&tokenizer).unwrap().pair_frame().unwrap().clone();
    assert_eq!((frame.prefix, frame.middle, frame.suffix, frame.segments), (vec![2], vec![3], vec![3], [0, 1]));
    // As RoBERTa has it: two separators, one segment.
    tokenizer.with_post_processor(Some(RobertaProcessing::new(("[SEP]".to_owned(), 3), ("[CLS]".to_owned(), 2))));
    let [library, own] = pair_both_ways(&tokenizer, "a distillation", "a a");
    assert_eq!(library, own);
    assert_eq!(open(&tokenizer).unwrap().pair_frame().unwrap().middle, [3, 3]);
    assert_eq!(open(&tokenizer).unwrap().pair_frame().unwrap().segments, [0, 0]);
}

#[test]
fn words_given_one_by_one_keep_their_numbers() {
    let tokenizer = open(&word_piece(&WORD_PIECES)).unwrap();
    let words = ["distillation", "a", "", "a-a"].map(str::to_owned).to_vec();
    let document = Document { text: Text::Words(words), ..documents(&[""]).remove(0) };
    let encoded = tokenizer.encode_batch(&[document]).unwrap().remove(0).text;
    assert_eq!(encoded, Encoded { ids: vec![5, 6, 7, 8, 8, 1, 8], words: vec![0, 0, 0, 1, 3, 3, 3] });
    assert!(tokenizer.knows_single_words());
    let mut bytes = word_piece(&WORD_PIECES);
    bytes.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    assert!(!open(&bytes).unwrap().knows_single_words());
    bytes.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(true)));
    assert!(open(&bytes).unwrap().knows_single_words());
}

#[test]
fn truncation_and_padding_of_the_file_are_off() {
    let mut tokenizer = word_piece(&WORD_PIECES);
    tokenizer.with_padding(Some(PaddingParams::default()));
    tokenizer.with_truncation(Some(TruncationParams { max_length: 4, ..TruncationParams::default() })).unwrap();
    let tokenizer = open(&tokenizer).unwrap();
    let long = "a ".repeat(50);
    let lengths: Vec<usize> =
        tokenizer.encode_batch(&documents(&[&long, "a"])).unwrap().iter().map(|encoded| encoded.text.ids.len()).collect();
    assert_eq!(lengths, [50, 1]);
}

#[test]
fn a_batch_keeps_its_order() {
    let tokenizer = open(&word_piece(&WORD_PIECES)).unwrap();
    let texts: Vec<String> = (0..500).map(|n| "a ".repeat(n % 37)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let encoded = tokenizer.encode_batch(&documents(&texts)).unwrap();
    assert!(encoded.iter().enumerate().all(|(n, encoded)| encoded.text.ids.len() == n % 37));
}

#[test]
fn holes_in_the_ids_are_empty_tokens() {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"[PAD]":0,"[MASK]":2,"[UNK]":3,"C":6},"unk_token":"[UNK]"}}"#;
    let tokenizer = open(&Tokenizer::from_bytes(json).unwrap()).unwrap();
    assert_eq!(tokenizer.vocabulary(), ["[PAD]", "", "[MASK]", "[UNK]", "", "", "C"]);
    assert_eq!(tokenizer.frame().tokens(), 0);
}

#[test]
fn a_tokenizer_without_mask_or_unreadable_is_refused_by_name() {
    let message = open(&word_piece(&["[PAD]", "[UNK]", "[CLS]", "[SEP]", "b", "a"])).err().unwrap().to_string();
    assert!(message.contains("mask_token") && message.contains("[MASK], <mask>") && message.contains("tokenizer.json"), "{message}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    assert!(DocumentTokenizer::open(&path, Task::MaskedLm).err().unwrap().to_string().contains("cannot read"));
    std::fs::write(&path, "{}").unwrap();
    assert!(DocumentTokenizer::open(&path, Task::MaskedLm).err().unwrap().to_string().contains("tokenizer.json"));
}
