"""What make_teachers.py writes: small random teachers, each a directory as an export tool lays it out.

    vocabularies  a tokenizer of 64 ids for each family
    models        the random models of every family and task
    inputs        the batch that all of them answer, and what transformers answers
    exports       ONNX files from both exporters, decoders with the keys and values of earlier tokens too
    variants      the same graphs in float16, int8, another opset, with weights beside, merged
    language      masked and causal language models
    tasks         classifiers, taggers, sentence encoders
    witness       runs every export in ONNX Runtime and compares
"""
