//! Finding and loading the ONNX Runtime library.
//!
//! The order, documented in the README as well; the first place that holds a library decides, and a library there that cannot be used is an error:
//!
//! 1. `--onnxruntime`, a file or a directory that holds the library,
//! 2. the environment variable `ORT_DYLIB_PATH`, likewise,
//! 3. beside the executable,
//! 4. the Python package `onnxruntime` that `python3` imports,
//! 5. the system's loader path.

use logitcache::error::{Error, Result};
use ort::environment::Environment;
use ort::logging::LogLevel;
use std::ffi::{CStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// The environment variable that names the library.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
/// The oldest ONNX Runtime that has the interface this build speaks: 1.17.
pub const OLDEST_MINOR_VERSION: u32 = ort::MINOR_VERSION;

const FLAG: &str = "--onnxruntime";
const REMEDY: &str = "run `make onnxruntime` in the repository or `pip install onnxruntime`, or name the library with --onnxruntime FILE";

/// A loaded ONNX Runtime.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The file it came from.
    pub library: PathBuf,
    /// Its version, for example `1.32.0`.
    pub version: String,
    pub(super) environment: Environment,
}

/// The runtime of this process: its library cannot be exchanged once it is loaded.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

/// Finds and loads the library. `explicit` is what `--onnxruntime` says.
///
/// # Errors
/// [`Error::Usage`] where there is none (the message gives the places in order and the command that mends it), or where the first one found is too
/// old, or no ONNX Runtime.
pub fn load(explicit: Option<&Path>) -> Result<Runtime> {
    let executable = std::env::current_exe().ok();
    let beside = executable.as_deref().and_then(Path::parent);
    let found = find(explicit, std::env::var_os(LIBRARY_VARIABLE), beside, python_package)?;
    let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(runtime) = &*loaded {
        if runtime.library == found.library {
            return Ok(runtime.clone());
        }
        let (first, second) = (runtime.library.display().to_string(), found.library.display().to_string());
        return Err(Error::invalid("ONNX Runtime", format!("one library a process, {first}"), second));
    }
    let version = version(&found)?;
    // Seen by name alone where the system's loader found it; ort then asks the loader likewise.
    let path = &found.library;
    let environment = ort::init_from(path).map_err(Error::library("load", path))?;
    let environment = environment.with_name("precompute").with_telemetry(false).build().map_err(Error::library("initialise", path))?;
    environment.set_log_level(LogLevel::Error);
    Ok(loaded.insert(Runtime { library: path.clone(), version, environment }).clone())
}

/// A library and who named it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    library: PathBuf,
    /// For messages: `--onnxruntime`, `ORT_DYLIB_PATH`, ...
    place: &'static str,
}

fn find(
    explicit: Option<&Path>,
    variable: Option<OsString>,
    beside: Option<&Path>,
    python: impl FnOnce() -> Option<PathBuf>,
) -> Result<Found> {
    let variable = variable.filter(|value| !value.is_empty()).map(PathBuf::from);
    for (place, named) in [(FLAG, explicit), (LIBRARY_VARIABLE, variable.as_deref())] {
        if let Some(named) = named {
            return named_library(place, named).map(|library| Found { library, place });
        }
    }
    if let Some(library) = beside.and_then(library_in) {
        return Ok(Found { library, place: "beside the executable" });
    }
    let package = python();
    if let Some(library) = package.as_deref().and_then(|package| library_in(&package.join("capi"))) {
        return Ok(Found { library, place: "the Python package onnxruntime" });
    }
    if let Some(library) = loader_library() {
        return Ok(Found { library, place: "the system's loader path" });
    }
    let python = match package {
        None => "python3 imports no package onnxruntime".to_owned(),
        Some(package) => format!("{} holds no library (wheels have one since 1.20)", package.join("capi").display()),
    };
    let beside = beside.map_or("beside the executable".to_owned(), |directory| format!("beside the executable in {}", directory.display()));
    let found = format!("none: {FLAG} and {LIBRARY_VARIABLE} are not set, none {beside}, {python}, none in the system's loader path");
    Err(Error::usage(FLAG, "the ONNX Runtime library in one of these places, in this order", found, REMEDY))
}

fn named_library(place: &'static str, named: &Path) -> Result<PathBuf> {
    let refuse = |found: String| Err(Error::usage(place, "the ONNX Runtime library, or a directory that holds it", found, REMEDY));
    if named.is_dir() {
        return library_in(named).map_or_else(|| refuse(format!("no library in {}", named.display())), Ok);
    }
    if !named.is_file() {
        return refuse(format!("no file {}", named.display()));
    }
    // ort resolves a relative path against the executable's directory, a user against the current one.
    std::path::absolute(named).map_err(Error::io("resolve", named))
}

