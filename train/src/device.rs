//! Where the arithmetic runs. A device that this build lacks is an error, never a quiet fallback.

use logitcache::error::{Error, Result};

/// The devices of this build.
pub const BUILT: &[&str] = &["cpu"];

/// Whether this build has the device called `name`. The kernels of the student know no other than these.
///
/// # Errors
/// [`Error::Usage`] with the list of what is built.
pub fn check(name: &str) -> Result<()> {
    if BUILT.contains(&name) {
        return Ok(());
    }
    let expected = format!("one that this build has ({})", BUILT.join(", "));
    Err(Error::usage("--device", expected, name, format!("use --device {}", BUILT[0])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_device_is_refused_with_what_is_built() {
        assert!(check("cpu").is_ok());
        let error = check("cuda").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("cpu") && error.to_string().contains("cuda"), "{error}");
    }
}
