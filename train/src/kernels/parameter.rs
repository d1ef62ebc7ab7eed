//! Trainable values with their gradient buffers.

use super::element::Element;
use super::precision::Precision;
use super::storage::failure;
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, Var};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How the student, the operations and the optimiser share a parameter.
pub type ParameterRef = Arc<Parameter>;

/// A trainable tensor (`f32` or `f64`, on the CPU) and the sum of its gradients since they were last forgotten.
///
/// Operations read the value and add to the gradient; the optimiser changes both. Neither is seen by candle's autograd, which would fill a
/// buffer of zeros for every use of a weight and add to it. Here the first gradient of a step is written over what the last step left.
pub struct Parameter {
    name: String,
    value: Var,
    gradient: Mutex<Gradient>,
    /// Whether the products of a linear map by it read bf16.
    bf16: AtomicBool,
}

struct Gradient {
    /// Empty before the first gradient, and while a loss computes into the buffer it was lent.
    values: CpuStorage,
    /// Whether the sum is zero, whatever the buffer holds.
    forgotten: bool,
}

/// The weight and the bias of one linear map (`[out, in]` and `[out]`, as Hugging Face stores them) or of one LayerNorm (`[width]` both).
#[derive(Clone)]
pub struct Affine {
    /// The matrix, or the scale of a LayerNorm.
    pub weight: ParameterRef,
    /// The shift.
    pub bias: ParameterRef,
}

impl Parameter {
    /// A parameter with a copy of `value`, which must be `f32` or `f64` and on the CPU, and a gradient of zeros.
    pub fn new(name: impl Into<String>, value: &Tensor) -> Result<ParameterRef> {
        let name = name.into();
        if !matches!(value.device(), Device::Cpu) {
            return Err(failure(&name, "parameters live on the CPU"));
        }
        let values = match value.dtype() {
            DType::F32 => CpuStorage::F32(Vec::new()),
            DType::F64 => CpuStorage::F64(Vec::new()),
            other => return Err(failure(&name, format!("a parameter holds f32 or f64, not {other:?}"))),
        };
        let value = Var::from_tensor(&value.copy()?.contiguous()?)?;
        let gradient = Mutex::new(Gradient { values, forgotten: true });
        Ok(Arc::new(Self { name, value, gradient, bf16: AtomicBool::new(false) }))
    }

    /// The name Hugging Face gives the tensor.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape of value and gradient.
    pub fn shape(&self) -> &Shape {
        self.value.shape()
    }

    /// How many numbers it holds.
    pub fn elements(&self) -> usize {
        self.value.elem_count()
    }

    /// `F32` or `F64`.
    pub fn dtype(&self) -> DType {
        self.value.dtype()
    }

    /// What the products of a linear map by it read, forward and backward: single precision unless [set](Self::set_precision).
    pub fn precision(&self) -> Precision {
        if self.bf16.load(Ordering::Relaxed) { Precision::Bf16 } else { Precision::Single }
    }

    /// Sets what [`precision`](Self::precision) gives. The value stays in single precision.
    pub fn set_precision(&self, precision: Precision) {
        self.bf16.store(precision == Precision::Bf16, Ordering::Relaxed);
    }

    /// The value. It is a candle variable: an operation applied to it by candle itself would be tracked, and its gradient would not reach
    /// [`Parameter::with_gradient`]; detach it first.
    pub fn value(&self) -> &Tensor {
        self.value.as_tensor()
    }

