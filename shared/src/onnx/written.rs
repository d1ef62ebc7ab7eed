//! The protobuf messages that a new model is written with, with ONNX's own field numbers.
//!
//! Apart from [`super::messages`], which hold what is read: a field whose value is zero must be written all the same where ONNX wants it to be
//! there, so these are optional. A weight's message is written by hand, see [`super::write`], since its values never lie in memory whole.

/// A version of the standard operations.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSet {
    /// Empty for the standard ones.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    /// For example 17.
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

/// One operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// Tensor names.
    #[prost(string, repeated, tag = "1")]
    pub inputs: Vec<String>,
    /// Tensor names.
    #[prost(string, repeated, tag = "2")]
    pub outputs: Vec<String>,
    /// The path of the module it belongs to, and the operation.
    #[prost(string, tag = "3")]
    pub name: String,
    /// For example `MatMul`.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Settings.
    #[prost(message, repeated, tag = "5")]
    pub attributes: Vec<Attribute>,
    /// Empty for the standard operations, `com.microsoft` for ONNX Runtime's own.
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// A setting of a node: exactly one of the values is there, and `kind` says which.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attribute {
    /// For example `axis`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value where that is a number of 32 bits.
    #[prost(float, optional, tag = "2")]
    pub float: Option<f32>,
    /// Its value where that is an integer.
    #[prost(int64, optional, tag = "3")]
    pub int: Option<i64>,
    /// Its value where that is a list of integers.
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// 1 for a float, 2 for an integer, 7 for integers.
    #[prost(int32, tag = "20")]
    pub kind: i32,
}

impl Attribute {
    /// A number of 32 bits.
    pub fn of_float(name: &str, value: f32) -> Self {
        Self { name: name.to_owned(), float: Some(value), kind: 1, ..Self::default() }
    }

    /// An integer.
    pub fn of_int(name: &str, value: i64) -> Self {
        Self { name: name.to_owned(), int: Some(value), kind: 2, ..Self::default() }
    }

    /// A list of integers.
    pub fn of_ints(name: &str, values: &[i64]) -> Self {
        Self { name: name.to_owned(), ints: values.to_owned(), kind: 7, ..Self::default() }
    }
}

/// An input or output with its type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// The tensor's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub value_type: Option<ValueType>,
}

/// A type: that of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueType {
    /// Element type and shape.
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorType>,
}

/// The type of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorType {
    /// 1 for float32, 7 for int64.
    #[prost(int32, tag = "1")]
    pub element: i32,
    /// Its dimensions.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

/// The dimensions of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Shape {
    /// From the outermost in.
    #[prost(message, repeated, tag = "1")]
    pub dimensions: Vec<Dimension>,
}

/// A dimension: known, or open under a name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dimension {
    /// Its size.
    #[prost(int64, optional, tag = "1")]
    pub size: Option<i64>,
    /// Its name, for example `batch_size`.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
}

impl Dimension {
    /// One of any size.
    pub fn open(name: &str) -> Self {
        Self { size: None, name: Some(name.to_owned()) }
    }

    /// One of this size.
    pub fn fixed(size: usize) -> Self {
        Self { size: Some(size as i64), name: None }
    }
}
