//! Steps: ten of them beside the kernels', and what bf16 rounds.

use super::*;
use crate::optim::{AdamW, measure};
use crate::trainer::trainable;

const SETTINGS: AdamWSettings = AdamWSettings { beta_1: 0.9, beta_2: 0.98, epsilon: 1e-6, weight_decay: 0.1 };

fn values(parameters: &[ParameterRef]) -> Vec<Vec<f64>> {
    parameters.iter().map(|each| numbers(&each.value().detach())).collect()
}

#[test]
fn ten_steps_are_the_kernels() {
    for config in families().into_iter().chain(decoders()) {
        let step = step_of(&config, 5);
        let pairs = [HiddenPair { student: 1, teacher: 3 }, HiddenPair { student: config.num_hidden_layers, teacher: 1 }];
        let objective = StepObjective::new(&"ce=5,mlm=2,cos=1,hidden-mse=1".parse().unwrap(), (0, 1), TEMPERATURE, step.normalisers());
        let start = || {
            let hidden = HiddenObjective::new(&pairs, (config.hidden_size, 5), DType::F32, 1).unwrap();
            (student(config.clone(), DType::F32), hidden)
        };
        let (kernels, hidden) = start();
        let trained = trainable(&kernels, &hidden);
        let mut adamw = AdamW::new(SETTINGS, Moments::zeros(&trained), &trained).unwrap();
        let mut curve = Vec::new();
        for number in 0..10 {
            let mut parts = LossParts::default();
            for batch in &step.micro_batches {
                let (scalar, found) = kernels.mapped_loss(batch, &objective, &hidden, &DropoutPlan::off()).unwrap();
                scalar.backward().unwrap();
                parts += found;
            }
            let clipped = measure(&trained, 1.0).unwrap();
            adamw.update(&trained, 1e-3 * f64::from(number + 1), clipped.scale).unwrap();
            curve.extend([parts.total, clipped.norm]);
        }

        let (student, hidden) = start();
        let parameters = trainable(&student, &hidden);
        let first = values(&parameters);
        let composed = || Composed::new(&student, &hidden, &device(), Precision::Single).unwrap();
        let mut training = composed().train(SETTINGS, &Moments::zeros(&parameters)).unwrap();
        let mut found = Vec::new();
        for number in 0..10 {
            if number == 4 {
                // As a run that stops and goes on.
                let moments = training.download().unwrap();
                training = composed().train(SETTINGS, &moments).unwrap();
            }
            if number == 7 {
                training.gradients(&step, &objective, &DropoutPlan::off()).unwrap();
                training.forget();
            }
            let gradients = training.gradients(&step, &objective, &DropoutPlan::off()).unwrap();
            let scale = (1.0 / (gradients.norm + 1e-6)).min(1.0);
            training.update(1e-3 * f64::from(number + 1), scale).unwrap();
            found.extend([gradients.parts.iter().map(|parts| parts.total).sum::<f64>(), gradients.norm]);
        }
        let moments = training.download().unwrap();
        assert_close(&format!("losses and norms of {}", config.family), &found, &curve, 2e-5, 0.0);
        for (index, (found, expected)) in values(&parameters).iter().zip(&values(&trained)).enumerate() {
            let name = parameters[index].name();
            assert_ne!(found, &first[index], "{name} has moved");
            // AdamW takes a slope that is nothing but rounding, a key's bias's, for one like any other.
            let rounding =
                name.contains("k_lin.bias") || name.contains("key.bias") || name.contains("k_proj.bias") || name.contains("c_attn.bias");
            assert_close(name, found, expected, 1e-5, if rounding { 1e-1 } else { 2e-5 });
        }
        assert_eq!(moments.step, 10);
        for (found, expected) in moments.first.iter().zip(&adamw.moments().first) {
            let both = [found, expected].map(|moments| moments.iter().map(|each| f64::from(*each)).collect::<Vec<_>>());
            assert_close("first moments", &both[0], &both[1], 1e-3, 2e-6);
        }
        for (found, expected) in moments.second.iter().zip(&adamw.moments().second) {
            let both = [found, expected].map(|moments| moments.iter().map(|each| f64::from(*each)).collect::<Vec<_>>());
            assert_close("second moments", &both[0], &both[1], 1e-3, 1e-8);
        }
    }
}

#[test]
fn bf16_is_near_single_precision_and_reaches_every_linear_map() {
    for config in families().into_iter().chain(decoders()) {
        let step = step_of(&config, config.hidden_size);
        let student = student(config.clone(), DType::F32);
        let hidden = HiddenObjective::last(config.num_hidden_layers);
        let objective = StepObjective::new(&"ce=5,mlm=2,cos=1".parse().unwrap(), (0, 1), TEMPERATURE, step.normalisers());
        let run = |precision| {
            let composed = Composed::new(&student, &hidden, &device(), precision).unwrap();
            let mut training = composed.train(SETTINGS, &Moments::zeros(student.parameters())).unwrap();
            let found = training.gradients(&step, &objective, &DropoutPlan::off()).unwrap();
            let gradients = training.optimiser.gradients().iter().map(|each| each.as_ref().map(numbers).unwrap_or_default());
            (found.parts.iter().map(|parts| parts.total).sum::<f64>(), gradients.collect::<Vec<_>>())
        };
        let ((single, exact), (rounded, near)) = (run(Precision::Single), run(Precision::Bf16));
        assert!((single - rounded).abs() <= 2e-2 * single, "{single} and {rounded}");
        let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum::<f64>().sqrt();
        for (parameter, (exact, near)) in student.parameters().iter().zip(exact.iter().zip(&near)) {
            let (distance, length) = (norm(&mut exact.iter().zip(near).map(|(a, b)| a - b)), norm(&mut exact.iter().copied()));
            assert!(distance > 0.0 && (distance <= 0.2 * length || length < 1e-4), "{}: {distance} of {length}", parameter.name());
        }
    }
}
