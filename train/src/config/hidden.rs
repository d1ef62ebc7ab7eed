//! Which hidden states are compared, and whether the cache has them.

use crate::loss::Objective;
use crate::loss::hidden_map::{HiddenMap, HiddenPair, teacher_states};
use logitcache::cache::reader::Cache;
use logitcache::error::{Error, Result};

/// The pairs of `typed` (the last layers, where nothing was) for a student of `student_layers`; none where `objective` has no part of them.
///
/// # Errors
/// [`Error::Usage`] for a map that nothing uses, a layer that student or teacher lacks, one that the cache does not store.
pub(super) fn hidden_pairs(typed: Option<&str>, objective: &Objective, cache: &Cache, student_layers: usize) -> Result<Vec<HiddenPair>> {
    let map: Option<HiddenMap> = typed.map(str::parse).transpose()?;
    let Some(part) = objective.parts().find(|part| part.is_of_hidden()) else {
        return match map {
            None => Ok(Vec::new()),
            Some(_) => {
                let expected = "cos or hidden-mse in --loss, which compare hidden states";
                let remedy = "leave it out, also of a --config file, or add one of them to --loss";
                Err(Error::usage("--hidden-map", expected, format!("--loss {objective}"), remedy))
            }
        };
    };
    let (stored, last) = (cache.spec().hidden_layers(), cache.manifest().teacher.layers);
    // A cache may not know how many layers its teacher has: 0.
    let pairs = if last == 0 { Vec::new() } else { map.clone().unwrap_or_default().pairs(student_layers, last)? };
    let wanted = teacher_states(&pairs);
    if !pairs.is_empty() && wanted.iter().all(|state| stored.contains(state)) {
        return Ok(pairs);
    }
    let layers = |layers: &[u32]| layers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let held = if stored.is_empty() { "no hidden states".to_owned() } else { format!("layers {} of {last}", layers(stored)) };
    let named = if wanted.is_empty() || wanted == [last] { "last".to_owned() } else { layers(&wanted) };
    let expected = match named.as_str() {
        "last" => format!("a cache with the teacher's last hidden state, for {}", part.name()),
        _ => format!("a cache with the teacher's hidden states {named}, for {}", part.name()),
    };
    let (flag, other) = match map {
        Some(_) => ("--hidden-map", "name layers that it has".to_owned()),
        None => ("--loss", format!("use --loss with {}=0", part.name())),
    };
    let remedy = format!("{other}, or make the cache anew with precompute --hidden-layers {named}");
    Err(Error::usage(flag, expected, format!("a cache with {held}"), remedy))
}
