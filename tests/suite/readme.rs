//! What the README shows is what the programs give.

use e2e::{Program, data};

/// Its queries, on the cache of the held-out reactions that `make demo` makes.
#[test]
fn every_query_of_the_readme_gives_the_output_beside_it() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let cache = folder.path().join("heldout-cache");
    let program = Program::precompute().arg("--teacher").arg(data("teacher")).arg("--corpus").arg(data("corpus/heldout.txt"));
    program.arg("--out").arg(&cache).args("--quiet").run().success();
    Program::python("venv-readers", "readme_queries.py").arg(&cache).run().success();
}
