//! Caches made once and read by many tests.

use e2e::{Program, corpus_head, data};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

/// A cache of the first 300 training reactions (three shards) and one of 80 held-out ones, from the teacher of `data/teacher`.
pub(crate) struct Caches {
    folder: TempDir,
}

impl Caches {
    /// The training cache.
    pub(crate) fn train(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// The held-out cache.
    pub(crate) fn heldout(&self) -> PathBuf {
        self.folder.path().join("heldout-cache")
    }

    /// The text of the training cache.
    pub(crate) fn corpus(&self) -> PathBuf {
        self.folder.path().join("train.txt")
    }
}

/// `precompute` with the demo teacher over `corpus`, three shards to 300 lines; the caller adds what it wants changed.
pub(crate) fn precompute(corpus: &Path, out: &Path) -> Program {
    let program = Program::precompute().arg("--teacher").arg(data("teacher")).arg("--corpus").arg(corpus).arg("--out").arg(out);
    program.args("--shard-sequences 128 --batch-tokens 4096 --temperature 2,4 --threads 2 --quiet")
}

/// The shared caches.
pub(crate) static CACHES: LazyLock<Caches> = LazyLock::new(|| {
    let caches = Caches { folder: tempfile::tempdir().expect("a temporary directory") };
    corpus_head("train.txt", 300, &caches.corpus());
    precompute(&caches.corpus(), &caches.train()).run().success();
    let heldout = caches.folder.path().join("heldout.txt");
    corpus_head("heldout.txt", 80, &heldout);
    precompute(&heldout, &caches.heldout()).run().success();
    caches
});

/// Copies a directory tree.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    for (name, bytes) in e2e::contents(from, &[]) {
        let path = to.join(name);
        std::fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a temporary directory can be written");
        std::fs::write(path, bytes).expect("a temporary directory can be written");
    }
}
