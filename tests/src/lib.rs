//! A small language for end-to-end tests: a test says which program ran on what and what came out; a failure prints both.
//!
//! The programs are the release binaries beside the test binary (`make test` builds them first), the ONNX Runtime is the one under
//! `target/onnxruntime`, and every run has a directory of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests package lies in the repository").to_owned()
}

/// A file or folder under `data/`.
pub fn data(path: &str) -> PathBuf {
    repository().join("data").join(path)
}

/// The folder of the release binaries: the test binary lies in its `deps`.
fn binaries() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned()
}

/// The target directory.
pub fn target() -> PathBuf {
    binaries().parent().expect("target/PROFILE").to_owned()
}

/// The shared library that `make onnxruntime` unpacks.
///
/// # Panics
/// Where it is missing, naming the command that provides it.
pub fn onnxruntime() -> PathBuf {
    let folder = target().join("onnxruntime");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|_| panic!("{} is missing: run `make onnxruntime`", folder.display()));
    let mut libraries: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.")))
        .collect();
    libraries.sort();
    libraries.pop().unwrap_or_else(|| panic!("{} holds no library: run `make onnxruntime`", folder.display()))
}

/// What a finished program said.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for failures.
    pub command: String,
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    fn new(command: String, output: Output) -> Self {
        Self {
            command,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts exit code 0.
    ///
    /// # Panics
    /// With the command and all it said.
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Asserts the exit code, and that standard error holds every needle.
    ///
    /// # Panics
    /// With the command and all it said.
    pub fn refused(self, code: i32, needles: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        for needle in needles {
            assert!(self.stderr.contains(needle), "standard error lacks {needle:?}\n{self}");
        }
        assert!(!self.stderr.contains("panicked"), "a panic is no error message\n{self}");
        self
    }

    /// Asserts that standard output or standard error holds `needle`.
    ///
    /// # Panics
    /// With the command and all it said.
    pub fn says(self, needle: &str) -> Self {
        assert!(self.stdout.contains(needle) || self.stderr.contains(needle), "nothing says {needle:?}\n{self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "$ {}\nexit {:?}\n--- stdout\n{}\n--- stderr\n{}", self.command, self.code, self.stdout, self.stderr)
    }
}

/// A command being put together.
pub struct Program {
    command: Command,
}

impl Program {
    /// The `precompute` binary with the runtime of `target/onnxruntime`.
    pub fn precompute() -> Self {
        let mut program = Self::binary("precompute");
        program.command.env("ORT_DYLIB_PATH", onnxruntime());
        program
    }

    /// The `train` binary.
    pub fn train() -> Self {
        Self::binary("train")
    }

    /// A script of `tests/python` in the environment `target/NAME`.
    pub fn python(environment: &str, script: &str) -> Self {
        let python = target().join(environment).join("bin/python");
        assert!(python.exists(), "{} is missing: `make test` provides it", python.display());
        let mut command = Command::new(python);
        command.arg(repository().join("tests/python").join(script));
        Self { command }
    }

    fn binary(name: &str) -> Self {
        let path = binaries().join(name);
        assert!(path.exists(), "{} is missing: `make test` builds it (cargo build --release)", path.display());
        Self { command: Command::new(path) }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments, split at white space.
    pub fn args(mut self, arguments: &str) -> Self {
        self.command.args(arguments.split_whitespace());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes an environment variable.
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// The same program where no file may grow beyond `blocks` blocks (of 512 or 1,024 bytes, as the shell counts): a write that would is
    /// refused by the system, as on a full disk.
    pub fn with_file_limit(self, blocks: u64) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")).arg(self.command.get_program());
        command.args(self.command.get_args());
        Self { command }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(mut self) -> Outcome {
        let described = format!("{:?}", self.command);
        let output = self.command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot start {described}: {error}"));
        Outcome::new(described, output)
    }

    /// Starts it; what it says is kept for [`finish`].
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(mut self) -> Child {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.spawn().unwrap_or_else(|error| panic!("cannot start {:?}: {error}", self.command))
    }
}

/// Waits for a started program.
///
/// # Panics
/// If the system cannot say how it ended.
pub fn finish(child: Child) -> Outcome {
    Outcome::new("a started program".to_owned(), child.wait_with_output().expect("a child of ours can be waited for"))
}

/// Sends a signal by its name (`INT`, `TERM`, `KILL`).
///
/// # Panics
/// If `kill` cannot be run.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
    assert!(status.is_ok_and(|status| status.success()), "kill -{name} {} failed", child.id());
}

/// The first `count` lines of a corpus file of `data/corpus`, written to `path`.
///
/// # Panics
/// If the corpus cannot be read or the file not written.
pub fn corpus_head(name: &str, count: usize, path: &Path) {
    let text = std::fs::read_to_string(data("corpus").join(name)).expect("data/corpus is part of the repository");
    let head: String = text.lines().take(count).flat_map(|line| [line, "\n"]).collect();
    std::fs::write(path, head).expect("a temporary directory can be written");
}

/// Every file below `directory` with its content, sorted by name, `except` left out.
///
/// # Panics
/// If the directory cannot be read.
pub fn contents(directory: &Path, except: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the directory exists") {
            let path = entry.expect("the directory can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if !except.iter().any(|name| path.file_name() == Some(OsStr::new(name))) {
                let bytes = std::fs::read(&path).expect("a listed file can be read");
                files.push((path.strip_prefix(directory).expect("below the directory").to_owned(), bytes));
            }
        }
    }
    files.sort();
    files
}
