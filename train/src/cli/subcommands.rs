//! What can be done with a student that is there.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Subcommands {
    /// Write a student in the format of another program
    Export(ExportArguments),
    /// Measure a student against the teacher's answers in a cache
    Evaluate(EvaluateArguments),
    /// Write a student's report.html anew and print the summary
    Report(ReportArguments),
}

/// `train export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArguments {
    /// The student's directory
    #[arg(long, value_name = "DIR")]
    pub student: PathBuf,
    /// Write model.onnx, with open batch and length
    #[arg(long, required = true)]
    pub onnx: bool,
    /// Where to write it: a new or empty directory, or an earlier export's [default: the student's directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `train evaluate`.
#[derive(Clone, Debug, Args)]
pub struct EvaluateArguments {
    /// The student's directory
    #[arg(long, value_name = "DIR")]
    pub student: PathBuf,
    /// A cache of the student's teacher; every row is measured. Another teacher's is measured too, with a note
    #[arg(long, value_name = "DIR")]
    pub cache: PathBuf,
    /// Where to write the figures as JSON [default: the table is printed only]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Threads that compute [default: one per processor]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// No progress, only errors and the table
    #[arg(long)]
    pub quiet: bool,
}

/// `train report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArguments {
    /// The student's directory
    #[arg(long, value_name = "DIR")]
    pub student: PathBuf,
}
