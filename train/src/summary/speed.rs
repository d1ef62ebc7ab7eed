//! What `speed.json`, as `precompute time --out` writes it, says of a student and its teacher.

use logitcache::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// The file's name within the student's directory.
pub const SPEED_FILE: &str = "speed.json";

/// Teacher and student side by side. Sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Of the teacher's model.onnx with its external data.
    pub teacher_onnx_bytes: u64,
    /// Of the student's.
    pub student_onnx_bytes: u64,
    /// Of the teacher's model.safetensors, where there is one.
    pub teacher_safetensors_bytes: Option<u64>,
    /// One entry for each batch size.
    pub times: Vec<ForwardTime>,
}

/// Medians of a forward pass over a whole batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForwardTime {
    /// Sequences of the batch.
    pub batch: u64,
    /// The teacher's.
    pub teacher_ms: f64,
    /// The student's.
    pub student_ms: f64,
}

/// The file of the student in `directory` with two models, the teacher first; nothing where there is no file.
///
/// The student is the model whose directory this is, else the last; the teacher is the first of the others.
///
/// # Errors
/// [`Error::Io`] or [`Error::Library`] for a file that cannot be read, [`Error::Data`] for one of fewer than two models.
pub fn read_pair(directory: &Path) -> Result<Option<Value>> {
    let path = directory.join(SPEED_FILE);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io("read", &path))?,
    };
    let mut speed: Value = serde_json::from_slice(&bytes).map_err(Error::library("parse", &path))?;
    let mut models = speed["models"].as_array().cloned().unwrap_or_default();
    if models.len() < 2 {
        let remedy = "write it anew with `precompute time TEACHER STUDENT --out`";
        return Err(Error::data(&path, "models", "teacher and student", format!("{} models", models.len()), remedy));
    }
    let here = directory.canonicalize().ok();
    let is_here = |model: &Value| {
        let named = model["directory"].as_str().and_then(|named| Path::new(named).canonicalize().ok());
        here.is_some() && (named == here || named.as_deref().and_then(Path::parent) == here.as_deref())
    };
    let student = models.iter().position(is_here).unwrap_or(models.len() - 1);
    let student = models.remove(student);
    models.truncate(1);
    models.push(student);
    speed["models"] = Value::Array(models);
    Ok(Some(speed))
}

impl Speed {
    /// Of a value that [`read_pair`] gave; figures that are missing count as 0.
    pub fn of(pair: &Value) -> Self {
        let (teacher, student) = (&pair["models"][0], &pair["models"][1]);
        let bytes = |model: &Value| model["onnx_bytes"].as_u64().unwrap_or_default();
        let median = |time: &Value| time["median_ms"].as_f64().unwrap_or_default();
        let times = teacher["times"].as_array().into_iter().flatten().enumerate();
        let times = times.map(|(i, time)| ForwardTime {
            batch: time["batch"].as_u64().unwrap_or_default(),
            teacher_ms: median(time),
            student_ms: median(&student["times"][i]),
        });
        Self {
            teacher_onnx_bytes: bytes(teacher),
            student_onnx_bytes: bytes(student),
            teacher_safetensors_bytes: teacher["safetensors_bytes"].as_u64(),
            times: times.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_student_is_found_wherever_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_pair(directory.path()).unwrap(), None);
        let model = |path: &str, ms: f64| json!({"directory": path, "onnx_bytes": 7, "times": [{"batch": 16, "median_ms": ms}]});
        let here = directory.path().display().to_string();
        for (models, times) in [
            (json!([model(&here, 1.0), model("/", 3.0)]), (3.0, 1.0)),
            (json!([model("/", 3.0), model(&format!("{here}/{SPEED_FILE}"), 1.0), model("/", 2.0)]), (3.0, 1.0)),
            (json!([model("a", 3.0), model("b", 1.0)]), (3.0, 1.0)),
        ] {
            std::fs::write(directory.path().join(SPEED_FILE), json!({"models": models}).to_string()).unwrap();
            let speed = Speed::of(&read_pair(directory.path()).unwrap().unwrap());
            assert_eq!(speed.times, [ForwardTime { batch: 16, teacher_ms: times.0, student_ms: times.1 }]);
        }
        std::fs::write(directory.path().join(SPEED_FILE), json!({"models": [1]}).to_string()).unwrap();
        assert!(read_pair(directory.path()).unwrap_err().to_string().contains("1 models"));
    }
}
