//! Grouped heads, angles and both layouts against candle's own operations, finite differences and each instruction level.

use super::*;
use crate::kernels::proof::{Proof, assert_close, numbers, random};
use crate::kernels::{Parameter, ParameterRef};
use candle_core::{DType, Device};

const PLAN: DropoutPlan = DropoutPlan { seed: 1, step: 3, hidden: 0.0, attention: 0.3 };

type Back<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

/// Query heads, key-value heads, width of a head, width of the hidden states.
#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    key_value_heads: usize,
    head_width: usize,
    width: usize,
    rotary: bool,
}

impl Case {
    fn columns(&self) -> [usize; 3] {
        let keys = self.key_value_heads * self.head_width;
        [self.heads * self.head_width, keys, keys]
    }

    /// Three maps without bias and one back, as Llama has them.
    fn apart(&self) -> Vec<Tensor> {
        let inputs = self.columns().into_iter().enumerate().map(|(i, columns)| random(10 + i as u64, &[columns, self.width], 0.6));
        inputs.chain([random(20, &[self.width, self.heads * self.head_width], 0.6)]).collect()
    }

    /// One map of all three and one back, both `[in, out]` and with a bias, as GPT-2 has them.
    fn joined(&self) -> Vec<Tensor> {
        let columns = self.columns().iter().sum();
        let wide = self.heads * self.head_width;
        vec![
            random(10, &[self.width, columns], 0.6),
            random(11, &[columns], 0.6),
            random(12, &[wide, self.width], 0.6),
            random(13, &[self.width], 0.6),
        ]
    }

    fn parameters(&self, list: &[ParameterRef], positions: usize) -> CausalParameters {
        let apart = |weight: &ParameterRef| Projection { weight: weight.clone(), bias: None, inputs_first: false };
        let joined = |i: usize| Projection { weight: list[i].clone(), bias: Some(list[i + 1].clone()), inputs_first: true };
        let is_apart = list[1].shape().dims().len() == 2;
        let rotary = Rotary::new(Rotary::frequencies(self.head_width, 50.0), positions);
        CausalParameters {
            inputs: if is_apart { list[..3].iter().map(apart).collect() } else { vec![joined(0)] },
            output: if is_apart { apart(&list[3]) } else { joined(2) },
            heads: self.heads,
            key_value_heads: self.key_value_heads,
            head_width: self.head_width,
            rotary: self.rotary.then(|| Arc::new(rotary)),
        }
    }

