//! Which function the feed-forward blocks and the head apply.

use std::fmt;
use std::str::FromStr;

/// An activation that the kernels have, forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x Phi(x), with the exact normal distribution (Hendrycks and Gimpel 2016).
    #[default]
    Gelu,
    /// GELU's approximation by tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. ALBERT's default.
    GeluNew,
    /// max(x, 0).
    Relu,
    /// x / (1 + e^-x) (Elfwing et al. 2018), also called swish.
    Silu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gelu, Self::GeluNew, Self::Relu, Self::Silu];

    /// The name that flags and a `config.json` use, the one `transformers` knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluNew => "gelu_new",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Activation {
    type Err = String;

    /// `transformers` has several names for one function; those are read too. The error is what was expected.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "gelu" | "gelu_python" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" => Ok(Self::GeluNew),
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            _ => Err(format!("one of {}", Self::ALL.map(Self::name).join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_are_read_and_others_refused() {
        for activation in Activation::ALL {
            assert_eq!(activation.to_string().parse(), Ok(activation));
        }
        assert_eq!("gelu_pytorch_tanh".parse(), Ok(Activation::GeluNew));
        assert_eq!("swish".parse(), Ok(Activation::Silu));
        // A clipped and a rescaled GELU are other functions.
        for other in ["gelu_10", "quick_gelu", "tanh", "GELU", ""] {
            assert!(other.parse::<Activation>().unwrap_err().contains("gelu, gelu_new, relu, silu"), "{other}");
        }
    }
}
