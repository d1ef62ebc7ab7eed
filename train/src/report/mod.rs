//! What a person looks at after a run: the curves as a drawing, and one page with everything.

mod curves;

pub use curves::{CURVES_FILE, draw};
