//! How much memory there is: the machine's, less where a control group allows less; and sizes as they are typed.

use std::path::{Path, PathBuf};

/// Suffixes of a size and the bytes of one.
const UNITS: [(&str, u64); 12] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("b", 1),
];

/// The bytes that `typed` names, such as `2GB`, `1.5 GiB`, `800m` or `1000000`; nothing where it names none.
pub fn parse(typed: &str) -> Option<u64> {
    let typed = typed.trim().to_ascii_lowercase();
    let unit = UNITS.iter().find(|(suffix, _)| typed.ends_with(suffix));
    let (number, factor) = unit.map_or((&typed[..], 1), |(suffix, factor)| (&typed[..typed.len() - suffix.len()], *factor));
    let number: f64 = number.trim_end().parse().ok()?;
    let bytes = number * factor as f64;
    (bytes >= 1.0 && bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// A size for a person, such as `2.15 GB`.
pub fn display(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        _ if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        _ if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} kB", bytes / 1e3),
    }
}

/// Bytes of memory that this process may come to use; nothing where the system does not say.
pub fn total() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).filter_map(|path| limit(&std::fs::read_to_string(path).ok()?));
    limits.chain(machine).min()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// Where the limits of the groups that `/proc/self/cgroup` lists may stand: those of a group and of all that it lies in, in both versions of the
/// hierarchy. In a container the listed path may not be visible; its own limit is then that of the root.
fn limit_files(groups: &str) -> impl Iterator<Item = PathBuf> {
    groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let place = match controllers {
            "" => Some(("/sys/fs/cgroup", "memory.max")),
            _ if controllers.split(',').any(|name| name == "memory") => Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes")),
            _ => None,
        };
        let group = Path::new(path.trim_start_matches('/'));
        let files = |(root, file): (&str, &str)| group.ancestors().map(|group| Path::new(root).join(group).join(file)).collect::<Vec<_>>();
        place.map(files).unwrap_or_default()
    })
}

/// The limit in such a file. `max`, and the largest number that the first version writes, mean none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok().filter(|bytes| *bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_type_them() {
        let sizes = [("2GB", 2_000_000_000), ("1.5 GiB", 3 << 29), ("800m", 800_000_000), ("64kB", 64_000), ("4096", 4096), ("7b", 7)];
        for (typed, bytes) in sizes {
            assert_eq!(parse(typed), Some(bytes), "{typed}");
        }
        for typed in ["", "GB", "0", "-1GB", "two", "1e40GB", "NaN", "inf"] {
            assert_eq!(parse(typed), None, "{typed}");
        }
        assert_eq!([display(2_150_000_000), display(52_300_000), display(800)], ["2.15 GB", "52.3 MB", "0.8 kB"]);
    }

    #[test]
    fn the_machine_and_its_groups_say_how_much_there_is() {
        assert_eq!(machine("MemTotal:       24683520 kB\nMemFree:        1 kB\n"), Some(24_683_520 << 10));
        assert_eq!(machine("MemFree: 1 kB"), None);
        assert_eq!((limit("max\n"), limit("9223372036854771712\n"), limit("2147483648\n")), (None, None, Some(1 << 31)));
        let files: Vec<PathBuf> = limit_files("0::/user/job\n").collect();
        assert_eq!(files, ["user/job", "user", ""].map(|group| Path::new("/sys/fs/cgroup").join(group).join("memory.max")));
        let files: Vec<PathBuf> = limit_files("5:cpu,cpuacct:/a\n4:memory:/a\n").collect();
        assert_eq!(files, ["a", ""].map(|group| Path::new("/sys/fs/cgroup/memory").join(group).join("memory.limit_in_bytes")));
        #[cfg(target_os = "linux")]
        assert!(total().is_some_and(|bytes| bytes > 1 << 26));
    }
}
