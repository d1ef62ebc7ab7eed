//! The part of ONNX's protobuf messages that this crate reads, with ONNX's own field numbers.
//!
//! Unknown fields are skipped when decoding, so these must not be used to write a model back: see [`super::model`].

use super::builder::FLOAT32;
use prost::bytes::Bytes;

/// A model file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelProto {
    /// The main graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// The versions of the operations that the nodes are of.
    #[prost(message, repeated, tag = "8")]
    pub operator_sets: Vec<OperatorSetProto>,
    /// Functions that nodes may call; their inner tensors cannot be exposed.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
}

/// A version of a set of operations.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSetProto {
    /// Empty or `ai.onnx` for the standard operations.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// For example 17.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// Nodes in topological order and the tensors they share.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GraphProto {
    /// The operations.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NodeProto>,
    /// Constants, the weights among them.
    #[prost(message, repeated, tag = "5")]
    pub initializers: Vec<TensorProto>,
    /// What is fed (old files list the initialisers here too).
    #[prost(message, repeated, tag = "11")]
    pub inputs: Vec<ValueInfoProto>,
    /// What is given back.
    #[prost(message, repeated, tag = "12")]
    pub outputs: Vec<ValueInfoProto>,
}

/// One operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeProto {
    /// Tensor names; an empty one is an absent optional input.
    #[prost(string, repeated, tag = "1")]
    pub inputs: Vec<String>,
    /// Tensor names; an empty one is an optional output that nobody wants.
    #[prost(string, repeated, tag = "2")]
    pub outputs: Vec<String>,
    /// For people; may be empty.
    #[prost(string, tag = "3")]
    pub name: String,
    /// For example `MatMul`.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Settings.
    #[prost(message, repeated, tag = "5")]
    pub attributes: Vec<AttributeProto>,
    /// Empty or `ai.onnx` for the standard operations, `com.microsoft` for ONNX Runtime's own.
    #[prost(string, tag = "7")]
    pub domain: String,
    /// What the exporter noted, such as the modules that the node is in.
    #[prost(message, repeated, tag = "9")]
    pub metadata: Vec<EntryProto>,
}

impl NodeProto {
    /// The setting of that name, where the node has it.
    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    /// Whether the operation is a standard one or one of ONNX Runtime's own.
    pub fn is_known_domain(&self) -> bool {
        matches!(self.domain.as_str(), "" | "ai.onnx" | "com.microsoft")
    }
}

/// A setting of a node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttributeProto {
    /// For example `axis`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value where that is an integer.
    #[prost(int64, tag = "3")]
    pub int: i64,
    /// Its value where that is a tensor.
    #[prost(message, optional, tag = "5")]
    pub tensor: Option<TensorProto>,
    /// Its value where that is a list of integers.
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
}

/// A constant.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    /// Its shape; empty for a scalar.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// See [`element_type`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Values of float32, where they are not in `raw_data`.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    /// Values of small integer and boolean types, where they are not in `raw_data`.
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    /// Values of int64, where they are not in `raw_data`.
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    /// The tensor's name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Values in little-endian order, unless they are elsewhere. Shares the file's memory.
    #[prost(bytes = "bytes", tag = "9")]
    pub raw_data: Bytes,
    /// Where the values lie in another file: its `location` among others.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<EntryProto>,
    /// 1 where the values lie in another file.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

impl TensorProto {
    /// How many values it has.
    pub fn elements(&self) -> u64 {
        self.dims.iter().map(|dim| u64::try_from(*dim).unwrap_or(0)).fold(1, u64::saturating_mul)
    }

    /// The values of a float32 tensor, where they are in the file.
    pub fn floats(&self) -> Option<Vec<f32>> {
        if self.data_type != FLOAT32 || self.data_location == EXTERNAL {
            return None;
        }
        let values: Vec<f32> = match self.float_data.is_empty() {
            true => self.raw_data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            false => self.float_data.clone(),
        };
        (values.len() as u64 == self.elements()).then_some(values)
    }

    /// The values of an int64 tensor that is in the file.
    pub fn integers(&self) -> Vec<i64> {
        match self.int64_data.is_empty() {
            true => self.raw_data.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
            false => self.int64_data.clone(),
        }
    }
}

/// A key and its value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EntryProto {
    /// For example `location`.
    #[prost(string, tag = "1")]
    pub key: String,
    /// For example `model.onnx_data`.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// An input or output (where it says no type, the runtime infers it).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    /// The tensor's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub declared: Option<TypeProto>,
}

impl ValueInfoProto {
    /// The tensor's shape, where it is declared; a dimension that is open or only named is none.
    pub fn shape(&self) -> Option<Vec<Option<u64>>> {
        let shape = self.declared.as_ref()?.tensor.as_ref()?.shape.as_ref()?;
        Some(shape.dimensions.iter().map(|dimension| dimension.size.and_then(|size| u64::try_from(size).ok())).collect())
    }
}

/// A type: that of a tensor, or nothing this crate reads.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProto {
    /// Where it is a tensor.
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorTypeProto>,
}

/// A tensor's element type and shape.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorTypeProto {
    /// As [`TensorProto::data_type`].
    #[prost(int32, tag = "1")]
    pub element_type: i32,
    /// Absent where not even the rank is known.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<ShapeProto>,
}

/// A shape.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShapeProto {
    /// The slowest first.
    #[prost(message, repeated, tag = "1")]
    pub dimensions: Vec<DimensionProto>,
}

/// A dimension: its size, or a name for a size that is open.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DimensionProto {
    /// The size, where it is fixed.
    #[prost(int64, optional, tag = "1")]
    pub size: Option<i64>,
}

/// A function's name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionProto {
    /// For example `LayerNorm_1`.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Values of [`TensorProto::data_type`].
pub mod element_type {
    /// Floating-point types: float32, float16, float64, bfloat16.
    pub const FLOATS: [i32; 4] = [1, 10, 11, 16];
    /// Types that weights are quantised to: uint8, int8, uint4, int4.
    pub const QUANTISED: [i32; 4] = [2, 3, 21, 22];
}

/// The value of [`TensorProto::data_location`] for a tensor whose values lie in another file.
pub const EXTERNAL: i32 = 1;
