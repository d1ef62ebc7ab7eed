//! What a directory holds already, and whether this run may continue it.
//!
//! Nothing that the manifest does not list ever happened, and what it lists is believed only as far as the files are there with their
//! sizes. So a run that was stopped or killed goes on after the last shard, and one of them that is gone is made again alone.

use crate::pipeline::publish::TIMING_FILE;
use logitcache::cache::manifest::{FileEntry, MANIFEST_FILE, Manifest, ShardEntry};
use logitcache::directory_lock::{DirectoryLock, LOCK_FILE};
use logitcache::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The tokens by id.
pub const VOCABULARY_FILE: &str = "vocabulary.parquet";
/// Where the teacher's configuration and tokenizer are copied to.
pub const TEACHER_FOLDER: &str = "teacher";

/// A cache directory that is this run's alone while the value lives.
#[derive(Debug)]
pub struct Claim {
    directory: PathBuf,
    stored: Option<Manifest>,
    _lock: DirectoryLock,
}

/// What is left to do.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Every shard is there.
    Complete,
    /// Those that are not there whole are to be made, and all behind the last one.
    Continue(Listed),
}

/// The shards that a manifest lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    /// From 0 without gaps.
    pub shards: Vec<ShardEntry>,
    /// The numbers of those whose files are not there with their sizes.
    pub missing: BTreeSet<u32>,
}

impl Listed {
    /// What is there of the shards of `manifest` in `directory`.
    ///
    /// # Errors
    /// [`Error::Io`] where the file system does not tell.
    pub fn of(directory: &Path, manifest: &Manifest) -> Result<Self> {
        let mut missing = BTreeSet::new();
        for shard in &manifest.shards {
            if !is_whole(directory, shard)? {
                missing.insert(shard.index);
            }
        }
        Ok(Self { shards: manifest.shards.clone(), missing })
    }

    /// Whether the shard of that number need not be made.
    pub fn holds(&self, index: u32) -> bool {
        (index as usize) < self.shards.len() && !self.missing.contains(&index)
    }

    /// How many are there.
    pub fn whole(&self) -> usize {
        self.shards.len() - self.missing.len()
    }

    /// The first that is not there.
    pub fn first_missing(&self) -> Option<&ShardEntry> {
        self.shards.get(*self.missing.first()? as usize)
    }

    /// The first pass of which something is left to make, as far as the list tells.
    pub fn first_pass(&self) -> u16 {
        self.first_missing().or(self.shards.last()).map_or(0, |shard| shard.pass)
    }
}

/// Whether an earlier run has begun a cache in `directory`, which need not exist. Nothing is written.
///
/// # Errors
/// [`Error::Usage`] for a directory that holds other files and no manifest.
pub fn is_begun(directory: &Path) -> Result<bool> {
    if directory.join(MANIFEST_FILE).exists() {
        return Ok(true);
    }
    match fs::metadata(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(unusable(directory, &error)),
        Ok(found) if !found.is_dir() => Err(unusable(directory, &std::io::ErrorKind::NotADirectory.into())),
        Ok(_) => refuse_foreign_files(directory).map(|()| false),
    }
}

/// Takes `directory` for this run, making it where it does not exist.
///
/// # Errors
/// [`Error::Usage`] for a directory that holds other files and no manifest (it is left untouched), or one another run is writing;
/// [`Error::Data`] for a manifest that cannot be read.
pub fn claim(directory: &Path) -> Result<Claim> {
    is_begun(directory)?;
    fs::create_dir_all(directory).map_err(|error| unusable(directory, &error))?;
    let lock = DirectoryLock::take(directory, "--out").map_err(|error| match error {
        Error::Io { source, .. } => unusable(directory, &source),
        other => other,
    })?;
    // Read after the lock is held: another run may have ended in between.
    let stored = if directory.join(MANIFEST_FILE).exists() { Some(Manifest::read(directory)?) } else { None };
    Ok(Claim { directory: directory.to_owned(), stored, _lock: lock })
}

