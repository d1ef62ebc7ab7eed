//! How the operands of the student's linear maps are multiplied.

use logitcache::error::{Error, Result};
use std::fmt;

/// The numbers that a product reads. Sums, parameters, activations and gradients are in single precision either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are.
    #[default]
    Single,
    /// Rounded to bf16 on their way into the product.
    Bf16,
}

/// The names `--dtype` knows.
const NAMES: [(&str, Precision); 2] = [("fp32", Precision::Single), ("bf16", Precision::Bf16)];

impl Precision {
    /// The precision called `name`, if what multiplies has the instructions for it: this processor, or, not `on_processor`, a GPU.
    ///
    /// # Errors
    /// [`Error::Usage`] for another name, and for `bf16` on a processor without AVX512-BF16: the arithmetic would be no faster than that of
    /// `fp32`.
    pub fn check(name: &str, on_processor: bool) -> Result<Self> {
        Self::named(name, !on_processor || has_bf16())
    }

    fn named(name: &str, has_bf16: bool) -> Result<Self> {
        match NAMES.iter().find(|(known, _)| *known == name) {
            None => Err(Error::usage("--dtype", "fp32 or bf16", name, "use --dtype fp32")),
            Some((_, Self::Bf16)) if !has_bf16 => {
                Err(Error::usage("--dtype", "a processor with AVX512-BF16 for bf16", "one without", "use --dtype fp32"))
            }
            Some((_, precision)) => Ok(*precision),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, precision)| precision == self).map_or("", |(name, _)| name);
        formatter.write_str(name)
    }
}

/// Whether the processor multiplies pairs of bf16.
pub(crate) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = is_x86_feature_detected!("avx512bf16") && super::level::Level::available().iter().any(|level| level.is_avx512());
    #[cfg(not(target_arch = "x86_64"))]
    let found = false;
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (name, precision) in NAMES {
            assert_eq!(Precision::named(name, true).unwrap(), precision);
            assert_eq!(precision.to_string(), name);
        }
        assert_eq!(Precision::check("fp32", true).unwrap(), Precision::default());
    }

    #[test]
    fn what_cannot_be_had_is_refused_with_what_can() {
        let refused = |name: &str, has_bf16| {
            let error = Precision::named(name, has_bf16).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let error = refused("bf16", false);
        assert!(["--dtype", "AVX512-BF16", "use --dtype fp32"].iter().all(|word| error.contains(word)), "{error}");
        assert!(refused("fp16", true).contains("fp32 or bf16"));
    }
}
