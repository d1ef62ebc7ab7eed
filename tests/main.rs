//! One binary for all end-to-end tests: linking is slow, once.

#[path = "suite/composed.rs"]
mod composed;
#[path = "suite/config_file.rs"]
mod config_file;
#[path = "suite/corpora.rs"]
mod corpora;
#[path = "suite/fixtures.rs"]
mod fixtures;
#[path = "suite/goldens/mod.rs"]
mod goldens;
#[path = "suite/objectives.rs"]
mod objectives;
#[path = "suite/onnx_export.rs"]
mod onnx_export;
#[path = "suite/onnx_heads.rs"]
mod onnx_heads;
#[path = "suite/readers.rs"]
mod readers;
#[path = "suite/readme.rs"]
mod readme;
#[path = "suite/report.rs"]
mod report;
#[path = "suite/resume.rs"]
mod resume;
#[path = "suite/resume_training.rs"]
mod resume_training;
#[path = "suite/speed.rs"]
mod speed;
#[path = "suite/tasks.rs"]
mod tasks;
#[path = "suite/tidy.rs"]
mod tidy;
#[path = "suite/training.rs"]
mod training;
#[path = "suite/wrong_input.rs"]
mod wrong_input;
