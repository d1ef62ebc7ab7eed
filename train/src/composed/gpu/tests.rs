//! The kernels in single precision beside the composed operations in double, on the processor.

use super::sum_of_squares;
use crate::composed::divergences::Taught;
use crate::composed::operations::{activate, affine, column_sums, layer_norm, masked_softmax};
use crate::composed::vocabulary::{Decoder, Labels, chunk};
use crate::kernels::proof::{assert_close, numbers, random};
use crate::kernels::{Activation, HeadTargets, Precision};
use crate::loss::{Normalisers, Objective, StepObjective};
use candle_core::{DType, Device, Result, Tensor, Var};
use logitcache::seed::{Purpose, RandomStream};

fn gpu() -> Device {
    Device::new_cuda(0).unwrap()
}

/// What `function` makes of tensors of these shapes, and their gradients: on the processor in double precision, and on the GPU in single.
fn both(shapes: &[&[usize]], function: impl Fn(&[Tensor]) -> Result<Tensor>) -> [Vec<Vec<f64>>; 2] {
    [(Device::Cpu, DType::F64), (gpu(), DType::F32)].map(|(device, dtype)| {
        let given: Vec<Var> = shapes
            .iter()
            .enumerate()
            .map(|(number, shape)| {
                let values = random(number as u64 + 1, shape, 2.0).to_dtype(dtype).unwrap().to_device(&device).unwrap();
                Var::from_tensor(&values).unwrap()
            })
            .collect();
        let tensors: Vec<Tensor> = given.iter().map(|var| var.as_tensor().clone()).collect();
        let y = function(&tensors).unwrap();
        let weights = random(99, y.dims(), 1.0).to_dtype(dtype).unwrap().to_device(&device).unwrap();
        let gradients = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let slopes = given.iter().map(|var| numbers(gradients.get(var).unwrap()));
        std::iter::once(numbers(&y)).chain(slopes).collect()
    })
}

/// To single precision, which differences of a tensor's larger numbers leave to its small ones.
fn assert_same(what: &str, [expected, found]: [Vec<Vec<f64>>; 2]) {
    assert_eq!(found.len(), expected.len());
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        assert_close(&format!("{what}, tensor {number}"), found, expected, 1e-5, 2e-5 * largest);
    }
}

#[test]
fn rows_are_normalised_and_biased_and_the_gradients_come_back() {
    for (rows, width) in [(1, 7), (37, 768), (600, 33), (5, 1030)] {
        let shapes = [&[rows, width][..], &[width], &[width]];
        let what = format!("{rows} x {width}");
        assert_same(&format!("norm of {what}"), both(&shapes, |of| layer_norm(&of[0], &of[1], &of[2], 1e-5)));
        let shapes = [&[rows, 8][..], &[width, 8], &[width]];
        assert_same(&format!("map to {what}"), both(&shapes, |of| affine(&of[0], &of[1], &of[2], false, Precision::Single)));
        let shapes = [&[rows, 8][..], &[8, width], &[width]];
        assert_same(
            &format!("map with the inputs first to {what}"),
            both(&shapes, |of| affine(&of[0], &of[1], &of[2], true, Precision::Single)),
        );
        let x = random(3, &[rows, width], 1.0);
        for (dtype, near) in [(DType::F32, 1e-6), (DType::BF16, 4e-3)] {
            let sums = column_sums(&x.to_dtype(dtype).unwrap().to_device(&gpu()).unwrap()).unwrap();
            assert_close(&format!("sums of {what}"), &numbers(&sums), &numbers(&x.sum(0).unwrap()), near, near * rows as f64);
        }
    }
}

#[test]
fn activations_are_the_composed_ones() {
    for activation in Activation::ALL {
        assert_same(&format!("{activation:?}"), both(&[&[70, 130]], |of| activate(&of[0], activation)));
    }
}

