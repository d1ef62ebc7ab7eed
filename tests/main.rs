//! One binary for all end-to-end tests: linking is slow, once.

#[path = "suite/fixtures.rs"]
mod fixtures;
#[path = "suite/goldens.rs"]
mod goldens;
#[path = "suite/readers.rs"]
mod readers;
#[path = "suite/readme.rs"]
mod readme;
#[path = "suite/resume.rs"]
mod resume;
#[path = "suite/resume_training.rs"]
mod resume_training;
#[path = "suite/tidy.rs"]
mod tidy;
#[path = "suite/training.rs"]
mod training;
#[path = "suite/wrong_input.rs"]
mod wrong_input;