fn unusable(directory: &Path, error: &std::io::Error) -> Error {
    let found = format!("{}: {error}", directory.display());
    Error::usage(
        "--out",
        "a directory that this program may make and write",
        found,
        "name another directory, or mend what stands in its way",
    )
}

fn refuse_foreign_files(directory: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| unusable(directory, &error))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name().to_string_lossy().into_owned();
        // What an earlier run leaves when it ends before its first manifest.
        if name != LOCK_FILE && !(name.starts_with('.') && name.ends_with(".partial")) {
            names.push(name);
        }
    }
    names.sort();
    let Some(first) = names.first() else { return Ok(()) };
    let others = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
    let expected = "a new or empty directory, or a cache begun with the same settings";
    let found = format!("`{first}`{others} and no {MANIFEST_FILE} in {}", directory.display());
    Err(Error::usage("--out", expected, found, "name another directory"))
}

impl Claim {
    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The manifest an earlier run left.
    pub fn stored(&self) -> Option<&Manifest> {
        self.stored.as_ref()
    }

    /// The manifest of an earlier run that is to be continued, or is complete.
    pub fn begun(&self) -> Option<&Manifest> {
        self.stored.as_ref().filter(|_| !self.is_barren())
    }

    /// Whether an earlier run ended before its first shard, as one does whose corpus turns out not to be what its flags say. There is nothing to
    /// lose, so the next one need not have its settings.
    fn is_barren(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.shards.is_empty() && !stored.complete)
    }

    /// Removes what a run left that ended before its first shard, so that what is made next has none of its files.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be removed.
    pub fn clear_barren(&self) -> Result<()> {
        if !self.is_barren() {
            return Ok(());
        }
        let absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let mut names = vec![VOCABULARY_FILE.to_owned(), TIMING_FILE.to_owned()];
        for entry in fs::read_dir(&self.directory).map_err(Error::io("list", &self.directory))? {
            let name = entry.map_err(Error::io("list", &self.directory))?.file_name().to_string_lossy().into_owned();
            if is_shard_file(&name) {
                names.push(name);
            }
        }
        for name in names {
            let path = self.directory.join(name);
            fs::remove_file(&path).or_else(|error| if absent(&error) { Ok(()) } else { Err(error) }).map_err(Error::io("remove", &path))?;
        }
        let teacher = self.directory.join(TEACHER_FOLDER);
        fs::remove_dir_all(&teacher)
            .or_else(|error| if absent(&error) { Ok(()) } else { Err(error) })
            .map_err(Error::io("remove", &teacher))
    }

    /// What is left to do for the run that `asked` describes (its shards are not looked at).
    ///
    /// # Errors
    /// [`Error::Usage`] where an earlier run has made shards with other settings, listing each with both values.
    pub fn decide(&self, asked: &Manifest) -> Result<Decision> {
        let Some(stored) = self.begun() else { return Ok(Decision::Continue(Listed::default())) };
        refuse_other_settings(&self.directory, stored, asked)?;
        let listed = Listed::of(&self.directory, stored)?;
        Ok(if stored.complete && listed.missing.is_empty() { Decision::Complete } else { Decision::Continue(listed) })
    }
}

fn refuse_other_settings(directory: &Path, stored: &Manifest, asked: &Manifest) -> Result<()> {
    let differing = stored.differing_settings(asked);
    if differing.is_empty() {
        return Ok(());
    }
    let list = |value: fn(&(String, String, String)) -> String| differing.iter().map(value).collect::<Vec<_>>().join(", ");
    let expected =
        format!("the settings that {} was begun with ({})", directory.display(), list(|(key, stored, _)| format!("{key} {stored}")));
    let found = list(|(key, _, asked)| format!("{key} {asked}"));
    Err(Error::usage("--out", expected, found, "give the same settings to continue it, or name another directory"))
}

