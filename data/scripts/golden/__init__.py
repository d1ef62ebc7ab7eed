"""What make_golden.py writes: one module for each folder or file of data/golden, and what they share.

    packed        batches without padding, the rows transformers gives for them
    recipe        the default objective and the optimiser, ten steps of them
    initialisers  the demo teacher's weights, out of its export
    files         where a golden goes, and how two of them are compared
    teacher       teacher.safetensors
    small_student student-small/
    demo_student  student-real.safetensors
    losses        every objective in plain PyTorch
    objectives    objectives/, which runs them
    families      families/
    heads         heads/
    decoders      decoders/
"""
