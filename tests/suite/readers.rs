//! Other vendors' Parquet readers see what the Rust reader sees.

use crate::fixtures::CACHES;
use e2e::Program;
use logitcache::cache::reader::{Cache, Projection};
use logitcache::cache::record::Record;

fn records() -> Vec<Record> {
    let cache = Cache::open(&CACHES.train()).expect("a cache of ours opens");
    let projection = Projection { hidden_layers: cache.spec().hidden_layers().to_vec() };
    let mut records = Vec::new();
    for shard in 0..cache.shards() {
        let reader = cache.shard(shard).expect("a shard of ours opens");
        for group in 0..reader.row_groups() {
            records.extend(reader.read(group, &projection).expect("a row group of ours reads"));
        }
    }
    records
}

#[test]
fn pyarrow_duckdb_polars_and_pandas_agree_with_the_rust_reader() {
    let outcome = Program::python("venv-readers", "read_shards.py").arg(CACHES.train()).run().success();
    let seen: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}\n{outcome}"));
    let records = records();
    let integers: &[(&str, i128)] = &[
        ("sequence_id", records.iter().map(|r| i128::from(r.sequence_id)).sum()),
        ("document_id", records.iter().map(|r| i128::from(r.document_id)).sum()),
        ("pass", records.iter().map(|r| i128::from(r.pass)).sum()),
        ("input_ids", records.iter().flat_map(|r| &r.input_ids).map(|id| i128::from(*id)).sum()),
        ("labels", records.iter().flat_map(|r| &r.labels).map(|label| i128::from(*label)).sum()),
        ("positions", records.iter().flat_map(|r| &r.positions).map(|position| i128::from(*position)).sum()),
        ("top_ids", records.iter().flat_map(|r| &r.top_ids).map(|id| i128::from(*id)).sum()),
    ];
    let floats: &[(&str, f64)] = &[
        ("top_logits", records.iter().flat_map(|r| &r.top_logits).map(|value| f64::from(*value)).sum()),
        ("max_logit", records.iter().flat_map(|r| &r.max_logit).map(|value| f64::from(*value)).sum()),
        ("log_z", records.iter().flat_map(|r| &r.log_z).map(|value| f64::from(*value)).sum()),
        ("hidden_12", records.iter().flat_map(|r| r.hidden_states.iter().flatten()).map(|value| f64::from(*value)).sum()),
    ];
    for reader in ["pyarrow", "duckdb", "polars", "pandas"] {
        let view = &seen["readers"][reader];
        assert_eq!(view["rows"].as_u64(), Some(records.len() as u64), "{reader} counts other rows");
        for (column, expected) in integers {
            let found = view["sums"][column].to_string().parse::<i128>();
            assert_eq!(found.ok(), Some(*expected), "{reader}: the sum of {column} is {}", view["sums"][column]);
        }
        for (column, expected) in floats {
            let found = view["sums"][column].as_f64().unwrap_or(f64::NAN);
            assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{reader}: the sum of {column} is {found}, not {expected}");
        }
    }
}
