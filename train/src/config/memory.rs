//! Whether a student of some shape can be held at all, before anything of it is.

use crate::cli::StudentArguments;
use crate::student::config::StudentConfig;
use crate::student::family::Family;
use crate::student::layout::layout;
use logitcache::error::{Error, Result};

/// Weights, their gradients and the optimiser's two moments, in single precision.
const BYTES_PER_PARAMETER: u128 = 4 * size_of::<f32>() as u128;

/// The most bytes of a student where the system does not say how much memory it has.
const BOUND_WITHOUT_A_SYSTEM: u128 = 1 << 40;

/// Refuses a student that the machine's memory cannot hold.
///
/// # Errors
/// [`Error::Usage`] with the flags that make it so large.
pub(super) fn check_memory(student: &StudentConfig, typed: &StudentArguments) -> Result<()> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text));
    match system {
        Some(bytes) => check(student, typed, bytes, "the machine's memory"),
        None => check(student, typed, BOUND_WITHOUT_A_SYSTEM, "the largest student of a machine that does not say its memory"),
    }
}

fn check(student: &StudentConfig, typed: &StudentArguments, limit: u128, what: &str) -> Result<()> {
    let needed = least_bytes(student);
    if needed <= limit {
        return Ok(());
    }
    let set = |change: fn(&mut StudentConfig)| {
        let mut other = student.clone();
        change(&mut other);
        if other.family != Family::Albert {
            other.embedding_size = other.hidden_size;
        }
        least_bytes(&other)
    };
    let less: [(&str, bool, u128); 4] = [
        ("--layers", true, set(|other| other.num_hidden_layers = 1)),
        ("--hidden-size", typed.hidden_size.is_some(), set(|other| other.hidden_size = 1)),
        ("--feed-forward", typed.feed_forward.is_some(), set(|other| other.intermediate_size = 1)),
        ("--embedding-size", typed.embedding_size.is_some(), set(|other| other.embedding_size = 1)),
    ];
    let names = |wanted: &dyn Fn(&(&'static str, bool, u128)) -> bool| {
        less.iter().filter(|flag| wanted(flag)).map(|flag| flag.0).collect::<Vec<_>>().join(", ")
    };
    // Those of which one alone decides; where none does, those that were typed.
    let alone = names(&|(_, typed, bytes)| *typed && *bytes <= limit);
    let flags = if alone.is_empty() { names(&|(_, typed, _)| *typed) } else { alone };
    let gigabytes = |bytes: u128| format!("{:.1} GB", bytes as f64 / 1e9);
    let expected = format!("weights, gradients and two moments within {}, {what}", gigabytes(limit));
    Err(Error::usage(flags, expected, gigabytes(needed), "ask for a smaller student"))
}

/// Bytes without which no step can be made: those of [`BYTES_PER_PARAMETER`], and one token's state after each layer. Sizes of 32 bits, so
/// that no product here leaves 128.
fn least_bytes(student: &StudentConfig) -> u128 {
    let parameters = |layers: usize| {
        let specs = layout(&StudentConfig { num_hidden_layers: layers, ..student.clone() });
        specs.iter().map(|spec| spec.shape.iter().map(|size| *size as u128).product::<u128>()).fold(0, u128::saturating_add)
    };
    let one = parameters(1);
    let further = student.layers_with_parameters().saturating_sub(1) as u128;
    let each = if further == 0 { 0 } else { parameters(2) - one };
    let states = student.num_hidden_layers as u128 * student.hidden_size as u128 * size_of::<f32>() as u128;
    one.saturating_add(each.saturating_mul(further)).saturating_mul(BYTES_PER_PARAMETER).saturating_add(states)
}

/// Bytes of memory, from the text of `/proc/meminfo`.
fn total_memory(text: &str) -> Option<u128> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u128>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_cache::arguments;
    use std::path::Path;

    #[test]
    fn bytes_are_those_of_the_layout() {
        for (family, type_vocab_size) in [(Family::DistilBert, 0), (Family::Albert, 2)] {
            let student = StudentConfig { family, type_vocab_size, ..StudentConfig::default() };
            let numbers: usize = layout(&student).iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
            assert_eq!(least_bytes(&student), 16 * numbers as u128 + 6 * 768 * 4);
        }
        let largest = u32::MAX as usize;
        let huge = StudentConfig { num_hidden_layers: largest, hidden_size: largest, embedding_size: largest, ..StudentConfig::default() };
        assert!(least_bytes(&StudentConfig { intermediate_size: largest, vocab_size: largest, ..huge }) > 1 << 100);
    }

    #[test]
    fn the_flags_that_make_it_too_large_are_named() {
        let refused = |extra: &[&str], student: StudentConfig| {
            let typed = arguments(Path::new("cache"), Path::new("out"), extra);
            let error = check(&student, &typed.student, 16 << 30, "the machine's memory").unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let base = StudentConfig::default();
        let wide = StudentConfig { hidden_size: 100_000_000, embedding_size: 100_000_000, ..base.clone() };
        let message = refused(&["--hidden-size", "100000000"], wide);
        assert!(message.starts_with("--hidden-size: expected weights, gradients and two moments within 17.2 GB, the mach"), "{message}");
        let message = refused(&[], StudentConfig { num_hidden_layers: 4_294_967_295, ..base.clone() });
        assert!(message.starts_with("--layers: "), "{message}");
        let albert = StudentConfig { family: Family::Albert, type_vocab_size: 1, num_hidden_layers: 4_294_967_295, ..base.clone() };
        assert!(refused(&[], albert).starts_with("--layers: "), "its states alone");
        let both = StudentConfig { num_hidden_layers: 1_000_000, intermediate_size: 1_000_000_000, ..base };
        assert!(refused(&["--feed-forward", "1000000000"], both).starts_with("--layers, --feed-forward: "));
    }

    #[test]
    fn memory_is_read_as_the_system_writes_it() {
        assert_eq!(total_memory("MemTotal:       65840100 kB\nMemFree:  12 kB\n"), Some(65_840_100 * 1024));
        assert_eq!(total_memory("MemFree: 12 kB"), None);
    }
}