/// The library in a directory: `libonnxruntime.so.1.X.Y` and the like, the newest of several; the providers' libraries are others.
fn library_in(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file());
    let libraries = paths.filter_map(|path| Some((version_in_name(path.file_name()?.to_str()?)?, path)));
    let (_, newest) = libraries.max()?;
    std::path::absolute(newest).ok()
}

/// The version in a library's file name, empty where it has none; nothing for other names.
fn version_in_name(name: &str) -> Option<Vec<u32>> {
    if name == "onnxruntime.dll" {
        return Some(Vec::new());
    }
    let rest = name.strip_prefix("libonnxruntime.")?;
    let version = rest.strip_prefix("so").or_else(|| rest.strip_suffix("dylib"))?;
    version.split('.').filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

/// The directory of the package `onnxruntime`, without importing it.
fn python_package() -> Option<PathBuf> {
    let code = "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.submodule_search_locations[0] if s else '')";
    let output = Command::new("python3").args(["-c", code]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(path.trim())).filter(|path| output.status.success() && path.is_dir())
}

/// The library that the system's loader finds by name: its path where the system tells, else the name.
fn loader_library() -> Option<PathBuf> {
    let plain = format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let names = [format!("{plain}.1"), plain];
    let (name, library) = names.into_iter().find_map(|name| Some((name.clone(), open(Path::new(&name)).ok()?)))?;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut mapped = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    let is_library = |path: &&Path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| version_in_name(name).is_some());
    let path = mapped.rfind(is_library).map_or_else(|| PathBuf::from(name), Path::to_owned);
    std::mem::forget(library);
    Some(path)
}

fn open(path: &Path) -> std::result::Result<libloading::Library, libloading::Error> {
    // SAFETY: this runs the library's initialisers. The user, or the installation that the documented order names, vouches for the file.
    unsafe { libloading::Library::new(path) }
}