fn is_shard_file(name: &str) -> bool {
    let number = |kind: &str| name.strip_prefix(kind).and_then(|rest| rest.strip_suffix(".parquet"));
    ["logits-", "hidden-"]
        .into_iter()
        .filter_map(number)
        .any(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_whole(directory: &Path, shard: &ShardEntry) -> Result<bool> {
    let has_its_size = |file: &FileEntry| {
        let path = directory.join(&file.name);
        match fs::metadata(&path) {
            Ok(found) => Ok(found.len() == file.bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            // What cannot be seen may well be there.
            Err(error) => Err(Error::io("look at", &path)(error)),
        }
    };
    Ok(has_its_size(&shard.logits)? && shard.hidden.as_ref().map_or(Ok(true), has_its_size)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use logitcache::cache::manifest::{CorpusCounts, FORMAT_VERSION, Fingerprints, MassSummary, TeacherSummary};
    use logitcache::fingerprint::Fingerprint;
    use logitcache::target::{PositionRule, Precision, TargetSpec, Task, UncheckedTargetSpec};
    use std::collections::BTreeMap;

    fn manifest(settings: &[(&str, u64)]) -> Manifest {
        let digest = Fingerprint::of_bytes(b"");
        let spec = UncheckedTargetSpec {
            top_k: 4,
            temperatures: vec![2.0, 1.0],
            positions: PositionRule::Tokens,
            hidden_layers: vec![],
            hidden_size: 0,
            token_type_ids: false,
            precision: Precision::Float16,
            ..UncheckedTargetSpec::new(Task::MaskedLm, 10)
        };
        Manifest {
            format_version: FORMAT_VERSION,
            writer: "test".to_owned(),
            spec: TargetSpec::try_from(spec).expect("a valid spec"),
            fingerprints: Fingerprints { teacher: digest, tokenizer: digest, corpus: digest, run: digest },
            settings: settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect(),
            teacher: TeacherSummary {
                parameters: 1,
                layers: 1,
                hidden_size: 1,
                provider: "cpu".to_owned(),
                logits_output: "logits".to_owned(),
                hidden_tensors: BTreeMap::new(),
                ..TeacherSummary::default()
            },
            counts: None,
            shards: Vec::new(),
            complete: false,
        }
    }

    /// Writes a shard's file and lists it.
    fn add_shard(manifest: &mut Manifest, directory: &Path) {
        let index = manifest.shards.len() as u32;
        let name = format!("logits-{index:05}.parquet");
        fs::write(directory.join(&name), b"12345678").expect("a writable directory");
        let logits = FileEntry { name, rows: 2, bytes: 8, sha256: Fingerprint::of_bytes(b"12345678") };
        let first_sequence = u64::from(index) * 2;
        let minus_log_stored_mass = MassSummary { mean: 0.0, p90: 0.0, p99: 0.0 };
        manifest.shards.push(ShardEntry {
            index,
            pass: 0,
            first_sequence,
            tokens: 4,
            padded_tokens: 4,
            positions: 2,
            masked: 1,
            logits,
            hidden: None,
            minus_log_stored_mass,
        });
    }

    #[test]
    fn an_out_below_a_file_is_refused_with_a_remedy() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("a writable directory");
        for out in [file.join("cache"), file] {
            for error in [is_begun(&out).map(drop).unwrap_err(), claim(&out).map(drop).unwrap_err()] {
                assert_eq!(error.exit_code(), 2);
                let error = error.to_string();
                assert!(error.starts_with("--out: expected a directory") && error.contains("name another directory"), "{error}");
            }
        }
    }

    #[test]
    fn a_new_directory_starts_from_nothing() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        assert!(!is_begun(&parent.path().join("a")).expect("nothing is there"));
        assert!(!parent.path().join("a").exists(), "to ask makes nothing");
        let claim = claim(&parent.path().join("a/b")).expect("made on the way");
        assert_eq!(claim.decide(&manifest(&[])).expect("nothing to refuse"), Decision::Continue(Listed::default()));
    }

    #[test]
    fn foreign_files_are_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("thesis.tex"), b"x").expect("a writable directory");
        let error = claim(directory.path()).expect_err("a foreign file");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("thesis.tex"), "{error}");
        assert!(is_begun(directory.path()).is_err());
        assert!(!directory.path().join(LOCK_FILE).exists(), "nothing is written into a foreign directory");
    }

    #[test]
    fn leftovers_of_a_killed_start_are_no_foreign_files() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join(".manifest.json.partial"), b"{").expect("a writable directory");
        fs::write(directory.path().join(LOCK_FILE), b"").expect("a writable directory");
        assert!(claim(directory.path()).is_ok());
    }

    #[test]
    fn two_runs_never_share_a_directory() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = claim(directory.path()).expect("the first run");
        let error = claim(directory.path()).expect_err("the second run");
        assert!(error.to_string().contains("another run"), "{error}");
        drop(first);
        assert!(claim(directory.path()).is_ok(), "the lock ends with its run");
    }

    #[test]
    fn shards_are_believed_where_they_are_whole() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut stored = manifest(&[]);
        for _ in 0..3 {
            add_shard(&mut stored, directory.path());
        }
        stored.complete = true;
        stored.counts = Some(CorpusCounts::default());
        stored.write(directory.path()).expect("a valid manifest");
        assert!(is_begun(directory.path()).expect("ours"));
        let decide = || claim(directory.path()).expect("ours").decide(&manifest(&[])).expect("the same settings");
        assert_eq!(decide(), Decision::Complete);

        fs::write(directory.path().join("logits-00001.parquet"), b"1234567").expect("a writable directory");
        let missing =
            |missing: &[u32]| Decision::Continue(Listed { shards: stored.shards.clone(), missing: missing.iter().copied().collect() });
        assert_eq!(decide(), missing(&[1]), "cut short");
        fs::remove_file(directory.path().join("logits-00000.parquet")).expect("it is there");
        assert_eq!(decide(), missing(&[0, 1]), "gone");
        let Decision::Continue(listed) = decide() else { panic!("not complete") };
        assert_eq!((listed.whole(), listed.holds(0), listed.holds(2), listed.holds(3)), (1, false, true, false));
    }

    #[test]
    fn other_settings_are_refused_with_both_values() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut stored = manifest(&[("seed", 0), ("top-k", 64), ("passes", 1)]);
        add_shard(&mut stored, directory.path());
        stored.write(directory.path()).expect("a valid manifest");
        let asked = manifest(&[("seed", 7), ("top-k", 32), ("passes", 1)]);
        let error = claim(directory.path()).expect("ours").decide(&asked).expect_err("other settings");
        assert_eq!(error.exit_code(), 2);
        let message = error.to_string();
        for part in ["seed 0", "seed 7", "top-k 64", "top-k 32"] {
            assert!(message.contains(part), "`{part}` is missing from: {message}");
        }
        assert!(!message.contains("passes"), "{message}");
    }

    #[test]
    fn a_run_that_made_nothing_binds_nobody_and_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        manifest(&[("text-field", 0)]).write(directory.path()).expect("a valid manifest");
        fs::create_dir(directory.path().join(TEACHER_FOLDER)).expect("a writable directory");
        for name in ["teacher/config.json", "vocabulary.parquet", "hidden-00000.parquet", "logits-00012.parquet"] {
            fs::write(directory.path().join(name), b"of that run").expect("a writable directory");
        }
        let asked = manifest(&[("text-field", 1)]);
        let begun = claim(directory.path()).expect("ours");
        assert_eq!(begun.decide(&asked).expect("nothing to lose"), Decision::Continue(Listed::default()));
        begun.clear_barren().expect("a writable directory");
        let left = fs::read_dir(directory.path()).expect("it is there").map(|entry| entry.expect("listed").file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, [LOCK_FILE, MANIFEST_FILE]);
    }
}