    /// Reads the value, row-major. An error if `T` is not its number type.
    pub fn with_value<T: Element, R>(&self, read: impl FnOnce(&[T]) -> R) -> Result<R> {
        let (storage, _) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok(read(T::cpu_storage_as_slice(storage)?)),
            _ => Err(failure(&self.name, "parameters live on the CPU")),
        }
    }

    /// Reads or changes the gradient, row-major. An error if `T` is not its number type.
    pub fn with_gradient<T: Element, R>(&self, change: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        Ok(change(self.lock().summed(self.elements())?))
    }

    /// Adds to the gradient: `add(sink, accumulate)` adds to the numbers of `sink`, or, where `accumulate` is false, writes all of them over
    /// what is left there from before. An error if `T` is not its number type.
    pub(crate) fn add_gradient<T: Element>(&self, add: impl FnOnce(&mut [T], bool)) -> Result<()> {
        let mut gradient = self.lock();
        let accumulate = !gradient.forgotten;
        add(gradient.buffer(self.elements())?, accumulate);
        gradient.forgotten = false;
        Ok(())
    }

    /// A buffer for a gradient that is worked out before its time, with numbers to be written over. It is the parameter's own where nothing
    /// would be lost, so that no second one is needed; [`give_gradient`](Self::give_gradient) takes it back.
    pub(crate) fn gradient_buffer<T: Element>(&self) -> Result<Vec<T>> {
        let mut gradient = self.lock();
        if !gradient.forgotten {
            return Ok(vec![T::zero(); self.elements()]);
        }
        gradient.buffer::<T>(self.elements())?;
        Ok(std::mem::take(numbers(&mut gradient.values)?))
    }

    /// Adds a gradient that fills a buffer.
    pub(crate) fn give_gradient<T: Element>(&self, computed: Vec<T>) -> Result<()> {
        let mut gradient = self.lock();
        let gradient = &mut *gradient;
        let values = numbers(&mut gradient.values)?;
        if computed.len() != self.elements() {
            return Err(failure(&self.name, format!("a gradient of {} numbers for {}", computed.len(), self.elements())));
        }
        if gradient.forgotten {
            *values = computed;
            gradient.forgotten = false;
            return Ok(());
        }
        values.par_chunks_mut(PIECE).zip(computed.par_chunks(PIECE)).for_each(|(sink, computed)| {
            sink.iter_mut().zip(computed).for_each(|(sink, computed)| *sink += *computed);
        });
        Ok(())
    }

    /// Changes the value given the gradient: `change(value, gradient)`. For the optimiser.
    pub fn update<T: Element, R>(&self, change: impl FnOnce(&mut [T], &mut [T]) -> R) -> Result<R> {
        let update = Update::<T, _, R> {
            change: Mutex::new(Some(change)),
            gradient: &self.gradient,
            result: Mutex::new(None),
            element: PhantomData,
        };
        self.value.inplace_op1(&update)?;
        let result = update.result.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        result.ok_or_else(|| failure(&self.name, "the update did not run"))
    }

    /// Replaces the value by a tensor of the same shape and number type; the gradient stays.
    pub fn set_value(&self, value: &Tensor) -> Result<()> {
        self.value.set(value)
    }

    /// A copy of the gradient.
    pub fn gradient_tensor(&self) -> Result<Tensor> {
        match self.dtype() {
            DType::F64 => self.with_gradient(|gradient: &mut [f64]| Tensor::from_slice(gradient, self.shape(), &Device::Cpu))?,
            _ => self.with_gradient(|gradient: &mut [f32]| Tensor::from_slice(gradient, self.shape(), &Device::Cpu))?,
        }
    }

    /// Forgets the gradient.
    pub fn zero_gradient(&self) {
        self.lock().forgotten = true;
    }

    fn lock(&self) -> MutexGuard<'_, Gradient> {
        // A panic elsewhere leaves numbers, not a broken structure.
        self.gradient.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Numbers that one task adds.
const PIECE: usize = 1 << 15;

impl Gradient {
    /// All numbers, whatever they are.
    fn buffer<T: Element>(&mut self, elements: usize) -> Result<&mut [T]> {
        let values = numbers(&mut self.values)?;
        values.resize(elements, T::zero());
        Ok(values)
    }

    /// The sum.
    fn summed<T: Element>(&mut self, elements: usize) -> Result<&mut [T]> {
        let values = numbers(&mut self.values)?;
        values.resize(elements, T::zero());
        if std::mem::take(&mut self.forgotten) {
            values.fill(T::zero());
        }
        Ok(values)
    }
}

fn numbers<T: Element>(storage: &mut CpuStorage) -> Result<&mut Vec<T>> {
    let found = match storage {
        CpuStorage::F32(values) => (values as &mut dyn std::any::Any).downcast_mut::<Vec<T>>(),
        CpuStorage::F64(values) => (values as &mut dyn std::any::Any).downcast_mut::<Vec<T>>(),
        _ => None,
    };
    found.ok_or_else(|| failure("parameter", format!("it does not hold {:?}", T::DTYPE)))
}

