//! Peak resident memory of `train` on a cache and on one twelve times as large: `cargo bench -p train --bench memory`.
//!
//! The caches are those that `make demo` leaves (569 and 6,911 sequences), or the two directories given. Both runs make the same number of steps
//! with the same settings, so what differs is the size of the cache alone. Linux only: the peak is the kernel's VmHWM.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const STEPS: &str = "40";

fn main() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository");
    // cargo passes flags of its own to every bench.
    let given: Vec<PathBuf> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).map(PathBuf::from).collect();
    let demo = repository.join("target/demo");
    let caches = if given.is_empty() { vec![demo.join("heldout-cache"), demo.join("cache")] } else { given };
    if let Some(missing) = caches.iter().find(|cache| !cache.join("manifest.json").exists()) {
        println!("{} holds no cache: run `make demo` first, or name two caches", missing.display());
        return;
    }
    println!("{:>10}  {:>12}  {:>16}  cache", "sequences", "cache MB", "peak memory MB");
    for cache in &caches {
        let peak_kib = peak_of_training(cache);
        let (sequences, bytes) = size_of(cache);
        println!("{sequences:>10}  {:>12.1}  {:>16.1}  {}", bytes as f64 / 1e6, peak_kib as f64 * 1.024e-3, cache.display());
    }
}

/// Rows and bytes of the shards.
fn size_of(cache: &Path) -> (u64, u64) {
    let cache = logitcache::cache::reader::Cache::open(cache).expect("a cache that precompute completed");
    let shards = &cache.manifest().shards;
    let bytes = |shard: &logitcache::cache::manifest::ShardEntry| shard.logits.bytes + shard.hidden.as_ref().map_or(0, |file| file.bytes);
    (shards.iter().map(|shard| shard.logits.rows).sum(), shards.iter().map(bytes).sum())
}

/// Runs the program beside this bench and asks the kernel for its peak, in KiB, until it ends.
fn peak_of_training(cache: &Path) -> u64 {
    let bench = std::env::current_exe().expect("a running bench has a path");
    let program = bench.ancestors().nth(2).expect("target/PROFILE/deps/BENCH").join("train");
    let out = std::env::temp_dir().join(format!("logitcache-memory-{}", std::process::id()));
    let mut command = Command::new(&program);
    command.arg("--cache").arg(cache).arg("--out").arg(&out).args(["--steps", STEPS, "--eval-fraction", "0", "--quiet"]);
    let started = command.stdout(Stdio::null()).spawn();
    let mut child = started.unwrap_or_else(|error| panic!("cannot start {}: {error}; run `make build` first", program.display()));
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait().expect("a child of ours can be waited for") {
            break ended;
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(20));
    };
    // The peak of a run that was refused would say nothing.
    assert!(ended.success(), "train on {} ended with {ended}", cache.display());
    // A directory of this bench's own; what is left of it costs nothing but space.
    let _ = std::fs::remove_dir_all(&out);
    peak
}