    /// One sequence without any packing, in candle's own operations.
    fn reference(&self, x: &Tensor, weights: &[Tensor]) -> Result<Tensor> {
        let length = x.dims2()?.0;
        let (qkv, back): (Tensor, Back<'_>) = if weights[1].dims().len() == 2 {
            let parts: Vec<Tensor> = weights[..3].iter().map(|weight| x.matmul(&weight.t()?)).collect::<Result<_>>()?;
            (Tensor::cat(&parts, 1)?, Box::new(|y| y.matmul(&weights[3].t()?)))
        } else {
            (x.matmul(&weights[0])?.broadcast_add(&weights[1])?, Box::new(|y| y.matmul(&weights[2])?.broadcast_add(&weights[3])))
        };
        let [wide, keys, _] = self.columns();
        let split = |first: usize, columns: usize| {
            qkv.narrow(1, first, columns)?.reshape((length, columns / self.head_width, self.head_width))?.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (split(0, wide)?, split(wide, keys)?, split(wide + keys, keys)?);
        let (q, k) = if self.rotary { (self.turned(&q)?, self.turned(&k)?) } else { (q, k) };
        let mut heads = Vec::new();
        for head in 0..self.heads {
            let key = head / (self.heads / self.key_value_heads);
            let scores = (q.get(head)?.matmul(&k.get(key)?.t()?)? / (self.head_width as f64).sqrt())?;
            let hidden = |i: usize| (0..length).map(move |j| if j > i { f64::NEG_INFINITY } else { 0.0 });
            let mask = Tensor::from_vec((0..length).flat_map(hidden).collect(), (length, length), &Device::Cpu)?;
            heads.push(candle_nn::ops::softmax(&(scores + mask)?, 1)?.matmul(&v.get(key)?)?);
        }
        back(&Tensor::cat(&heads, 1)?)
    }

    fn turned(&self, x: &Tensor) -> Result<Tensor> {
        let (heads, length, width) = x.dims3()?;
        let mut values = numbers(x);
        for (place, row) in values.chunks_exact_mut(width).enumerate() {
            let position = place % length;
            for i in 0..width / 2 {
                let angle = f64::from(position as f32 * Rotary::frequencies(width, 50.0)[i] as f32);
                let (a, b) = (row[i], row[i + width / 2]);
                let (cosine, sine) = (f64::from(angle.cos() as f32), f64::from(angle.sin() as f32));
                row[i] = a * cosine - b * sine;
                row[i + width / 2] = b * cosine + a * sine;
            }
        }
        Tensor::from_vec(values, (heads, length, width), &Device::Cpu)
    }
}

fn packing(lengths: &[usize]) -> Arc<Packing> {
    let mut offsets = vec![0];
    lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
    let ids: Vec<u64> = (0..lengths.len() as u64).collect();
    Packing::new(&offsets, &ids, &vec![0; lengths.len()]).unwrap()
}

fn wrapped(weights: &[Tensor], dtype: DType) -> Vec<ParameterRef> {
    weights.iter().map(|tensor| Parameter::new("p", &tensor.to_dtype(dtype).unwrap()).unwrap()).collect()
}

const CASES: [Case; 5] = [
    Case { heads: 2, key_value_heads: 2, head_width: 4, width: 8, rotary: false },
    Case { heads: 4, key_value_heads: 2, head_width: 6, width: 10, rotary: true },
    Case { heads: 3, key_value_heads: 1, head_width: 2, width: 5, rotary: true },
    Case { heads: 1, key_value_heads: 1, head_width: 18, width: 7, rotary: false },
    Case { heads: 6, key_value_heads: 3, head_width: 16, width: 96, rotary: true },
];

#[test]
fn packed_sequences_equal_each_alone() {
    for case in CASES {
        let packing = packing(&[1, 5, 17, 64, 65, 2, 130]);
        let x = random(1, &[packing.rows(), case.width], 1.0);
        for weights in [case.apart(), case.joined()] {
            let parameters = case.parameters(&wrapped(&weights, DType::F64), 130);
            let y = causal_attention(&x, &parameters, &packing, &DropoutPlan::off(), 0).unwrap();
            let mut expected = Vec::new();
            for i in 0..packing.sequences() {
                let range = packing.range(i);
                expected.extend(numbers(&case.reference(&x.narrow(0, range.start, range.len()).unwrap(), &weights).unwrap()));
            }
            assert_close("attention", &numbers(&y), &expected, 1e-11, 1e-11);
        }
    }
}

#[test]
fn gradients_with_and_without_dropout() {
    for (case, lengths) in [(CASES[0], vec![1, 5, 18]), (CASES[1], vec![7, 66]), (CASES[2], vec![3, 1, 20])] {
        for plan in [DropoutPlan::off(), PLAN] {
            let packing = packing(&lengths);
            let inputs = [random(1, &[packing.rows(), case.width], 1.0)];
            for weights in [case.apart(), case.joined()] {
                let run = |x: &[Tensor], p: &[ParameterRef]| causal_attention(&x[0], &case.parameters(p, 70), &packing, &plan, 1);
                Proof { inputs: &inputs, parameters: &weights, run }.check();
            }
        }
    }
}

#[test]
fn a_row_does_not_see_the_rows_after_it() {
    let (case, packing) = (CASES[1], packing(&[70]));
    let parameters = case.parameters(&wrapped(&case.apart(), DType::F64), 70);
    let x = random(1, &[70, case.width], 1.0);
    let changed = Tensor::cat(&[&x.narrow(0, 0, 66).unwrap(), &random(2, &[4, case.width], 1.0)], 0).unwrap();
    let run = |x: &Tensor| numbers(&causal_attention(x, &parameters, &packing, &PLAN, 0).unwrap());
    let (before, after) = (run(&x), run(&changed));
    assert_eq!(before[..66 * case.width], after[..66 * case.width]);
    assert_ne!(before[66 * case.width..], after[66 * case.width..]);
}

#[test]
fn large_scores_stay_finite() {
    let (case, packing) = (CASES[1], packing(&[70]));
    let x = candle_core::Var::from_tensor(&random(1, &[70, case.width], 100.0).to_dtype(DType::F32).unwrap()).unwrap();
    let parameters = case.parameters(&wrapped(&case.apart(), DType::F32), 70);
    let y = causal_attention(&x, &parameters, &packing, &DropoutPlan::off(), 0).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(numbers(&y).iter().chain(&numbers(gradients.get(&x).unwrap())).all(|value| value.is_finite()));
}

#[test]
fn heads_rows_angles_and_shapes_are_checked() {
    let case = CASES[1];
    let message = |change: fn(&mut CausalParameters), rows: usize, lengths: &[usize]| {
        let mut parameters = case.parameters(&wrapped(&case.apart(), DType::F64), 6);
        change(&mut parameters);
        let x = random(1, &[rows, case.width], 1.0);
        causal_attention(&x, &parameters, &packing(lengths), &DropoutPlan::off(), 0).unwrap_err().to_string()
    };
    assert!(message(|_| {}, 4, &[5]).contains("4 rows for a packing of 5"));
    assert!(message(|_| {}, 7, &[7]).contains("7 tokens for 6 positions"));
    assert!(message(|parameters| parameters.key_value_heads = 3, 4, &[4]).contains("4 heads of width 6 cannot share 3 keys"));
    assert!(message(|parameters| parameters.key_value_heads = 4, 4, &[4]).contains("projections to 48 columns for 12 heads"));
    assert!(message(|parameters| parameters.rotary = Some(Arc::new(Rotary::new(vec![1.0], 9))), 4, &[4]).contains("width 2 instead of 6"));
}
