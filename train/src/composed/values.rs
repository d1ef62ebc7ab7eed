//! What is trained, as tensors of the device, found by their role.

use super::operations::{affine, layer_norm, product};
use crate::kernels::{Affine, ParameterRef, Precision};
use crate::student::{ParameterSpec, Role, StudentConfig, layout};
use candle_core::{DType, Device, Error, Result, Tensor, Var};

/// The parameters of a student and of the projections beside it, in the optimiser's order.
pub(super) struct Values {
    /// What each of the student's is.
    specs: Vec<ParameterSpec>,
    /// All of them.
    vars: Vec<Var>,
    /// The same, or without what candle needs to differentiate by them.
    tensors: Vec<Tensor>,
    precision: Precision,
}

impl Values {
    /// Copies of `parameters`, of which the first are those of `config` in the order of its layout.
    pub(super) fn upload(config: &StudentConfig, parameters: &[ParameterRef], device: &Device, precision: Precision) -> Result<Self> {
        let vars: Vec<Var> =
            parameters.iter().map(|each| Var::from_tensor(&each.value().detach().to_device(device)?)).collect::<Result<_>>()?;
        let tensors = vars.iter().map(|var| var.as_tensor().clone()).collect();
        Ok(Self { specs: layout(config), vars, tensors, precision })
    }

    /// The same numbers, by which nothing is differentiated.
    pub(super) fn detached(&self) -> Self {
        let tensors = self.vars.iter().map(|var| var.as_detached_tensor()).collect();
        Self { specs: self.specs.clone(), vars: self.vars.clone(), tensors, precision: self.precision }
    }

    /// Gives `parameters`, those that were uploaded, their values.
    pub(super) fn download(&self, parameters: &[ParameterRef]) -> Result<()> {
        parameters.iter().zip(&self.vars).try_for_each(|(each, var)| each.set_value(&var.as_detached_tensor().to_device(&Device::Cpu)?))
    }

    /// All of them, to be changed.
    pub(super) fn vars(&self) -> &[Var] {
        &self.vars
    }

    pub(super) fn dtype(&self) -> DType {
        self.tensors[0].dtype()
    }

    pub(super) fn device(&self) -> &Device {
        self.tensors[0].device()
    }

    pub(super) fn precision(&self) -> Precision {
        self.precision
    }

    fn find(&self, role: Role, bias: bool) -> Option<&Tensor> {
        self.specs.iter().find(|spec| spec.role == role && spec.bias == bias).map(|spec| &self.tensors[spec.number])
    }

    /// Rows of the table of a role, where the student has it.
    pub(super) fn rows(&self, role: Role) -> Option<usize> {
        self.find(role, false).map(|table| table.dims()[0])
    }

    /// The weight of a role.
    pub(super) fn weight(&self, role: Role) -> Result<&Tensor> {
        self.find(role, false).ok_or_else(|| Error::Msg(format!("the student has no weight of {role:?}")))
    }

    /// Its bias; a decoder's map may have none.
    pub(super) fn bias(&self, role: Role) -> Option<&Tensor> {
        self.find(role, true)
    }

    /// `[rows, out]`: the linear map of a role, whose weight is `[out, in]`, or `[in, out]` where `inputs_first`.
    pub(super) fn map(&self, x: &Tensor, role: Role, inputs_first: bool) -> Result<Tensor> {
        let weight = self.weight(role)?;
        match self.bias(role) {
            Some(bias) => affine(x, weight, bias, inputs_first, self.precision),
            None => product(x, weight, inputs_first, self.precision),
        }
    }

    /// [`map`](Self::map) of a weight `[out, in]`.
    pub(super) fn linear(&self, x: &Tensor, role: Role) -> Result<Tensor> {
        self.map(x, role, false)
    }

    /// The LayerNorm of a role.
    pub(super) fn norm(&self, x: &Tensor, role: Role, epsilon: f64) -> Result<Tensor> {
        let bias = self.bias(role).ok_or_else(|| Error::Msg(format!("the student has no bias of {role:?}")))?;
        layer_norm(x, self.weight(role)?, bias, epsilon)
    }

    /// The linear map of a projection, one of `parameters`, those that were uploaded.
    pub(super) fn project(&self, x: &Tensor, projection: &Affine, parameters: &[ParameterRef]) -> Result<Tensor> {
        let of = |wanted: &ParameterRef| {
            let found = parameters.iter().position(|each| std::sync::Arc::ptr_eq(each, wanted)).map(|place| &self.tensors[place]);
            found.ok_or_else(|| Error::Msg(format!("{} is not among what is trained", wanted.name())))
        };
        affine(x, of(&projection.weight)?, of(&projection.bias)?, false, self.precision)
    }
}