#[test]
fn a_softmax_knows_the_mask_of_its_sequence_and_of_its_query() {
    for longest in [1, 31, 128, 200] {
        let hidden = |is_hidden: bool| if is_hidden { f64::NEG_INFINITY } else { 0.0 };
        let by_sequence: Vec<f64> = (0..3 * longest).map(|place| hidden(place % longest > longest / (1 + place / longest))).collect();
        let by_query: Vec<f64> = (0..longest * longest).map(|place| hidden(place % longest > place / longest)).collect();
        for (mask, shape) in [(by_sequence, [3, 1, 1, longest]), (by_query, [1, 1, longest, longest])] {
            let mask = Tensor::from_vec(mask, &shape, &Device::Cpu).unwrap();
            let found =
                both(&[&[3, 2, longest, longest]], |of| masked_softmax(&of[0], &mask.to_dtype(of[0].dtype())?.to_device(of[0].device())?));
            assert_same(&format!("softmax over {longest}, mask {shape:?}"), found);
        }
    }
}

#[test]
fn squares_are_added_in_double_precision() {
    for count in [1, 1023, 100_003, 3_000_000] {
        let x = random(4, &[count], 1.0).to_dtype(DType::F32).unwrap();
        let sums = sum_of_squares(&x.to_device(&gpu()).unwrap()).unwrap();
        let expected = numbers(&x).iter().map(|value| value * value).sum::<f64>();
        assert_close("sum", &[numbers(&sums).iter().sum::<f64>()], &[expected], 1e-12, 0.0);
    }
}

#[test]
fn logits_give_their_losses_and_slopes() {
    let (rows, width, vocabulary, k) = (9, 16, 1003, 5);
    let mut stream = RandomStream::new(31, Purpose::Shuffling, &[]);
    let (mut top_ids, mut log_probabilities) = (Vec::new(), Vec::new());
    for _ in 0..rows {
        let mut ids: Vec<u32> = (0..vocabulary as u32).collect();
        stream.shuffle(&mut ids);
        top_ids.extend(&ids[..k]);
        log_probabilities.extend([-0.7f32, -1.6, -2.5, -3.1, -6.0]);
    }
    let mut labels: Vec<i32> = (0..rows as i32).map(|row| row * 111).collect();
    // One without a label, one whose label is stored.
    (labels[1], labels[2]) = (-100, top_ids[2 * k + 1] as i32);
    let max_logit: Vec<f32> = (0..rows).map(|row| row as f32).collect();
    let targets = HeadTargets { k, top_ids: &top_ids, log_probabilities: &log_probabilities, max_logit: &max_logit, labels: &labels };
    for loss in ["ce=5,mlm=2", "mlm=1", "ce=1:tail=uniform,gold=1", "reverse-kl=1,jsd=1,tvd=1", "logit-mse=1,ce=1:tail=renormalised-both"] {
        let objective: Objective = loss.parse().unwrap();
        let normalisers = Normalisers { asked: rows, labelled: rows - 1, tokens: rows, sequences: 1 };
        let step = StepObjective::new(&objective, (0, 1), 2.0, normalisers);
        let run = |device: &Device, dtype: DType, precision: Precision, biased: bool| {
            let [x, weight, bias] = [&[rows, width][..], &[vocabulary, width], &[vocabulary]]
                .map(|shape| random(shape.len() as u64, shape, 1.0).to_dtype(dtype).unwrap().to_device(device).unwrap());
            let decoder = Decoder { weight: &weight, bias: biased.then_some(&bias), precision };
            let taught = Taught::new(&targets, vocabulary, 2.0, dtype, device).unwrap();
            let labels = Labels::new(&targets, vocabulary, &step, dtype, device).unwrap();
            let (slopes, losses) = chunk(&x, &decoder, &taught, &labels, &step).unwrap();
            [vec![numbers(&slopes)], losses.iter().map(|(_, value)| numbers(value)).collect()].concat()
        };
        for biased in [true, false] {
            let expected = run(&Device::Cpu, DType::F64, Precision::Single, biased);
            assert_same(loss, [expected.clone(), run(&gpu(), DType::F32, Precision::Single, biased)]);
            let rounded = run(&gpu(), DType::F32, Precision::Bf16, biased);
            for (found, expected) in rounded.iter().zip(&expected) {
                let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
                assert_close(&format!("{loss} in bf16"), found, expected, 3e-2, 2e-2 * largest);
            }
        }
    }
}
