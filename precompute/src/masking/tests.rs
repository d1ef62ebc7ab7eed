//! Shares and independence by counting, promises by properties.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

const VOCABULARY: usize = 200;
const MASK: u32 = 4;
const HOLE: u32 = 199;

fn special() -> SpecialTokens {
    SpecialTokens { mask: Some(MASK), pad: Some(0), end: None, unknown: Some(1), all: vec![0, 1, 2, 3, 4], beside: vec![] }
}

fn masking(probability: f64, whole_word: bool, seed: u64) -> Masking {
    let vocabulary: Vec<String> = (0..VOCABULARY).map(|id| if id as u32 == HOLE { String::new() } else { format!("t{id}") }).collect();
    Masking::new(MaskingRules { probability, whole_word, seed }, &special(), &vocabulary).unwrap()
}

/// `[CLS]`, ordinary tokens, `[SEP]`.
fn sequence(length: usize) -> Vec<u32> {
    [vec![2], (0..length as u32 - 2).map(|i| 5 + i % 100).collect(), vec![3]].concat()
}

fn drawn(masked: &Masked) -> Vec<usize> {
    (0..masked.labels.len()).filter(|position| masked.labels[*position] != IGNORED_LABEL).collect()
}

#[test]
fn the_share_is_exact_on_average_at_every_length() {
    let masking = masking(0.15, false, 3);
    for length in [12, 17, 62, 128] {
        let input = sequence(length);
        let total: usize = (0..4000).map(|id| drawn(&masking.mask(0, id, &input, &[])).len()).sum();
        let share = total as f64 / (4000 * (length - 2)) as f64;
        assert!((share - 0.15).abs() < 0.002, "{share} at length {length}");
    }
}

#[test]
fn drawn_tokens_become_mask_random_or_stay_as_80_to_10_to_10() {
    let masking = masking(0.15, false, 0);
    let input = sequence(102);
    let (mut masks, mut others, mut same) = (0, 0, 0);
    let mut replacements = HashSet::new();
    for id in 0..6000 {
        let masked = masking.mask(0, id, &input, &[]);
        for position in drawn(&masked) {
            assert_eq!(masked.labels[position], input[position] as i32);
            match masked.input_ids[position] {
                MASK => masks += 1,
                id if id == input[position] => same += 1,
                id => {
                    others += 1;
                    replacements.insert(id);
                }
            }
        }
    }
    let share = |count: usize| count as f64 / (masks + others + same) as f64;
    // 90,000 draws: the standard error is below 0.0014. One random token in 194 is the same as before.
    assert!((share(masks) - 0.8).abs() < 0.006, "{}", share(masks));
    assert!((share(others) - 0.1 * 193.0 / 194.0).abs() < 0.005, "{}", share(others));
    assert!((share(same) - 0.1 - 0.1 / 194.0).abs() < 0.005, "{}", share(same));
    // Every ordinary id replaces, no special one and no hole does.
    assert_eq!(replacements, (5..HOLE).collect());
}

#[test]
fn every_position_is_drawn_equally_often() {
    let masking = masking(0.15, false, 11);
    let input = sequence(42);
    let mut counts = vec![0_u32; 42];
    for id in 0..10_000 {
        drawn(&masking.mask(0, id, &input, &[])).into_iter().for_each(|position| counts[position] += 1);
    }
    assert_eq!((counts[0], counts[41]), (0, 0));
    // Binomial(10,000, 0.15): standard deviation 36.
    assert!(counts[1..41].iter().all(|count| count.abs_diff(1500) < 180), "{counts:?}");
}

#[test]
fn sequences_passes_and_seeds_draw_independently() {
    let input = sequence(42);
    let set = |seed, pass, id| drawn(&masking(0.15, false, seed).mask(pass, id, &input, &[])).into_iter().collect::<HashSet<_>>();
    // Two independent draws of 6 of 40 share 0.9 on average; over 2,000 pairs the standard error is 0.018.
    type Neighbour = fn(u64) -> (u64, u16, u64);
    let neighbours: [(&str, Neighbour); 3] = [("sequence", |id| (0, 0, id + 1)), ("pass", |id| (0, 1, id)), ("seed", |id| (1, 0, id))];
    for (name, other) in neighbours {
        let shared: usize = (0..2000)
            .map(|id| {
                let (seed, pass, other_id) = other(id);
                set(0, 0, id).intersection(&set(seed, pass, other_id)).count()
            })
            .sum();
        let mean = shared as f64 / 2000.0;
        assert!((mean - 0.9).abs() < 0.1, "{name}: {mean} positions shared");
    }
}

#[test]
fn rare_tokens_are_drawn_more_often_under_smoothing() {
    // One token drawn of two kinds, 20 positions each, seen 1 and 1,000 times: the chance is that of the weights.
    let mut counts = vec![0; VOCABULARY];
    let input: Vec<u32> = [vec![2], vec![10; 20], vec![11; 20], vec![3]].concat();
    (0..1000).for_each(|_| count_tokens(&mut counts, &[11, 5000]));
    let smoothed = masking(0.01, false, 5).with_smoothing(&counts, DISTILBERT_SMOOTHING).unwrap();
    let draws = 20_000;
    let rare = (0..draws).filter(|id| drawn(&smoothed.mask(0, *id, &input, &[]))[0] <= 20).count();
    let expected = 1.0 / (1.0 + 1000_f64.powf(-0.7));
    assert!((rare as f64 / draws as f64 - expected).abs() < 0.002, "{rare} of {draws}, expected share {expected}");
    let flat = masking(0.01, false, 5).with_smoothing(&counts, 0.0).unwrap();
    assert!((0..200).all(|id| flat.mask(0, id, &input, &[]) == masking(0.01, false, 5).mask(0, id, &input, &[])));
}

