//! A session's inputs by name: which can be filled, and with what.
//!
//! A decoder exported with its cache takes the keys and values of earlier tokens. There are none here: those inputs get tensors of length 0, and the
//! switch of an export that has both ways in one graph says that there is no cache.

use super::TeacherBatch;
use super::gather::ASKED_INPUT;
use logitcache::error::{Error, Result};
use ort::memory::Allocator;
use ort::session::SessionInputValue;
use ort::value::{DynTensor, Outlet, Tensor, TensorElementType, TensorRef};
use std::path::Path;

/// What an input is filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    InputIds,
    AttentionMask,
    TokenTypeIds,
    /// The position of each token, counted from the family's first.
    PositionIds,
    /// Keys or values of earlier tokens: `[batch, ...]` with one length, that is 0. The sizes that are fixed are in their places.
    Past {
        sizes: Vec<Option<usize>>,
        element: TensorElementType,
    },
    /// Whether there is a cache.
    UseCache,
    /// The (row, position) pairs that are asked, `[1, asked, 2]`.
    Asked,
}

/// Inputs of `[batch, sequence]`.
pub(super) const TOKEN_INPUTS: [(&str, Role); 4] = [
    ("input_ids", Role::InputIds),
    ("attention_mask", Role::AttentionMask),
    ("token_type_ids", Role::TokenTypeIds),
    ("position_ids", Role::PositionIds),
];
const PAST_PREFIX: &str = "past_key_values";
const USE_CACHE: &str = "use_cache_branch";

/// An input as the session wants it.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub name: String,
    pub role: Role,
    narrow: bool,
}

impl Input {
    /// Tells an input's role by its name, and checks its type and shape.
    ///
    /// # Errors
    /// [`Error::Data`] for an input that cannot be filled.
    pub(super) fn of(model: &Path, outlet: &Outlet) -> Result<Self> {
        let name = outlet.name().to_owned();
        let shape = outlet.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
        let refuse =
            |expected: &str, found: String, remedy: &str| Err(Error::data(model, format!("input {name}"), expected, found, remedy));
        if name == USE_CACHE && outlet.dtype().tensor_type() == Some(TensorElementType::Bool) {
            return Ok(Self { name, role: Role::UseCache, narrow: false });
        }
        if name == ASKED_INPUT {
            return Ok(Self { name, role: Role::Asked, narrow: false });
        }
        if name.starts_with(PAST_PREFIX) {
            let sizes: Vec<Option<usize>> = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
            let open = sizes.iter().skip(1).filter(|size| size.is_none()).count();
            let Some(element @ (TensorElementType::Float32 | TensorElementType::Float16)) = outlet.dtype().tensor_type() else {
                return refuse("a float32 or float16 tensor", outlet.dtype().to_string(), WITHOUT_CACHE);
            };
            if sizes.first() != Some(&None) || open != 1 {
                return refuse("a shape with an open batch and one open length", format!("{shape:?}"), WITHOUT_CACHE);
            }
            return Ok(Self { name, role: Role::Past { sizes, element }, narrow: false });
        }
        let Some((_, role)) = TOKEN_INPUTS.into_iter().find(|(known, _)| *known == name) else {
            let expected = format!("{} or {PAST_PREFIX}...", TOKEN_INPUTS.map(|(name, _)| name).join(", "));
            return refuse(&expected, "an input that cannot be filled".to_owned(), "export the model without it");
        };
        let narrow = match outlet.dtype().tensor_type() {
            Some(TensorElementType::Int64) => false,
            Some(TensorElementType::Int32) => true,
            _ => return refuse("an int64 or int32 tensor", outlet.dtype().to_string(), "export the model again"),
        };
        if !matches!(shape[..], [batch, length] if batch < 0 && length < 0) {
            let remedy = "export with dynamic axes for batch and sequence";
            return refuse("a shape [batch, sequence] that is open", format!("{shape:?}"), remedy);
        }
        Ok(Self { name, role, narrow })
    }

    /// The value for a batch. `positions`, of every token, and `asked`, pairs of row and position, are filled where they are needed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a batch whose parts have other lengths; the runtime's own.
    pub(super) fn value<'v>(
        &self,
        model: &Path,
        batch: &'v TeacherBatch,
        positions: &'v [i64],
        asked: &'v [i64],
    ) -> Result<SessionInputValue<'v>> {
        let failed =
            |error: ort::Error| Error::library(format!("feed a batch of [{}, {}] tokens to", batch.rows, batch.length), model)(error);
        let values = match &self.role {
            Role::InputIds => &batch.input_ids[..],
            Role::AttentionMask => &batch.attention_mask,
            Role::TokenTypeIds => &batch.token_type_ids,
            Role::PositionIds => positions,
            Role::Past { sizes, element } => {
                let size = |(place, size): (usize, &Option<usize>)| size.unwrap_or(if place == 0 { batch.rows } else { 0 }) as i64;
                let shape: Vec<i64> = sizes.iter().enumerate().map(size).collect();
                return Ok(DynTensor::new(&Allocator::default(), *element, shape).map_err(failed)?.into());
            }
            Role::Asked => return Ok(TensorRef::from_array_view(([1, asked.len() / 2, 2], asked)).map_err(failed)?.into()),
            Role::UseCache => return Ok(Tensor::from_array(([1], vec![false])).map_err(failed)?.into()),
        };
        let size = batch.rows * batch.length;
        if values.len() != size || size == 0 {
            let expected = format!("{} x {} values", batch.rows, batch.length);
            return Err(Error::invalid(&self.name, expected, values.len().to_string()));
        }
        let shape = [batch.rows, batch.length];
        if self.narrow {
            // Ids, masks and positions of a model whose inputs are int32 fit.
            let narrow = values.iter().map(|value| *value as i32).collect::<Vec<i32>>();
            return Ok(Tensor::from_array((shape, narrow)).map_err(failed)?.into());
        }
        Ok(TensorRef::from_array_view((shape, values)).map_err(failed)?.into())
    }
}

const WITHOUT_CACHE: &str = "export the model without its cache, for example `optimum-cli export onnx --task text-generation`";