/// What the library says of itself; refuses one that ort could not use. ort would fail as well, but in part by aborting the process.
fn version(found: &Found) -> Result<String> {
    let path = &found.library;
    let refuse = |what: String| {
        let expected = format!("ONNX Runtime 1.{OLDEST_MINOR_VERSION} or newer");
        Error::usage(found.place, expected, format!("{} in {}", what, path.display()), REMEDY)
    };
    let library = open(path).map_err(|error| refuse(format!("a file that cannot be loaded ({error})")))?;
    type GetBase = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: `OrtGetApiBase` has had this signature since the first release of ONNX Runtime, and no other library exports the name.
    let symbol = unsafe { library.get::<GetBase>(b"OrtGetApiBase\0") };
    let get_base = *symbol.map_err(|_| refuse("a library that is no ONNX Runtime".to_owned()))?;
    // SAFETY: see above; it takes no arguments and returns a pointer to a static table, or null.
    let base = unsafe { get_base().as_ref() }.ok_or_else(|| refuse("a library that is no working ONNX Runtime".to_owned()))?;
    // SAFETY: the table's second function returns a static string that ends in a zero byte.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) }.to_string_lossy().into_owned();
    let minor = version.split('.').nth(1).and_then(|part| part.parse::<u32>().ok());
    if minor.is_none_or(|minor| minor < OLDEST_MINOR_VERSION) {
        return Err(refuse(format!("version {version}")));
    }
    // SAFETY: the table's first function returns a static table for a version of the interface, or null where it has no such version.
    if unsafe { (base.GetApi)(OLDEST_MINOR_VERSION) }.is_null() {
        return Err(refuse(format!("version {version} without interface {OLDEST_MINOR_VERSION}")));
    }
    // It stays loaded: ort opens the same file again, and ONNX Runtime is not made to be unloaded.
    std::mem::forget(library);
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, "").unwrap();
        path
    }

    #[test]
    fn the_documented_order_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let directory = root.path().join(name);
            std::fs::create_dir_all(&directory).unwrap();
            directory
        };
        let library = |directory: &Path| touch(directory, "libonnxruntime.so.1.20.1");
        let (flag, variable, beside, python) = (place("flag"), place("variable"), place("beside"), place("package"));
        let (in_flag, in_variable, in_beside) = (library(&flag), library(&variable), library(&beside));
        let in_python = library(&place("package/capi"));
        let found = |explicit: Option<&Path>, variable: Option<&Path>, beside: Option<&Path>| {
            let variable = variable.map(|path| path.as_os_str().to_owned());
            find(explicit, variable, beside, || Some(python.clone())).unwrap().library
        };
        assert_eq!(found(Some(&in_flag), Some(&variable), Some(&beside)), in_flag);
        assert_eq!(found(Some(&flag), Some(&variable), Some(&beside)), in_flag);
        assert_eq!(found(None, Some(&variable), Some(&beside)), in_variable);
        assert_eq!(found(None, Some(Path::new("")), Some(&beside)), in_beside, "an empty variable is no variable");
        assert_eq!(found(None, None, Some(root.path())), in_python);
    }

    #[test]
    fn the_newest_library_of_a_directory_is_taken_and_the_providers_are_not() {
        let directory = tempfile::tempdir().unwrap();
        for name in
            ["libonnxruntime_providers_shared.so", "onnxruntime_pybind11_state.so", "libonnxruntime.so.1.9.0", "libonnxruntime.so.backup"]
        {
            touch(directory.path(), name);
        }
        let newest = touch(directory.path(), "libonnxruntime.so.1.32.0");
        assert_eq!(library_in(directory.path()), Some(newest));
        assert_eq!(version_in_name("libonnxruntime.1.20.0.dylib"), Some(vec![1, 20, 0]));
        assert_eq!(version_in_name("libonnxruntime_providers_shared.so"), None);
    }

    #[test]
    fn a_place_that_is_named_must_hold_one() {
        let empty = tempfile::tempdir().unwrap();
        for named in [empty.path().to_owned(), empty.path().join("nowhere.so")] {
            let error = find(Some(&named), None, None, || None).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().starts_with("--onnxruntime") && error.to_string().contains("pip install onnxruntime"), "{error}");
            let error = find(None, Some(named.into()), None, || None).unwrap_err();
            assert!(error.to_string().starts_with("ORT_DYLIB_PATH"), "{error}");
        }
    }

    #[test]
    fn where_there_is_none_every_place_is_named() {
        if loader_library().is_some() {
            return; // This system has one in its loader path, so the search cannot fail.
        }
        let empty = tempfile::tempdir().unwrap();
        let error = find(None, None, Some(empty.path()), || None).unwrap_err().to_string();
        for part in ["--onnxruntime", "ORT_DYLIB_PATH", "beside the executable", "python3", "loader path", "make onnxruntime"] {
            assert!(error.contains(part), "no {part} in: {error}");
        }
    }

    #[test]
    fn files_that_are_no_runtime_are_refused() {
        let text = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(text.path(), "not a library").unwrap();
        let error = version(&Found { library: text.path().to_owned(), place: FLAG }).unwrap_err().to_string();
        assert!(error.contains("cannot be loaded"), "{error}");
    }

    /// A library made here that exports `OrtGetApiBase` as ONNX Runtime `version` does.
    #[cfg(target_os = "linux")]
    fn stand_in(directory: &Path, name: &str, code: &str) -> Found {
        let (source, library) = (directory.join("stand_in.c"), directory.join(name));
        std::fs::write(&source, code).unwrap();
        let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
        assert!(status.success(), "the C compiler that the build needs makes a library");
        Found { library, place: FLAG }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_is_too_old_or_something_else_is_refused_without_an_abort() {
        let directory = tempfile::tempdir().unwrap();
        let other = stand_in(directory.path(), "libother.so", "int answer(void) { return 42; }");
        assert!(version(&other).unwrap_err().to_string().contains("no ONNX Runtime"));
        let runtime = |version: &str| {
            let code = "static const void *api(unsigned v) { (void)v; return 0; } static const char *version(void) { return \"VERSION\"; }
                static const void *base[2] = { (const void *)api, (const void *)version }; const void *OrtGetApiBase(void) { return base; }";
            stand_in(directory.path(), &format!("lib{version}.so"), &code.replace("VERSION", version))
        };
        for (name, part) in [("1.16.3", "version 1.16.3"), ("unknown", "version unknown"), ("1.99.0", "without interface 17")] {
            let error = version(&runtime(name)).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part) && error.to_string().contains("1.17 or newer"), "{error}");
        }
    }

    #[test]
    fn a_real_one_is_loaded_once() {
        let runtime = load(None).unwrap();
        assert!(runtime.version.starts_with("1."), "{}", runtime.version);
        assert!(runtime.library.is_absolute(), "{}", runtime.library.display());
        assert_eq!(load(Some(&runtime.library)).unwrap().library, runtime.library);
    }
}