#[test]
fn whole_words_are_drawn_together_and_near_the_share() {
    let masking = masking(0.15, true, 1);
    let input = sequence(102);
    // Words of 1, 2 and 3 pieces in turn.
    let pattern = [0, 1, 1, 2, 2, 2];
    let words: Vec<u32> = [vec![NO_WORD], (0..100).map(|i| (i / 6 * 3) as u32 + pattern[i % 6]).collect(), vec![NO_WORD]].concat();
    let mut total = 0;
    for id in 0..2000 {
        let positions = drawn(&masking.mask(0, id, &input, &words));
        let chosen: HashSet<u32> = positions.iter().map(|position| words[*position]).collect();
        let whole: Vec<usize> = (0..words.len()).filter(|position| chosen.contains(&words[*position])).collect();
        assert_eq!(positions, whole);
        total += positions.len();
    }
    let share = total as f64 / 200_000.0;
    assert!((share - 0.15).abs() < 0.002, "{share}");
    // A single long word is drawn whole, since something has to be.
    assert_eq!(drawn(&masking.mask(0, 0, &sequence(12), &[7; 12])).len(), 10);
}

#[test]
fn wrong_rules_are_refused() {
    let vocabulary = vec!["t".to_owned(); 10];
    for probability in [0.0, -0.1, 1.5, f64::NAN] {
        let rules = MaskingRules { probability, whole_word: false, seed: 0 };
        let error = Masking::new(rules, &special(), &vocabulary).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("--mask-probability"), "{error}");
    }
    let rules = MaskingRules { probability: 0.15, whole_word: false, seed: 0 };
    assert!(Masking::new(rules, &special(), &vocabulary[..5]).is_err());
    assert!(masking(0.15, false, 0).with_smoothing(&[1; 3], 0.7).is_err());
    assert!(masking(0.15, false, 0).with_smoothing(&[1; VOCABULARY], f64::NAN).is_err());
}

#[test]
fn a_draw_is_pinned() {
    // The draws are part of what makes a cache repeatable: a change here changes every cache made before.
    let masked = masking(0.15, false, 0).mask(1, 12345, &sequence(30), &[]);
    assert_eq!(drawn(&masked), [4, 12, 17, 19, 27]);
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..VOCABULARY as u32, 1..80)
}

proptest! {
    #[test]
    fn masking_keeps_its_promises(
        ids in ids(), probability in 0.01_f64..=1.0, whole_word: bool, seed: u64, pass: u16, sequence_id: u64
    ) {
        let masking = masking(probability, whole_word, seed);
        let words: Vec<u32> = (0..ids.len() as u32).map(|i| i / 3).collect();
        let masked = masking.mask(pass, sequence_id, &ids, &words);
        prop_assert_eq!(&masked, &masking.mask(pass, sequence_id, &ids, &words));
        let is_special = |id: u32| special().contains(id);
        let maskable = ids.iter().filter(|id| !is_special(**id)).count();
        let positions = drawn(&masked);
        prop_assert!(positions.len() <= maskable && (maskable == 0) == positions.is_empty());
        for (position, id) in ids.iter().enumerate() {
            if masked.labels[position] == IGNORED_LABEL {
                prop_assert_eq!(masked.input_ids[position], *id);
            } else {
                prop_assert!(!is_special(*id));
                prop_assert_eq!(masked.labels[position], *id as i32);
                let seen = masked.input_ids[position];
                prop_assert!(seen == MASK || !is_special(seen));
            }
        }
        if !whole_word {
            prop_assert!((positions.len() as f64 - probability * maskable as f64).abs() <= 1.0);
        }
    }

    #[test]
    fn positions_follow_their_rule(ids in ids(), share in 0.01_f32..=1.0, seed: u64, sequence_id: u64) {
        let masking = masking(0.15, false, seed);
        let labels = masking.mask(0, sequence_id, &ids, &[]).labels;
        let asked = |rule| masking.positions(rule, 0, sequence_id, &ids, &labels);
        let tokens: Vec<u16> = (0..ids.len() as u16).filter(|position| !special().contains(ids[usize::from(*position)])).collect();
        let masked: Vec<u16> = (0..ids.len() as u16).filter(|position| labels[usize::from(*position)] != IGNORED_LABEL).collect();
        prop_assert_eq!(asked(PositionRule::All), (0..ids.len() as u16).collect::<Vec<_>>());
        prop_assert_eq!(&asked(PositionRule::Tokens), &tokens);
        prop_assert_eq!(&asked(PositionRule::Masked), &masked);
        let shared = asked(PositionRule::Share(share));
        prop_assert!(shared.is_sorted_by(|a, b| a < b));
        prop_assert!(masked.iter().all(|position| shared.contains(position)));
        prop_assert!(shared.iter().all(|position| tokens.contains(position)));
        let wanted = (f64::from(share) * tokens.len() as f64).round() as usize;
        prop_assert_eq!(shared.len(), wanted.max(masked.len()));
        prop_assert_eq!(asked(PositionRule::Share(1.0)), tokens);
    }
}