/// candle hands out a variable's memory for writing only through an in-place operation; this one runs a closure once.
struct Update<'a, T, F, R> {
    change: Mutex<Option<F>>,
    gradient: &'a Mutex<Gradient>,
    result: Mutex<Option<R>>,
    element: PhantomData<fn(T)>,
}

impl<T: Element, R, F: FnOnce(&mut [T], &mut [T]) -> R> InplaceOp1 for Update<'_, T, F, R> {
    fn name(&self) -> &'static str {
        "parameter update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        let change = self.change.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let change = change.ok_or_else(|| failure("parameter update", "it ran twice"))?;
        let mut gradient = self.gradient.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let value = numbers::<T>(storage)?;
        let elements = value.len();
        let result = change(value, gradient.summed::<T>(elements)?);
        *self.result.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(result);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_and_gradient_are_changed_together() {
        let tensor = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let parameter = Parameter::new("weight", &tensor).unwrap();
        parameter.with_gradient(|gradient: &mut [f32]| gradient.copy_from_slice(&[0.5, 0.25, 0.0, 1.0])).unwrap();
        let sum = parameter
            .update(|value: &mut [f32], gradient: &mut [f32]| {
                value.iter_mut().zip(gradient.iter()).for_each(|(value, gradient)| *value -= *gradient);
                value.iter().sum::<f32>()
            })
            .unwrap();
        assert_eq!(sum, 8.25);
        assert_eq!(parameter.with_value(|value: &[f32]| value.to_vec()).unwrap(), [0.5, 1.75, 3.0, 3.0]);
        assert_eq!(parameter.gradient_tensor().unwrap().to_vec2::<f32>().unwrap(), [[0.5, 0.25], [0.0, 1.0]]);
        parameter.zero_gradient();
        assert_eq!(parameter.with_gradient(|gradient: &mut [f32]| gradient.to_vec()).unwrap(), [0.0; 4]);
        // The given tensor was copied, not shared.
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
    }

    #[test]
    fn the_first_gradient_is_written_and_the_next_is_added() {
        let parameter = Parameter::new("weight", &Tensor::new(&[0f32, 0.0], &Device::Cpu).unwrap()).unwrap();
        let read = || parameter.with_gradient(|gradient: &mut [f32]| gradient.to_vec()).unwrap();
        let add = |values: [f32; 2]| {
            let write = |sink: &mut [f32], accumulate: bool| {
                sink.iter_mut().zip(values).for_each(|(sink, value)| *sink = value + if accumulate { *sink } else { 0.0 });
            };
            parameter.add_gradient(write).unwrap();
        };
        assert_eq!(read(), [0.0, 0.0]);
        parameter.zero_gradient();
        add([1.0, 2.0]);
        add([0.5, 0.5]);
        assert_eq!(read(), [1.5, 2.5]);
        parameter.zero_gradient();
        add([3.0, 4.0]);
        assert_eq!(read(), [3.0, 4.0]);
        // A gradient worked out before its time: in the parameter's own buffer after it was forgotten, in another where it must be kept.
        for (forgotten, expected) in [(false, [8.0, 9.0]), (true, [5.0, 5.0])] {
            if forgotten {
                parameter.zero_gradient();
            }
            let mut buffer: Vec<f32> = parameter.gradient_buffer().unwrap();
            buffer.fill(5.0);
            parameter.give_gradient(buffer).unwrap();
            assert_eq!(read(), expected);
        }
        // A buffer that never comes back is made anew.
        parameter.zero_gradient();
        drop(parameter.gradient_buffer::<f32>().unwrap());
        assert_eq!(read(), [0.0, 0.0]);
        assert!(parameter.give_gradient(vec![0f32; 3]).is_err());
    }

    #[test]
    fn the_wrong_number_type_is_refused() {
        let parameter = Parameter::new("weight", &Tensor::new(&[1f64], &Device::Cpu).unwrap()).unwrap();
        assert!(parameter.with_value(|value: &[f32]| value.len()).is_err());
        assert!(parameter.with_gradient(|gradient: &mut [f32]| gradient.len()).is_err());
        assert!(parameter.update(|value: &mut [f32], _: &mut [f32]| value.len()).is_err());
        assert!(Parameter::new("ids", &Tensor::new(&[1u32], &Device::Cpu).unwrap()).is_err());
    }
}
