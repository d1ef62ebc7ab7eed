//! Where the arithmetic runs. A device that this build or this machine lacks is an error, never a quiet fallback.

use candle_core::Device;
use logitcache::error::{Error, Result};
use std::fmt;

const FLAG: &str = "--device";

/// What makes the steps, and where.
#[derive(Clone, Debug)]
pub enum Placement {
    /// The fused kernels, on the processor.
    Kernels,
    /// candle's operations, on a device of candle.
    Composed {
        /// Which one.
        device: Device,
        /// As the flag calls it.
        name: String,
    },
}

impl Placement {
    /// The placement called `name`: `cpu`, `cuda` for the first GPU, `cuda:1` for the second and so on.
    ///
    /// # Errors
    /// [`Error::Usage`] for another name, for a GPU where the build has no `cuda` feature, for one that does not answer.
    pub fn named(name: &str) -> Result<Self> {
        if name == "cpu" {
            return Ok(Self::Kernels);
        }
        let number = match name.strip_prefix("cuda") {
            Some("") => Some(0),
            Some(rest) => rest.strip_prefix(':').and_then(|number| number.parse().ok()),
            None => None,
        };
        let Some(number) = number else {
            return Err(Error::usage(FLAG, "cpu, cuda or cuda:N, the GPU with this number", name, "use --device cpu"));
        };
        if !cfg!(feature = "cuda") {
            let remedy = "use --device cpu, or build with cargo build --release --features train/cuda, for which CUDA's nvcc is needed";
            return Err(Error::usage(FLAG, "one that this build has (cpu)", name, remedy));
        }
        let device = Device::new_cuda(number).map_err(|error| {
            let remedy = "use --device cpu, or see with nvidia-smi which GPUs there are";
            Error::usage(FLAG, "a GPU that answers", format!("{name}: {error}"), remedy)
        })?;
        #[cfg(feature = "cuda")]
        keep_freed_memory(&device);
        Ok(Self::Composed { device, name: format!("cuda:{number}") })
    }

    /// Whether the kernels make the steps.
    pub fn is_kernels(&self) -> bool {
        matches!(self, Self::Kernels)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernels => formatter.write_str("cpu"),
            Self::Composed { name, .. } => formatter.write_str(name),
        }
    }
}

/// Has the driver keep what is freed for what is asked for next. By default it gives all of it back whenever the processor waits for the GPU, once a
/// step, and the next step's first use of each tensor would map its memory anew (CUDA programming guide, stream-ordered memory allocator). Where the
/// driver refuses, steps are slower and nothing else.
#[cfg(feature = "cuda")]
fn keep_freed_memory(device: &Device) {
    use candle_core::cuda_backend::cudarc::driver::sys::{self, CUmemPool_attribute, CUresult};
    let Device::Cuda(cuda) = device else { return };
    let mut most = u64::MAX;
    let mut pool = std::ptr::null_mut();
    let number = cuda.cuda_stream().context().cu_device();
    // SAFETY: the device is one that the driver opened, and both pointers are to places of the kind that the two calls write and read.
    unsafe {
        if sys::cuDeviceGetDefaultMemPool(&raw mut pool, number) == CUresult::CUDA_SUCCESS {
            let _ = sys::cuMemPoolSetAttribute(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut most).cast());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_had_is_refused_with_what_to_do() {
        assert!(Placement::named("cpu").unwrap().is_kernels());
        let refused = |name: &str| {
            let error = Placement::named(name).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let error = refused("cuda:63");
        assert!(error.contains("cuda:63") && error.contains("--device cpu"), "{error}");
        if !cfg!(feature = "cuda") {
            assert!(refused("cuda").contains("--features train/cuda"));
        }
        for name in ["metal", "cuda:", "cuda:x", "cuda0", "CPU", ""] {
            assert!(refused(name).contains("cuda:N"), "{name}");
        }
    }
}
