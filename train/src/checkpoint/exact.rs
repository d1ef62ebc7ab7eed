//! Floating-point numbers through JSON without the loss of a bit: as text `f64:0.1`, since a JSON parser may round the last digit of a number
//! while Rust's own parser returns what was printed.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Number, Value};

const MARK: &str = "f64:";

/// The value as JSON, every float marked.
///
/// # Errors
/// What `serde_json` refuses.
pub(super) fn to_value<T: Serialize>(value: &T) -> serde_json::Result<Value> {
    let mut json = serde_json::to_value(value)?;
    walk(&mut json, &|leaf| {
        if let Value::Number(number) = leaf
            && number.is_f64()
            && let Some(float) = number.as_f64()
        {
            *leaf = Value::String(format!("{MARK}{float:?}"));
        }
    });
    Ok(json)
}

/// The value of what [`to_value`] gave.
///
/// # Errors
/// What `serde_json` refuses.
pub(super) fn from_value<T: DeserializeOwned>(mut json: Value) -> serde_json::Result<T> {
    walk(&mut json, &|leaf| {
        if let Value::String(text) = leaf
            && let Some(Ok(float)) = text.strip_prefix(MARK).map(str::parse)
            && let Some(number) = Number::from_f64(float)
        {
            *leaf = Value::Number(number);
        }
    });
    serde_json::from_value(json)
}

fn walk(json: &mut Value, change: &impl Fn(&mut Value)) {
    match json {
        Value::Array(items) => items.iter_mut().for_each(|item| walk(item, change)),
        Value::Object(fields) => fields.values_mut().for_each(|item| walk(item, change)),
        leaf => change(leaf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn every_bit_survives(bits: Vec<u64>, count: u64) {
            let floats: Vec<f64> = bits.into_iter().map(f64::from_bits).filter(|float| float.is_finite()).collect();
            let text = serde_json::to_string(&to_value(&(&floats, count)).unwrap()).unwrap();
            let (read, counted): (Vec<f64>, u64) = from_value(serde_json::from_str(&text).unwrap()).unwrap();
            let bits = |floats: &[f64]| floats.iter().map(|float| float.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!((bits(&floats), count), (bits(&read), counted));
        }
    }

    #[test]
    fn other_text_stays_text() {
        let settings = BTreeMap::from([("a".to_owned(), "0.5".to_owned()), ("b".to_owned(), "f64:x".to_owned())]);
        let read: BTreeMap<String, String> = from_value(to_value(&settings).unwrap()).unwrap();
        assert_eq!(read, settings);
    }
}
