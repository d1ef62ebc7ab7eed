//! TensorBoard's event files: each record is a length, its checksum, a protobuf `Event`, and the event's checksum, all little-endian.
//!
//! The checksums are CRC-32C, rotated and offset ("masked"), as the TFRecord format has it. Only scalars are written, and only the fields that they
//! take, so that the few messages are laid out by hand.

use logitcache::error::{Error, Result};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The folder within the student's directory.
pub const TENSORBOARD_FOLDER: &str = "tensorboard";

/// The file in it; TensorBoard reads every file with "tfevents" in its name.
const EVENTS_FILE: &str = "events.out.tfevents.train";

/// Keys of a step's line that are no part of the loss.
pub const NOT_PARTS: [&str; 13] = [
    "kind",
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "data_wait_ms",
    "forward_ms",
    "backward_ms",
    "update_ms",
    "elapsed_seconds",
    "skipped_steps",
];

/// The event file of a run.
pub struct EventFile {
    path: PathBuf,
    file: File,
    began_seconds: f64,
}

impl EventFile {
    /// Begins the file in `directory` anew with the lines of the log so far, so that no step stands in it twice.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create<'a>(directory: &Path, lines: impl IntoIterator<Item = &'a Value>) -> Result<Self> {
        let folder = directory.join(TENSORBOARD_FOLDER);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let path = folder.join(EVENTS_FILE);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let lines: Vec<&Value> = lines.into_iter().collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let elapsed = lines.last().and_then(|line| line["elapsed_seconds"].as_f64()).unwrap_or(0.0);
        let mut events = Self { path, file, began_seconds: now - elapsed };
        let mut bytes = record(&version_event(events.began_seconds));
        for line in lines {
            bytes.extend(events.records(line));
        }
        events.file.write_all(&bytes).map_err(Error::io("write", &events.path))?;
        Ok(events)
    }

    /// Appends the scalars of a line of the log.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, line: &Value) -> Result<()> {
        self.file.write_all(&self.records(line)).map_err(Error::io("write", &self.path))
    }

    fn records(&self, line: &Value) -> Vec<u8> {
        let step = line["step"].as_i64().unwrap_or(0);
        let time = self.began_seconds + line["elapsed_seconds"].as_f64().unwrap_or(0.0);
        let scalars = scalars(line);
        if scalars.is_empty() { Vec::new() } else { record(&scalar_event(time, step, &scalars)) }
    }
}

/// The tags of a line and their values.
fn scalars(line: &Value) -> Vec<(String, f32)> {
    let evaluation = line["kind"] == "evaluation";
    let tag = |key: &str| match key {
        "kind" | "step" | "epoch" | "elapsed_seconds" => None,
        _ if evaluation => Some(format!("evaluation/{key}")),
        "loss" => Some("loss/total".to_owned()),
        "learning_rate" | "gradient_norm" | "skipped_steps" => Some(format!("optimiser/{key}")),
        _ if NOT_PARTS.contains(&key) => Some(format!("speed/{key}")),
        _ => Some(format!("loss/{key}")),
    };
    let fields = line.as_object().into_iter().flatten();
    fields.filter_map(|(key, value)| Some((tag(key)?, value.as_f64()? as f32))).collect()
}

/// `Event { wall_time: 1, file_version: 3 }`.
fn version_event(time: f64) -> Vec<u8> {
    let mut event = vec![0x09];
    event.extend(time.to_le_bytes());
    push_bytes(&mut event, 3, b"brain.Event:2");
    event
}

/// `Event { wall_time: 1, step: 2, summary: 5 }` with a `Value { tag: 1, simple_value: 2 }` for each scalar.
fn scalar_event(time: f64, step: i64, scalars: &[(String, f32)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut field = Vec::new();
        push_bytes(&mut field, 1, tag.as_bytes());
        field.push(0x15);
        field.extend(value.to_le_bytes());
        push_bytes(&mut summary, 1, &field);
    }
    let mut event = vec![0x09];
    event.extend(time.to_le_bytes());
    event.push(0x10);
    push_varint(&mut event, step as u64);
    push_bytes(&mut event, 5, &summary);
    event
}

fn push_bytes(to: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    to.push((field << 3) | 2);
    push_varint(to, bytes.len() as u64);
    to.extend(bytes);
}

fn push_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked(crc32c(&length)).to_le_bytes());
    bytes.extend(event);
    bytes.extend(masked(crc32c(event)).to_le_bytes());
    bytes
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected; a few hundred bytes a line need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The vectors of RFC 3720, appendix B.4.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn a_record_is_framed_by_its_length_and_two_checksums() {
        let bytes = record(b"abc");
        assert_eq!(bytes[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((&bytes[12..15], bytes.len()), (b"abc".as_slice(), 19));
        let crc = u32::from_le_bytes(bytes[15..].try_into().unwrap()).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(crc, crc32c(b"abc"));
        let event = scalar_event(1.0, 300, &[("a".to_owned(), 1.0)]);
        assert_eq!(event[..9], [0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        assert_eq!(event[9..], [0x10, 0xac, 0x02, 0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0x80, 0x3f]);
    }

    #[test]
    fn a_file_begun_anew_holds_each_step_once() {
        let directory = tempfile::tempdir().unwrap();
        let lines: Vec<Value> = (1..4).map(|step| json!({"kind": "step", "step": step, "loss": 0.5, "elapsed_seconds": 1.0})).collect();
        let mut once = EventFile::create(directory.path(), &lines[..1]).unwrap();
        lines[1..].iter().for_each(|line| once.append(line).unwrap());
        let path = directory.path().join(TENSORBOARD_FOLDER).join(EVENTS_FILE);
        let length = std::fs::metadata(&path).unwrap().len();
        let mut again = EventFile::create(directory.path(), &lines[..2]).unwrap();
        again.append(&lines[2]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
    }

    #[test]
    fn every_number_has_a_tag() {
        let step = json!({"kind": "step", "step": 1, "epoch": 0.5, "loss": 2.0, "ce_nats": 1.0, "learning_rate": 0.1, "forward_ms": 3.0});
        let tags: Vec<String> = scalars(&step).into_iter().map(|(tag, _)| tag).collect();
        assert_eq!(tags, ["loss/ce_nats", "speed/forward_ms", "optimiser/learning_rate", "loss/total"]);
        assert_eq!(scalars(&json!({"kind": "evaluation", "step": 1, "kl_nats": 2.0}))[0].0, "evaluation/kl_nats");
    }
}
