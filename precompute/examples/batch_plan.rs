//! Writes the batches in which `precompute` asked about the rows of a cache, for a benchmark to ask about them in the same ones.
//!
//! `batch_plan CACHE OUT.json` writes, for each shard in order, a list of batches, each a list of the shard's row numbers.

use anyhow::{Context, bail};
use logitcache::cache::reader::{Cache, Projection};
use precompute::batch::plan;
use std::path::Path;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cache, out] = arguments.as_slice() else { bail!("usage: batch_plan CACHE OUT.json") };
    let cache = Cache::open(Path::new(cache))?;
    let budget =
        cache.manifest().settings.get("batch-tokens").and_then(serde_json::Value::as_u64).context("the manifest has no batch-tokens")?;
    let mut shards = Vec::new();
    for index in 0..cache.shards() {
        let shard = cache.shard(index)?;
        let mut lengths = Vec::new();
        for group in 0..shard.row_groups() {
            lengths.extend(shard.read(group, &Projection::default())?.iter().map(|record| record.input_ids.len()));
        }
        let batches: Vec<Vec<usize>> = plan(&lengths, budget as usize).into_iter().map(|batch| batch.rows).collect();
        shards.push(batches);
    }
    std::fs::write(out, serde_json::to_vec(&shards)?)?;
    Ok(())
}
