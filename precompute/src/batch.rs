//! Sequences of a shard to batches of like lengths. Pure.
//!
//! A batch is a rectangle: `rows x longest row` tokens are computed, padding included. Sorted by length, consecutive rows make the least
//! padding; where the cuts fall is found exactly, by dynamic programming over the sorted rows.

/// What starting a batch costs, in tokens, as measured with small teachers on two cores: keeps rows of like lengths together where their own batch
/// would be tiny.
const BATCH_COST_TOKENS: usize = 32;

/// The rows of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// Indices into the lengths given, longest row first, equal lengths in the order given.
    pub rows: Vec<usize>,
    /// The length every row is padded to: that of the first row.
    pub length: usize,
}

impl BatchPlan {
    /// Tokens computed, padding included.
    pub fn padded_tokens(&self) -> usize {
        self.rows.len() * self.length
    }
}

/// Distributes rows over batches of at most `budget_tokens` tokens with padding counted, the longest rows first. The batches have the
/// least cost (padded tokens, and a fixed number per batch) that any cut of the sorted rows can have. A row above the budget gets a batch
/// of its own.
pub fn plan(lengths: &[usize], budget_tokens: usize) -> Vec<BatchPlan> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
    // cheapest[end]: (cost of the best batches for the first `end` rows, where the last of them starts).
    let mut cheapest = vec![(0, 0)];
    for end in 1..=order.len() {
        let mut best = (usize::MAX, 0);
        for start in (0..end).rev() {
            // Sorted, so the first row is the longest: going back, batches only grow.
            let padded = (end - start) * lengths[order[start]];
            if padded > budget_tokens && end - start > 1 {
                break;
            }
            let cost = cheapest[start].0 + padded + BATCH_COST_TOKENS;
            if cost < best.0 {
                best = (cost, start);
            }
        }
        cheapest.push(best);
    }
    let mut batches = Vec::new();
    let mut end = order.len();
    while end > 0 {
        let start = cheapest[end].1;
        batches.push(BatchPlan { rows: order[start..end].to_vec(), length: lengths[order[start]] });
        end = start;
    }
    batches.reverse();
    batches
}

/// The teacher's inputs for a batch, each `[rows, length]`, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaddedInputs {
    /// Token ids, the padding token after a row's end.
    pub input_ids: Vec<i64>,
    /// 1 for a token, 0 for padding.
    pub attention_mask: Vec<i64>,
    /// Segment ids, 0 after a row's end.
    pub token_type_ids: Vec<i64>,
}

