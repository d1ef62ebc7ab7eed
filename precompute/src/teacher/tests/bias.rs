//! The bias of a head left to the reader: what the graph gives without it, and it, are the logits.

use super::*;

#[test]
fn the_product_and_the_bias_are_the_logits_to_the_bit() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    let models = [
        ("teacher/model.onnx", true),
        ("golden/onnx/bert/torchscript-17.onnx", true),
        ("golden/onnx/bert/torchscript-11.onnx", true),
        ("golden/onnx/bert/half.onnx", false),
        ("golden/onnx/bert/dynamo.onnx", true),
        ("golden/teachers/electra/model.onnx", true),
        ("golden/teachers/gpt2/model.onnx", false),
        ("golden/teachers/bert-tagger/model.onnx", false),
    ];
    let runtime = runtime::load(None).unwrap();
    for (name, has_bias) in models {
        let files = files(data.join(name));
        let open = |leave: bool| {
            let mut prepared = prepare(&files, &HiddenLayers::Last, &BTreeMap::new()).unwrap_or_else(|error| panic!("{name}: {error}"));
            if leave {
                prepared.leave_bias();
            }
            Teacher::open(&runtime, prepared, 1, "cpu").unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let (mut whole, mut left) = (open(false), open(true));
        assert_eq!((whole.bias().is_some(), left.bias().is_some()), (false, has_bias), "{name}");
        let token_type_ids = vec![0; 10];
        let batch = TeacherBatch { rows: 2, length: 5, input_ids: (5..15).collect(), attention_mask: vec![1; 10], token_type_ids };
        let read = |answer: &Answer<'_>| Ok([0, 1].map(|row| answer.states(row).to_vec()).concat());
        let expected = whole.run(&batch, read).unwrap();
        let product = left.run(&batch, read).unwrap();
        let bias = left.bias().unwrap_or_else(|| vec![0.0; left.width()].into());
        let found: Vec<f32> = product.iter().zip(bias.iter().cycle()).map(|(logit, bias)| logit + bias).collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(left.summary(), whole.summary(), "{name}: where the logits come from is not what they are");
    }
}