/// Pads rows of (token ids, segment ids) on the right to `length`; no row is longer.
pub fn pad<'a>(rows: impl IntoIterator<Item = (&'a [u32], &'a [u8])>, length: usize, pad_id: u32) -> PaddedInputs {
    let mut inputs = PaddedInputs::default();
    let mut end = 0;
    for (ids, segments) in rows {
        debug_assert!(ids.len() <= length && segments.len() == ids.len(), "a plan's length is that of its longest row");
        end += length;
        inputs.input_ids.extend(ids.iter().map(|id| i64::from(*id)));
        inputs.input_ids.resize(end, i64::from(pad_id));
        inputs.attention_mask.resize(end - length + ids.len(), 1);
        inputs.attention_mask.resize(end, 0);
        inputs.token_type_ids.extend(segments.iter().map(|segment| i64::from(*segment)));
        inputs.token_type_ids.resize(end, 0);
    }
    inputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use logitcache::seed::{Purpose, RandomStream};
    use proptest::prelude::*;

    fn padded(batches: &[BatchPlan]) -> usize {
        batches.iter().map(BatchPlan::padded_tokens).sum()
    }

    /// Tokens of the first 256 lines of WikiText-2's validation part that have 12 of BERT's uncased vocabulary, special ones included.
    #[rustfmt::skip]
    const NATURAL_LENGTHS: [usize; 256] = [
        155, 154, 84, 75, 63, 29, 37, 32, 120, 151, 92, 115, 57, 66, 38, 57, 68, 137, 116, 22, 59, 132, 72, 37, 134, 207,
        106, 167, 222, 117, 190, 233, 194, 12, 306, 212, 280, 215, 287, 73, 13, 128, 288, 162, 59, 177, 256, 184, 102, 134, 12, 262,
        152, 233, 12, 361, 130, 133, 320, 100, 76, 208, 137, 80, 194, 61, 129, 162, 172, 137, 126, 102, 174, 129, 92, 117, 170, 150,
        66, 61, 96, 85, 30, 23, 35, 25, 24, 25, 27, 26, 27, 124, 103, 158, 169, 17, 22, 213, 93, 167, 85, 150, 201, 125,
        118, 81, 194, 126, 139, 141, 146, 162, 190, 182, 200, 81, 98, 189, 257, 220, 336, 297, 133, 162, 141, 250, 131, 153, 88, 12,
        166, 90, 123, 36, 49, 32, 46, 36, 32, 18, 22, 15, 175, 119, 189, 284, 80, 116, 207, 205, 20, 28, 16, 13, 12, 44,
        13, 22, 21, 46, 17, 22, 23, 36, 12, 53, 12, 106, 30, 65, 100, 18, 44, 36, 38, 23, 16, 73, 16, 22, 38, 13,
        41, 44, 136, 86, 64, 48, 113, 180, 140, 43, 13, 178, 119, 191, 152, 47, 45, 88, 66, 106, 162, 12, 122, 52, 194, 147,
        131, 12, 189, 12, 37, 215, 90, 195, 203, 17, 42, 48, 65, 13, 17, 16, 15, 188, 87, 66, 91, 107, 179, 47, 101, 89,
        75, 106, 47, 102, 123, 124, 84, 94, 82, 87, 134, 171, 37, 18, 116, 106, 133, 147, 168, 179, 111, 80,
    ];

    #[test]
    fn rows_are_sorted_by_length_and_ties_keep_their_order() {
        let batches = plan(&[3, 5, 3, 9, 5], 1000);
        assert_eq!(batches, [BatchPlan { rows: vec![3, 1, 4, 0, 2], length: 9 }]);
        assert_eq!(plan(&[], 100), []);
        assert_eq!(plan(&[300, 4], 100), [BatchPlan { rows: vec![0], length: 300 }, BatchPlan { rows: vec![1], length: 4 }]);
    }

    #[test]
    fn cuts_fall_where_lengths_jump() {
        let lengths = [vec![128; 10], vec![40; 30]].concat();
        let batches = plan(&lengths, 4096);
        let shapes: Vec<_> = batches.iter().map(|batch| (batch.rows.len(), batch.length)).collect();
        assert_eq!(shapes, [(10, 128), (30, 40)]);
        assert_eq!(padded(&batches), 10 * 128 + 30 * 40);
    }

    #[test]
    fn padding_of_reaction_like_lengths_stays_under_five_percent() {
        // Lengths of tokenised reactions: about log-normal, median 62, cut at 128.
        let mut stream = RandomStream::new(0, Purpose::Shuffling, &[]);
        let mut totals = (0, 0, 0);
        for _shard in 0..12 {
            let length = |normal: f64| ((62.0 * (0.5 * normal).exp()) as usize).clamp(12, 128);
            let lengths: Vec<usize> = (0..512).map(|_| length(stream.normal())).collect();
            let batches = plan(&lengths, 4096);
            totals = (totals.0 + lengths.iter().sum::<usize>(), totals.1 + padded(&batches), totals.2 + batches.len());
        }
        let share = 1.0 - totals.0 as f64 / totals.1 as f64;
        assert!(share < 0.05, "padding is {share}");
        let mean = totals.1 / totals.2;
        assert!(mean > 1000, "batches of {mean} tokens on average are too small to be worth a run");
    }

    #[test]
    fn padding_of_natural_text_stays_under_three_percent() {
        for longest in [64, 128, 512] {
            let lengths = NATURAL_LENGTHS.map(|length| length.min(longest));
            for budget in [1024, 4096, 16384] {
                let share = 1.0 - lengths.iter().sum::<usize>() as f64 / padded(&plan(&lengths, budget)) as f64;
                assert!(share < 0.03, "{share} of batches of {budget} tokens, cut at {longest}, is padding");
            }
        }
    }

    #[test]
    fn padding_fills_the_right_side() {
        let (long, short) = ([5_u32, 6, 7], [8_u32]);
        let inputs = pad([(&long[..], &[0_u8, 1, 1][..]), (&short[..], &[1_u8][..])], 3, 9);
        assert_eq!(inputs.input_ids, [5, 6, 7, 8, 9, 9]);
        assert_eq!(inputs.attention_mask, [1, 1, 1, 1, 0, 0]);
        assert_eq!(inputs.token_type_ids, [0, 1, 1, 1, 0, 0]);
    }

    /// The least cost over every way to cut the sorted rows, tried one by one.
    fn least_cost(sorted: &[usize], budget: usize) -> usize {
        let batch = |size: usize| size * sorted[0] + BATCH_COST_TOKENS;
        let fits = |size: &usize| *size == 1 || size * sorted[0] <= budget;
        (1..=sorted.len()).filter(fits).map(|size| batch(size) + least_cost(&sorted[size..], budget)).min().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn every_row_once_in_budget_at_the_least_cost(lengths in prop::collection::vec(1_usize..200, 0..11), budget in 1_usize..900) {
            let batches = plan(&lengths, budget);
            let mut rows: Vec<usize> = batches.iter().flat_map(|batch| batch.rows.clone()).collect();
            let along: Vec<usize> = rows.iter().map(|row| lengths[*row]).collect();
            prop_assert!(along.is_sorted_by(|a, b| a >= b));
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                prop_assert_eq!(Some(batch.length), batch.rows.iter().map(|row| lengths[*row]).max());
                prop_assert!(batch.rows.len() == 1 || batch.padded_tokens() <= budget);
            }
            let cost = padded(&batches) + BATCH_COST_TOKENS * batches.len();
            prop_assert_eq!(cost, least_cost(&along, budget));
        }
    }
}
